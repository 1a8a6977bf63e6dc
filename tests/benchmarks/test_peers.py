"""Peers that are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.postgres.server.cluster import PostgresBinaries
from benchmarks.peers import (
    PeerMissingError,
    require_package,
    require_postgres_tool,
    require_tool,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_package_is_named_with_how_to_get_it() -> None:
    """One that is there is imported."""
    assert require_package("json", "json").dumps([]) == "[]"
    with pytest.raises(PeerMissingError) as caught:
        require_package("no_such_module", "no-such-package")
    assert str(caught.value).startswith("no-such-package is not installed\nhint: ")
    assert "pip install no-such-package" in str(caught.value)


def test_a_program_is_named_with_how_to_get_it() -> None:
    """One that is there is found."""
    assert require_tool("sh", "dash").endswith("/sh")
    with pytest.raises(PeerMissingError, match=r"no-such-tool is not on PATH\nhint: .*apt install"):
        require_tool("no-such-tool", "some-package")


def test_a_program_of_postgres_is_named(tmp_path: Path) -> None:
    """With the installation that lacks it."""
    with pytest.raises(PeerMissingError, match=r"no pg_basebackup in .*\nhint: "):
        require_postgres_tool(PostgresBinaries(tmp_path, "99.1"), "pg_basebackup")
