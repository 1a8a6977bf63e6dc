"""The start: files that it takes over or leaves, and failures that cannot stop it."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    Gate,
    Harness,
    Worker,
    fail_with,
    stop_before,
    tar_of,
)
from support.helpers import wait_until

from bbcache import Lsn
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import Store
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """A cache that is not opened yet, on an existing directory."""
    harness = Harness(tmp_path / "cache")
    harness.dir.mkdir(mode=0o700)
    return harness


def test_a_restart_serves_what_was_there(harness: Harness) -> None:
    """Entries are hits at once after a restart, and counted."""
    with harness:
        timelines = [harness.prepared() for _ in range(4)]
        harness.reopen()
        assert harness.value("bbcache_loaded_entries") == 4
        assert [harness.get(timeline) for timeline in timelines] == [tar_of(t) for t in timelines]
        assert harness.counts() == {}
        harness.check_accounting()


def test_the_newest_of_a_timeline_is_kept(harness: Harness) -> None:
    """Of several LSNs of one timeline the newest stays, the older files are unlinked."""
    timelines = [harness.timeline(LSN_C) for _ in range(3)]
    lsns = [LSN_A, LSN_C, LSN_B, Lsn(0xFFF), Lsn(2**64 - 1)]
    for timeline, order in zip(timelines, (lsns, lsns[::-1], sorted(lsns)), strict=True):
        for lsn in order:
            harness.seed(timeline, lsn)
    with harness:
        assert sorted(harness.entry_files()) == sorted(
            harness.path(timeline, lsns[-1]).name for timeline in timelines
        )
        harness.check_accounting()


def test_the_start_opens_no_file(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and sizes are enough: a bad or unreadable entry does not slow or stop the start."""
    good, empty, bad = (harness.timeline(LSN_B) for _ in range(3))
    harness.seed(good, LSN_B)
    harness.seed(empty, LSN_B, b"")
    harness.seed(bad, LSN_B, b"no archive").chmod(0)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, "open", AssertionError("a file was opened"))
        fail_with(patch, os, "pread", AssertionError("a file was read"))
        harness.open()
    with harness.opened:
        assert harness.value("bbcache_loaded_entries") == 3
        assert harness.get(good, LSN_B) == tar_of(good, LSN_B)
        assert harness.get(empty, LSN_B) is None


IDS = "de200bd42b49cc1814412c7e592dd6e9", "11223344556677889900aabbccddeeff"
NAME = "basebackup_{}_{}_{:016X}.tar.gz".format(*IDS, 0xABCDEF)
ODD_NAMES = [
    *(NAME.lower(), NAME.upper(), NAME.replace("_0000000000", "_"), NAME + "\n", " " + NAME),
    *(NAME.replace("de20", "DE20"), NAME.replace("_0", "_-"), NAME.replace("_00", "_0_")),
    *(NAME.replace("_00", "_+0"), NAME.replace("_00", "_0x"), NAME.replace("_00", "_\u0660\u0660")),
    *(NAME + ".tmp", NAME[:-3], NAME[:-7] + ".tgz", "x" + NAME, NAME + "~", "." + NAME),
    *(NAME.replace(IDS[0], IDS[0][:-1]), NAME.replace(IDS[1], IDS[1] + "0"), "basebackup_.tar.gz"),
    *("lost+found", ".DS_Store", ".nfs0000000001", "tmp2", "quarantine ", "notes.txt", "ä"),
    *("a" * 255, "new\nline", "%s%d{}", os.fsdecode(b"\xff\xfe")),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_an_odd_name_is_reported_and_left_alone(
    harness: Harness, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only Neon's names in canonical form are entries; anything else stays as it is."""
    (harness.dir / name).write_bytes(b"of somebody else")
    with harness:
        assert harness.cache.entries() == []
        assert harness.value("bbcache_nonentry_bytes") == 16
        assert repr(name) in caplog.text
        timeline = harness.prepared()
        harness.cache.run_cleanup()
        assert harness.get(timeline) == tar_of(timeline)
    assert (harness.dir / name).read_bytes() == b"of somebody else"


def _link(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)


def _dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize("place", [_link, _dangling_link, _folder, os.mkfifo, _socket])
@pytest.mark.parametrize("is_entry_name", [False, True], ids=["odd_name", "entry_name"])
def test_what_is_no_regular_file_is_reported_and_left_alone(
    harness: Harness,
    place: Callable[[Path], None],
    is_entry_name: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A link, folder, FIFO or socket, also under an entry's name, is no entry and stays."""
    timeline = harness.timeline()
    path = harness.path(timeline) if is_entry_name else harness.dir / "foreign file"
    monkeypatch.chdir(harness.dir)
    place(path)
    before = path.lstat()
    with harness:
        assert harness.cache.entries() == []
        assert harness.get(timeline) is None
        assert harness.reads == {"miss": 1}
        assert repr(path.name) in caplog.text
        harness.cache.run_cleanup()
        other = harness.prepared()
        assert harness.get(other) == tar_of(other)
    assert path.lstat() == before


@pytest.mark.parametrize("place", [_link, os.mkfifo, _socket])
def test_a_publish_over_a_stray_replaces_it(
    harness: Harness, place: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies under an entry's name gives way to the entry; a link's target does not."""
    timeline = harness.timeline()
    monkeypatch.chdir(harness.dir)
    place(harness.path(timeline))
    with harness:
        harness.prepare(timeline)
        assert harness.get(timeline) == tar_of(timeline)
        assert not harness.path(timeline).is_symlink()
        harness.check_accounting()
        if place is _link:
            assert (harness.dir.parent / "victim").read_bytes() == b"precious"


def test_a_folder_under_the_name_of_a_basebackup(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be replaced: that is an error with a hint until it is moved away."""
    timeline = harness.timeline()
    _folder(harness.path(timeline))
    with harness:
        harness.prepare(timeline)
        assert harness.counts() == {"error": 1}
        assert "hint: A directory has the name of a basebackup" in caplog.text
        assert harness.temp_files() == []
        harness.path(timeline).rename(harness.dir / "moved")
        harness.cache.run_cleanup()
        harness.prepare(timeline)
        assert harness.get(timeline) == tar_of(timeline)


@pytest.mark.parametrize("name", ["tmp", "quarantine"])
@pytest.mark.parametrize("is_link", [True, False], ids=["link", "file"])
def test_our_directories_must_be_real(harness: Harness, name: str, is_link: bool) -> None:
    """A link or file in the place of tmp/ or quarantine/ is unlinked, not followed."""
    target = harness.dir.parent / "target"
    target.mkdir()
    (target / "precious").write_bytes(b"x")
    if is_link:
        (harness.dir / name).symlink_to(target)
    else:
        (harness.dir / name).write_bytes(b"a file")
    with harness:
        assert not (harness.dir / name).is_symlink()
        assert (harness.dir / name).is_dir()
        harness.prepared()
        harness.check_accounting()
    assert os.listdir(target) == ["precious"]


def test_the_start_sweeps_tmp(harness: Harness) -> None:
    """The temporary files of a killed process go at the next start, and no others."""
    tmp = harness.dir / "tmp"
    tmp.mkdir()
    victim = harness.dir.parent / "victim"
    victim.write_bytes(b"precious")
    (tmp / (NAME + ".0123456789abcdef")).write_bytes(b"half an archive")
    (tmp / (NAME + ".link")).symlink_to(victim)
    os.mkfifo(tmp / (NAME + ".fifo"))
    with harness:
        harness.check_accounting()
        (tmp / "theirs").write_bytes(b"precious, too")
    with harness:
        assert harness.value("bbcache_nonentry_bytes") == 13
        assert harness.temp_files() == ["theirs"]
    assert victim.read_bytes() == b"precious"


def test_what_cannot_be_swept_is_reported(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in tmp/ does not stop the start, and is logged."""
    (harness.dir / "tmp" / (NAME + ".folder")).mkdir(parents=True)
    with harness:
        timeline = harness.prepared()
        assert harness.get(timeline) == tar_of(timeline)
        assert "folder" in caplog.text


class _Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(record.getMessage())


def test_a_log_handler_that_raises_keeps_nothing_from_being_served(harness: Harness) -> None:
    """The log lines of a start are for the operator; the start does not depend on them."""
    with harness:
        timeline = harness.prepared()
    handler, logger = _Raising(), logging.getLogger("bbcache.upkeep.startup")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with harness:
            assert harness.get(timeline) == tar_of(timeline)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_foreign_files_are_logged_but_not_in_a_flood(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning counts them all and names a few."""
    for number in range(50):
        (harness.dir / f"foreign file{number}").write_bytes(b"x")
    with harness:
        (record,) = [r for r in caplog.records if "foreign file" in r.getMessage()]
        assert record.getMessage().startswith("50 foreign files")
        assert len(re.findall(r"'foreign file\d+'", record.getMessage())) == 10
        harness.check_accounting()


def test_a_superseded_file_that_cannot_be_removed_counts(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts, the start goes on, and the next clean-up removes it."""
    timeline = harness.timeline(LSN_B)
    harness.seed(timeline, LSN_A)
    harness.seed(timeline, LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(errno.EACCES, "no", "x"))
        harness.open()
    with harness.opened:
        assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
        assert harness.value("bbcache_unlink_failures_total") == 1
        assert (
            harness.value("bbcache_nonentry_bytes") == harness.path(timeline, LSN_A).stat().st_size
        )
        harness.cache.run_cleanup()
        harness.check_accounting()


def test_a_directory_that_cannot_be_listed_is_tried_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The load is tried again with growing pauses and log lines, until it succeeds."""
    timeline, new = harness.timeline(), harness.timeline()
    harness.seed(timeline)
    fail_with(monkeypatch, Store, "scan", OSError(errno.EIO, "Input/output error"), times=4)
    harness.open(wait=False)
    with harness.opened:
        harness.send(new)
        assert harness.cache.wait_initialized(DEADLINE_S)
        harness.wait_idle()
        pauses_s = re.findall(r"trying again in ([0-9.]+) s", caplog.text)
        assert [float(pause_s) for pause_s in pauses_s] == [0.02, 0.04, 0.08, 0.16]
        assert "hint: The disk" in caplog.text
        assert {harness.get(timeline), harness.get(new)} == {tar_of(timeline), tar_of(new)}
        harness.check_accounting()


def test_the_pauses_of_a_failing_start_grow_to_five_seconds(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pause is twice as long as the last, up to the longest."""
    pauses_s: list[float] = []
    real_wait_for = Waiters.wait_for

    def wait_for(waiters: Waiters, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        if threading.current_thread().name != "bbcache-cleanup" or len(pauses_s) == 12:
            return real_wait_for(waiters, is_so, timeout_s)
        pauses_s.append(timeout_s or 0)
        return is_so()

    monkeypatch.setattr(Waiters, "wait_for", wait_for)
    fail_with(monkeypatch, Store, "scan", OSError(errno.EIO, "Input/output error"), times=11)
    with harness:
        assert pauses_s == [0, *(0.02 * 2**count for count in range(8)), 5.0, 5.0, 5.0]


@pytest.mark.parametrize("step", ["make_directories", "sweep_tmp", "scan", "quarantined"])
def test_nothing_is_served_until_the_start_is_done(
    harness: Harness, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the start has succeeded, `get` returns None and `entries` is empty."""
    timeline = harness.timeline()
    harness.seed(timeline)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, step, OSError(errno.EACCES, "Permission denied"))
        harness.open(wait=False)
        with harness.opened:
            assert not harness.cache.wait_initialized(0.1)
            assert not harness.cache.wait_idle(0)
            assert harness.cache.entries() == []
            assert harness.get(timeline) is None
            patch.undo()
            assert harness.cache.wait_initialized(DEADLINE_S)
            assert harness.get(timeline) == tar_of(timeline)
            harness.check_accounting()


def test_a_start_that_keeps_failing_can_be_closed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close does not wait for the next try, and wakes the threads that wait for the start."""
    fail_with(monkeypatch, Store, "scan", OSError(errno.EIO, "Input/output error"))
    harness.open(wait=False)
    with harness.opened:
        waiting = Worker(harness.cache.wait_initialized)
        idle = Worker(harness.cache.wait_idle)
        harness.send(harness.timeline())
        harness.cache.close()
        assert waiting.result() is False
        assert idle.result() is False
        assert harness.skips == {"closing": 1}
        assert not harness.cache.wait_idle(0)


def test_a_start_left_behind_by_its_close_removes_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that begins after the close does not sweep the next cache's files."""
    built, held = harness.timeline(), harness.timeline(LSN_B)
    for lsn in (LSN_A, LSN_B):
        harness.seed(held, lsn)
    with harness.opened, Gate() as loading, Gate() as building:
        with monkeypatch.context() as patch:
            stop_before(patch, Catalog, "load", loading)
            harness.open(wait=False)
            loading.wait_for()
        (late,) = harness.living("cleanup")
        harness.cache.close(0.05)
        harness.open()
        _stop_in_build(harness, built, building)
        harness.seed(held, LSN_A)
        before = harness.temp_files()
        loading.open()
        wait_until(lambda: not late.is_alive())
        assert harness.temp_files() == before
        assert harness.path(held, LSN_A).exists()
        building.open()
        harness.wait_idle()
        assert harness.get(built) == tar_of(built)


def _stop_in_build(harness: Harness, timeline: MemoryTimeline, gate: Gate) -> None:
    real_send = timeline.send_basebackup_tarball

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        gate()
        timeline.on_send = None
        real_send(writer, lsn)

    timeline.on_send = send
    harness.send(timeline)
    gate.wait_for()
