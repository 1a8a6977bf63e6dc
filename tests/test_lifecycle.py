"""Processes: fork, exit without close, kill at any step, two on one directory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Harness,
    Worker,
    end_child,
    run_child,
    start_child,
)
from support.helpers import wait_until
from support.process_children import DEATHS, LATER_DEATHS, fixed_harness

from bbcache import DirectoryLockedError, lifecycle

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.warm_python import WarmPython


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The directory of the caches of several processes, one at a time."""
    return tmp_path / "cache"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Children that are killed at the end, if they still run."""
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        child.kill()
        end_child(child)


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go on\n")
    child.stdin.flush()


def _check_restart(data_dir: Path) -> set[int]:
    """Restart on a process's directory: good entries, no foreign files; returns the LSNs."""
    harness, timeline = fixed_harness(str(data_dir))
    timeline.advance(LSN_B)
    with harness:
        harness.check_accounting()
        held = {int(entry.lsn) for entry in harness.cache.entries()}
        for lsn in (LSN_A, LSN_B):
            expected = timeline.tarball(lsn) if lsn in held else None
            assert harness.get(timeline, lsn) == expected
        harness.prepare(timeline, LSN_B)
        assert harness.get(timeline, LSN_B) == timeline.tarball(LSN_B)
        harness.check_accounting()
    return held


def test_a_forked_child_wants_no_lock_and_holds_none(data_dir: Path) -> None:
    """Forked while every lock is held, the child finds an inert cache, and harms nothing."""
    run_child("support.process_children:fork_while_locks_are_held", data_dir)
    assert _check_restart(data_dir) == {LSN_B}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("get_attached_tenant_shard", "exit"), ("get_timeline", "raise"), ("wait_lsn", "return")),
        *(("get_last_record_lsn", "exit"), ("list", "exit"), ("list_timelines", "raise")),
        *(("send_basebackup_tarball", how) for how in ("exit", "raise", "return")),
    ],
)
def test_a_child_forked_in_a_callback_does_not_come_out_of_it(
    data_dir: Path, warm_python: WarmPython, name: str, how: str
) -> None:
    """It ends there, and only its parent goes on with the work."""
    function = "support.process_children:fork_in_a_callback"
    code, _, err = end_child(warm_python.start(function, str(data_dir), name, how))
    assert code == 0, err
    assert _check_restart(data_dir) == {LSN_B}


def test_children_of_a_killed_process_do_not_hold_the_directory(
    data_dir: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Neither a forked child nor a program started with all descriptors has the lock."""
    parent = start_child("support.process_children:leave_children_behind", data_dir)
    started.append(parent)
    pids = [int(pid) for pid in _line(parent).split()]
    with pytest.raises(DirectoryLockedError) as caught:
        Harness(data_dir).open()
    assert caught.value.pid == parent.pid
    parent.send_signal(signal.SIGKILL)
    parent.wait(DEADLINE_S)
    wait_until(lambda: _is_free(data_dir))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # raises when it is gone already


def _is_free(data_dir: Path) -> bool:
    try:
        with Harness(data_dir):
            return True
    except DirectoryLockedError:
        return False


def test_the_lock_of_a_killed_process_is_taken_at_once(
    data_dir: Path, started: list[subprocess.Popen[str]]
) -> None:
    """While it lives the error names its pid; once it is killed the next start succeeds."""
    child = start_child("support.process_children:hold", data_dir)
    started.append(child)
    assert _line(child) == "open"
    with pytest.raises(DirectoryLockedError, match=f"pid {child.pid}") as caught:
        Harness(data_dir).open()
    assert caught.value.pid == child.pid
    child.send_signal(signal.SIGKILL)
    child.wait(DEADLINE_S)
    assert _check_restart(data_dir) == {LSN_A}


def test_of_many_processes_at_once_one_gets_the_directory(
    data_dir: Path, started: list[subprocess.Popen[str]]
) -> None:
    """The errors of the others name its pid."""
    open_together = "support.process_children:open_together"
    started.extend(start_child(open_together, data_dir) for _ in range(5))
    for child in started:
        assert _line(child) == "ready"
    for child in started:
        _tell(child)
    answers = {child.pid: _line(child) for child in started}
    (winner,) = [pid for pid, answer in answers.items() if answer == "open"]
    del answers[winner]
    assert set(answers.values()) == {f"locked by {winner}"}


@pytest.mark.parametrize("doing", ["wait", "write"])
@pytest.mark.parametrize(
    ("how", "code"),
    [("exit", 3), ("raise", 1), ("interrupt", -signal.SIGINT), ("terminate", 3), ("end", 0)],
)
def test_exit_without_close(data_dir: Path, doing: str, how: str, code: int) -> None:
    """A process that ends without close ends promptly, and leaves a directory in order."""
    child = start_child("support.process_children:exit_without_close", data_dir, doing, how)
    found, _, err = end_child(child)
    assert found == code, err
    last_line = err.strip().rpartition("\n")[2]
    expected = {"raise": "LookupError: the end", "interrupt": "KeyboardInterrupt"}
    assert last_line == expected.get(how, ""), err
    assert os.listdir(data_dir / "tmp") == []
    assert _check_restart(data_dir) == {LSN_A}


def test_exit_while_the_start_fails(data_dir: Path) -> None:
    """A directory that cannot be listed does not hold up the exit."""
    code, _, err = end_child(
        start_child("support.process_children:exit_while_the_start_fails", data_dir)
    )
    assert code == 3, err


def test_exit_after_dropping_the_cache(data_dir: Path) -> None:
    """A cache that closes in the background does not hold up the exit."""
    run_child("support.process_children:exit_after_dropping", data_dir)
    assert _check_restart(data_dir) == set()


@pytest.mark.parametrize("death", DEATHS)
def test_a_kill_in_a_refresh_leaves_the_old_or_the_new(
    data_dir: Path, warm_python: WarmPython, death: str
) -> None:
    """Killed at any step of publishing: afterwards the old entry is there, or the new one."""
    function = "support.process_children:die_in_a_refresh"
    code, _, err = end_child(warm_python.start(function, str(data_dir), death))
    assert code == -signal.SIGKILL, err
    is_renamed = death == "after_rename_temp1" or "commit" in death or "unlink" in death
    assert _check_restart(data_dir) == {LSN_B if is_renamed else LSN_A}


@pytest.mark.parametrize("death", LATER_DEATHS)
def test_a_kill_in_a_start_or_a_quarantine(
    data_dir: Path, warm_python: WarmPython, death: str
) -> None:
    """Killed at any step of a start or of a quarantine: the next start is as any other."""
    harness, timeline = fixed_harness(str(data_dir))
    harness.seed(timeline, LSN_A)
    harness.seed(timeline, LSN_B, b"bad")
    (data_dir / "tmp").mkdir()
    (data_dir / "tmp" / f"{harness.path(timeline).name}.half").write_bytes(b"an archive")
    function = "support.process_children:die_at_the_start_or_in_a_read"
    code, _, err = end_child(warm_python.start(function, str(data_dir), death))
    assert code == -signal.SIGKILL, err
    with harness:
        assert len(harness.entry_files()) == (0 if death == "after_quarantine" else 1)
        assert harness.get(timeline, LSN_B) is None
        assert len(harness.quarantined()) == 1
        harness.wait_idle()
        harness.check_accounting()


def test_the_exit_of_the_interpreter_closes_in_two_steps(data_dir: Path) -> None:
    """First every cache stops its threads, before they are joined; then it is closed."""
    harness, timeline = fixed_harness(str(data_dir))
    with harness:
        harness.prepare(timeline)
        lifecycle._begin_closes()
        assert harness.get(timeline) is None
        with pytest.raises(DirectoryLockedError):
            Harness(data_dir).open()
        lifecycle._finish_closes()
        assert _is_free(data_dir)


class _Closing:
    """An object that is closed at the exit."""

    def begin_close(self) -> None:
        """Begin to do nothing."""

    def close(self, timeout: float | None = None) -> None:
        """Do nothing."""


def test_caches_that_come_and_go_at_the_exit_do_not_disturb_it() -> None:
    """One that closes in the background must not keep the others from being closed."""
    caches, has_ended = [_Closing() for _ in range(50)], threading.Event()
    interval_s = sys.getswitchinterval()

    def come_and_go() -> None:
        while not has_ended.is_set():
            for cache in caches[:20]:
                lifecycle.close_at_exit(cache)
            for cache in caches[:20]:
                lifecycle.forget(cache)

    for cache in caches:
        lifecycle.close_at_exit(cache)
    moving = Worker(come_and_go)
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5000):
            lifecycle._begin_closes()
    finally:
        sys.setswitchinterval(interval_s)
        has_ended.set()
        moving.result()
        for cache in caches:
            lifecycle.forget(cache)
