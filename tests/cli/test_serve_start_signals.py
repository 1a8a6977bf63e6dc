"""A signal that arrives before ``bbcache serve`` is ready ends it, and loses no commit."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli.test_serve import Served
from pageserver.compute_lives import Orphan, is_running, leave_orphan
from pageserver.conftest import Lab
from support.cache_helpers import CHILD_DEADLINE_S
from support.helpers import wait_until

from bbcache.cli.stop_signals import STOP_SIGNALS, ServiceSignals, Stopped
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Templates
    from support.warm_python import WarmPython

    from bbcache.postgres.server.cluster import PostgresBinaries


@pytest.fixture
def lab(
    templates: Templates, pg_dir: Path, newest_pg: PostgresBinaries, warm_python: WarmPython
) -> Iterator[Lab]:
    """A lab with a pageserver."""
    directory = Path(tempfile.mkdtemp(prefix="serve-", dir=pg_dir))
    directory.chmod(0o711)
    lab = Lab(newest_pg, templates, directory / "root", warm_python)
    lab.open()
    yield lab
    lab.close()


class EndlessRecovery:
    """The recovery of a compute node that was left, which waits for a writer of a pipe."""

    def __init__(self, orphan: Orphan) -> None:
        self._pgdata_dir = orphan.pgdata_dir
        os.kill(orphan.pid, signal.SIGQUIT)
        wait_until(lambda: not is_running(orphan.pid))
        self._pipe = orphan.pgdata_dir / "backup_label"
        os.mkfifo(self._pipe)
        status = orphan.pgdata_dir.stat()
        os.chown(self._pipe, status.st_uid, status.st_gid)

    def pid(self) -> int:
        """Wait for the server that recovers; its process id."""
        path = self._pgdata_dir.with_name(f"{self._pgdata_dir.name}.log")
        before = path.read_text().count("database system was interrupted")

        def found() -> bool:
            return path.read_text().count("database system was interrupted") > before

        wait_until(found, CHILD_DEADLINE_S)
        file = PostmasterFile.read(self._pgdata_dir)
        assert file is not None
        return file.pid

    def let_end(self) -> None:
        """Let the next recovery come to its end."""
        self._pipe.unlink()


@pytest.mark.postgres
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_during_the_recovery_of_a_compute_node(lab: Lab, number: signal.Signals) -> None:
    """The service and the server that recovers end; the next start takes the directory over."""
    address = lab.add_timeline(sql="create table t as select 1 i")
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    recovery = EndlessRecovery(orphan)
    served = Served(lab.root)
    try:
        pid = recovery.pid()
        served.signal(signal.SIGHUP)  # a reload, which interrupts no start
        served.signal(number)
        assert served.end() == 0
        assert served.lines == ["stopped before it was ready"]
        assert "Traceback" not in served.err
    finally:
        served.close()
    assert not is_running(pid)
    assert orphan.pgdata_dir.is_dir()
    recovery.let_end()
    lab.open()
    assert not orphan.pgdata_dir.exists()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the handlers of this process back at the end."""
    before = [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS]
    yield
    for number, handler in zip(STOP_SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_wait_once_the_start_has_ended() -> None:
    """One that Python has dropped during the start waits as well, and reloads are no stop."""
    with ServiceSignals.heeded() as signals:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signals.end_start()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(number)
        assert [signals.wait() for _ in range(2)] == [signal.SIGTERM, signal.SIGHUP]
        assert signals.is_stop_waiting()
        assert not signals.is_stop_waiting()


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_a_wait() -> None:
    """The main thread waits without limit, and notices a signal to the process at once."""
    with ServiceSignals.heeded() as signals:
        signals.end_start()
        other = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        other.start()
        assert signals.wait() == signal.SIGTERM
        other.join()
