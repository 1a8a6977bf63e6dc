"""The client that asks the page service and nginx for archives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import make_workspace

from benchmarks import test_page_service as service
from benchmarks.exchanges import Exchange
from benchmarks.latency import Calls

if TYPE_CHECKING:
    from pathlib import Path


def test_other_bytes_are_noticed(tmp_path: Path) -> None:
    """An answer that is not the archive is an error, and no figure."""
    workspace = make_workspace(tmp_path)
    with (
        service.written(workspace, workspace.inputs.lean, 2) as archives,
        service.served(archives) as server,
        Exchange(server, 3) as exchange,
    ):
        contents = archives.contents()
        exchange.check(contents)
        assert len(exchange.latencies(Calls(20, 60.0))) == 20
        assert exchange.seconds_a_request(0.01) > 0
        exchange.check(contents)
        with pytest.raises(ValueError, match="other bytes"):
            exchange.check(contents[:1])


def test_a_refusal_is_an_error(tmp_path: Path) -> None:
    """A refusal is an error, and not a fast answer."""
    workspace = make_workspace(tmp_path)
    with (
        service.written(workspace, workspace.inputs.lean, 1) as archives,
        service.served(archives) as server,
        Exchange(server._replace(requests=[b"Q\0\0\0\7no\0"])) as exchange,
        pytest.raises(ValueError, match="refused"),
    ):
        exchange.check(archives.contents())
