"""The processes of `test_service_process`: they serve, fork, and exit."""

from __future__ import annotations

import os
import sys
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from page_service import wire
from page_service.conftest import ANY_PORT, Bench
from page_service.wire import kinds
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B
from support.helpers import wait_until

from bbcache.http_service.config import HttpConfig
from bbcache.http_service.handler import text_response
from bbcache.http_service.server import HttpService

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.http_service.handler import Response
    from bbcache.page_service.protocol.command import BasebackupCommand
    from bbcache.page_service.server import PageService
    from bbcache.page_service.source import BasebackupSource, OpenBasebackup


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns: there are threads
        return os.fork()


def _answer(path: str, _: str) -> Response:
    return text_response(200, path)  # type: ignore[arg-type]  # an int does


def fork_while_serving(data_dir: str) -> None:
    """A child that lives on, and closes all that it has inherited."""
    bench = Bench(Path(data_dir))
    bench.serve()
    command = bench.command(bench.harness.prepared(), LSN_A, "gzip")
    http = HttpService(HttpConfig(listen=ANY_PORT), _answer)
    http.start()
    leaving, staying = bench.logged_in(), bench.logged_in()
    until_done, done = os.pipe()
    closed, has_closed = os.pipe()
    pid = _fork()
    if pid == 0:
        os.close(done)
        leaving.close()
        staying.close()
        _close_all(bench.service, http)
        os.write(has_closed, b"x")
        os.read(until_done, 1)
        os._exit(0)
    os.read(closed, 1)
    leaving.send(wire.TERMINATE)
    assert leaving.receive() is None
    leaving.close()
    for client in (staying, bench.logged_in()):
        assert kinds(client.ask(command)) == "HdcCZ"
    with urllib.request.urlopen(f"http://{http.address}/x", timeout=DEADLINE_S) as answer:
        assert answer.read() == b"/x\n"
    http.close(DEADLINE_S)
    bench.close()
    os.close(done)
    assert os.waitpid(pid, 0)[1] == 0


def _close_all(service: PageService, http: HttpService) -> None:
    assert service.drain(None)
    service.close()
    http.begin_close()
    http.close()


class _Forking:
    """A source whose `open` returns twice: in the parent, and in a child."""

    def __init__(self, source: BasebackupSource) -> None:
        self._source = source
        self.codes: list[int] = []

    def open(
        self, command: BasebackupCommand, check_cancelled: Callable[[], None]
    ) -> OpenBasebackup:
        """Fork."""
        pid = _fork()
        if pid:
            self.codes.append(os.waitpid(pid, 0)[1])
        return self._source.open(command, check_cancelled)


def fork_in_a_source(data_dir: str) -> None:
    """The child does not go on with the parent's client."""
    bench = Bench(Path(data_dir))
    bench.serve()
    command = bench.command(bench.harness.prepared(), LSN_A, "gzip")
    source = _Forking(bench.source())
    bench.serve(source, in_one_registry=True)
    client = bench.logged_in()
    assert kinds(client.ask(command)) == "HdcCZ"
    assert kinds(client.ask(command)) == "HdcCZ"
    assert len(source.codes) == 2
    bench.close()


def exit_while_serving(data_dir: str) -> None:
    """One client waits for an LSN, the others are idle; nothing is closed."""
    bench = Bench(Path(data_dir))
    service = bench.serve()
    print(service.address.port)  # noqa: T201 - read by the parent
    print(bench.command(bench.harness.timeline(LSN_A), LSN_B), flush=True)  # noqa: T201 - likewise
    sys.stdin.readline()
    wait_until(lambda: bench.counts("pageserver_compute_commands_total"))
    wait_until(lambda: service.connection_count == 3)
