"""A takeover that is cut short: the next start finds the old state or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bbcache import TenantId, TimelineId
from bbcache.pageserver import Pageserver, PgdataTenantManager, takeover
from bbcache.postgres.server.cluster import PostgresBinaries

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Lab

STEPS = (
    "sync the copy",
    "rename it to .new",
    "sync where it came from",
    "sync where it went",
    "rename the old one to .old",
    "rename .new into place",
    "sync both renames",
    "remove .old",
    "remove the rest of .old",
)
FIRST_WITH_NEW_STATE = 2
BY_STEP = pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)


class Crash(BaseException):
    """Ends a takeover as a power cut would: no handler of an `Exception` sees it."""


class Steps:
    """Counts the steps of takeovers, and ends one before its step number `last`."""

    def __init__(self, last: int, end: Callable[[], None]) -> None:
        self.count = 0
        self._last = last
        self._end = end

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a step."""

        def step(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            return function(*args, **kwargs)

        return step

    def rmtree(self, path: Path, **options: Any) -> None:
        """Removing an old state as two steps, so that it can end in the middle."""
        if path.suffix == ".old":
            self._begin()
            _rmtree(path / "base", ignore_errors=True)
            self._begin()
        _rmtree(path, **options)

    def install(self, patch: Callable[[object, str, object], None]) -> None:
        """Put the steps into the takeover."""
        for name in ("sync_tree", "sync_directory"):
            patch(takeover, name, self.wrap(getattr(takeover, name)))
        patch(os, "rename", self.wrap(os.rename))
        patch(shutil, "rmtree", self.rmtree)

    def _begin(self) -> None:
        if self.count == self._last:
            self._end()
        self.count += 1


_rmtree = shutil.rmtree


def crash() -> None:
    """End the takeover with an exception."""
    raise Crash


def write_tree(directory: Path, state: str) -> dict[str, str]:
    """Make a data directory of which every file tells the state; return what was made."""
    tree = dict.fromkeys(("PG_VERSION", "base/1/2", f"base/{state}", "global/pg_control"), state)
    for name, content in tree.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tree


def read_tree(directory: Path) -> dict[str, str]:
    """Every file in a directory with its content."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_text() for path in files}


def test_steps_are_those_that_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover that nothing cuts short has as many steps as there are crash points here."""
    place, copy = tmp_path / "timelines" / "t", tmp_path / "copy"
    write_tree(place, "old")
    tree = write_tree(copy, "new")
    steps = Steps(-1, crash)
    with monkeypatch.context() as patch:
        steps.install(patch.setattr)
        takeover.take_over(copy, place)
    assert steps.count == len(STEPS)
    assert read_tree(place.parent) == {f"t/{name}": "new" for name in tree}


@BY_STEP
def test_crash_leaves_old_or_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Starts that are cut short, too, finish a takeover that was cut short before a step."""
    place, copy = tmp_path / "timelines" / "t", tmp_path / "copy"
    old, new = write_tree(place, "old"), write_tree(copy, "new")
    with monkeypatch.context() as patch:
        Steps(step, crash).install(patch.setattr)
        with pytest.raises(Crash):
            takeover.take_over(copy, place)
    for _ in STEPS:  # each attempt gets one step further
        assert takeover.timeline_names(place.parent) == {"t"}
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            Steps(1, crash).install(patch.setattr)
            takeover.finish_takeover(place)
    takeover.finish_takeover(place)
    tree = new if step >= FIRST_WITH_NEW_STATE else old
    assert read_tree(place.parent) == {f"t/{name}": text for name, text in tree.items()}


def test_takeover_of_a_new_timeline_has_no_old_state(tmp_path: Path) -> None:
    """Where nothing was before, the directory is moved there."""
    place = tmp_path / "timelines" / "t"
    place.parent.mkdir()
    tree = write_tree(tmp_path / "copy", "new")
    takeover.take_over(tmp_path / "copy", place)
    assert read_tree(place) == tree
    assert os.listdir(place.parent) == ["t"]


def test_sync_follows_what_postgres_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of links, pg_wal and tablespaces are synced; no other leads anywhere."""
    pgdata_dir, elsewhere, wal_dir = (tmp_path / name for name in ("pgdata", "elsewhere", "wal"))
    write_tree(pgdata_dir, "new")
    write_tree(elsewhere / "PG_18_1", "new")
    write_tree(elsewhere / "other", "new")
    write_tree(wal_dir, "new")
    tblspc_dir = pgdata_dir / "pg_tblspc"
    tblspc_dir.mkdir()
    (tblspc_dir / "16385").symlink_to(elsewhere)
    (tblspc_dir / "16386").symlink_to("16386")
    (tblspc_dir / "16387").symlink_to("nowhere")
    (tblspc_dir / "16388").symlink_to("/proc/self")
    (pgdata_dir / "pg_wal").symlink_to(wal_dir)
    (pgdata_dir / "loop").symlink_to(".")
    (pgdata_dir / "out").symlink_to(tmp_path)
    os.mkfifo(pgdata_dir / "fifo")
    synced: set[int] = set()

    def note(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    takeover.sync_tree(pgdata_dir)
    wanted = {wal_dir, elsewhere / "PG_18_1"}
    for top in (pgdata_dir, *wanted):
        wanted |= {top, *(path for path in top.rglob("*") if path.is_dir() or path.is_file())}
    wanted -= {path for path in wanted if path.is_symlink()}
    assert synced == {path.stat().st_ino for path in wanted}


def test_a_new_tenant_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of its directories are synced, on which those of its timelines rest."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    tenant = PgdataTenantManager(tmp_path).create_tenant()
    directory = tmp_path / str(tenant.tenant_id)
    assert synced == [directory.stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.postgres
@BY_STEP
def test_kill_in_a_takeover_loses_nothing(lab: Lab, step: int) -> None:
    """A pageserver killed outright while a compute node stops loses nothing of it.

    What the takeover had not got to is taken over by the next start.
    """
    address = lab.add_timeline()
    lsn = lab.timeline(address).get_last_record_lsn()
    lab.pageserver.cache.send_prepare(lab.shard(address), address.timeline_id, lsn)
    lab.wait_idle()
    lab.close()
    argv = [str(lab.root), str(lab.binaries.bindir), *map(str, address), str(step)]
    killed = subprocess.run([sys.executable, __file__, *argv], check=False)
    assert killed.returncode == -signal.SIGKILL
    lab.open()
    names = os.listdir(lab.timeline(address).pgdata_dir.parent)
    assert names == [str(address.timeline_id)]
    assert os.listdir(lab.root / "computes") == []
    compute = lab.boot(address)
    (line,) = [x for x in compute.cluster.read_log().splitlines() if "database system was" in x]
    assert "was shut down at" in line
    assert lab.sql(compute, "select i from t") == [(1,), (2,)]
    assert lab.reads() == {"hit": 0, "miss": 1, "error": 0}


def stop_compute_and_die(root: str, bindir: str, tenant: str, timeline: str, step: str) -> None:
    """The life of the process that is killed."""
    binaries = PostgresBinaries.find(bindir)
    address = TenantId.from_str(tenant), TimelineId.from_str(timeline)
    pageserver = Pageserver(Path(root), binaries, None)
    with pageserver.open_basebackup(*address).file as archive:
        compute = pageserver.make_compute(*address, archive)
    compute.start({"fsync": "off"})
    compute.cluster.psql("create table t as select generate_series(1, 2) i")
    Steps(int(step), lambda: os.kill(os.getpid(), signal.SIGKILL)).install(setattr)
    compute.stop()


if __name__ == "__main__":
    stop_compute_and_die(*sys.argv[1:])
