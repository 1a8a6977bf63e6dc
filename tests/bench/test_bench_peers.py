"""Peers that are not here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import make_scene

from bbcache.bench.bars import Verdict
from bbcache.bench.peers import (
    PeerMissingError,
    require_package,
    require_postgres_tool,
    require_tool,
)
from bbcache.bench.suite import run, select
from bbcache.postgres.server.cluster import PostgresBinaries

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


def test_the_bar_of_a_missing_peer_says_so_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is skipped in silence, and nothing else is lost."""
    monkeypatch.setitem(sys.modules, "diskcache", None)  # as if it were not installed
    outcomes, _ = run(select(["get-hit*"]), make_scene(tmp_path), lambda *_: None)
    hit, peer = outcomes
    assert hit.value is not None
    assert (peer.bar.name, peer.verdict) == ("get-hit-diskcache", Verdict.MISSING)
    assert "pip install diskcache" in peer.reason


def test_without_postgres_its_bars_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need an input name what to install; those that need none are measured."""
    scene = make_scene(tmp_path)
    del scene.inputs
    monkeypatch.setattr("bbcache.postgres.server.binaries._candidates", lambda _: iter(()))
    outcomes, _ = run(select(["prepare-lean", "get-miss"]), scene, lambda *_: None)
    by_name = {outcome.bar.name: outcome for outcome in outcomes}
    assert by_name["prepare-lean"].verdict is Verdict.MISSING
    assert by_name["prepare-lean"].reason.startswith("no PostgreSQL server programs found")
    assert by_name["get-miss"].value is not None
