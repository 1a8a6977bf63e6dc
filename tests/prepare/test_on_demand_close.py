"""Callers of a cache that closes, is closed, or belongs to another process: none hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    Worker,
    end_child,
    run_child,
    start_child,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills, unpublished_bytes, waiting_callers
from support.helpers import wait_until

from bbcache import BasebackupCache, ClosingError, FillError, Lsn
from bbcache.prepare.queue import PrepareQueue
from bbcache.storage.files import TempFile
from bbcache.testing import MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.host import TarballWriter


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def check_closing(workers: list[Worker]) -> None:
    """All of them are told at once that the cache closes."""
    for worker in workers:
        with pytest.raises(ClosingError, match=r"closing\nhint: "):
            worker.result()


@pytest.mark.parametrize("step", ["wait", "write", "patch", "sync"])
def test_a_close_ends_every_wait_though_the_worker_is_stuck(
    harness: Harness, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers of the running build and of queued ones are told; a late archive is dropped."""
    timeline, queued = harness.timeline(), harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        if step == "wait":
            timeline.on_wait = gate
        elif step == "write":
            stop_while_sending(timeline, gate)
        else:
            stop_before(patch, TempFile, step, gate)
        workers = fillers(harness, timeline, 3)
        gate.wait_for()
        workers += fillers(harness, queued, 3)
        closer = Worker(harness.cache.close)  # without limit: it waits for the stuck worker
        check_closing(workers)
        assert closer.is_alive()
        assert len(harness.living()) == 1
        gate.open()
        closer.result()
    assert fills(harness) == {"closing": 6}
    assert unpublished_bytes(harness) == 0
    harness.open()
    harness.check_accounting()
    timeline.on_wait = timeline.on_send = None
    # A build that had all its bytes when the close began may be published before its end.
    assert harness.holds(timeline) == (step in {"patch", "sync"})
    assert filled(harness, timeline)[1] == tar_of(timeline)
    assert filled(harness, queued) == ("built", tar_of(queued))


def test_a_close_with_a_deadline_leaves_the_worker_and_no_caller_behind(harness: Harness) -> None:
    """Also if the archive of the build that is left behind was not to be published."""
    timeline = harness.timeline(LSN_B)
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        workers = fillers(harness, timeline, 3)
        gate.wait_for()
        harness.cache.close(0)
        check_closing(workers)
        (late,) = harness.living()
        gate.open()
        late.join(DEADLINE_S)
    harness.open()
    harness.check_accounting()


def test_a_caller_during_the_close_is_told(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look-up and the queue the cache has closed."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, PrepareQueue, "join", gate)
        worker = Worker(fill, harness, timeline, LSN_A, None)
        gate.wait_for()
        harness.cache.close(DEADLINE_S)
        gate.open()
        check_closing([worker])


def test_a_host_that_closes_in_its_callback(harness: Harness) -> None:
    """The callers of that very build are told too."""
    timeline = harness.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(timeline.tarball(lsn))
        harness.cache.close()

    timeline.on_send = send
    with pytest.raises(ClosingError):
        fill(harness, timeline, timeout_s=None)


def test_a_closed_cache_says_so(harness: Harness) -> None:
    """The error comes at once, has a hint, and counts nothing."""
    timeline = harness.prepared()
    harness.cache.close()
    with pytest.raises(ClosingError, match=r"is closed\nhint: "):
        fill(harness, timeline)
    assert fills(harness) == {}


def test_a_disabled_cache_says_so(tmp_path: Path) -> None:
    """A disabled cache cannot build."""
    harness = Harness(tmp_path)
    timeline = harness.timeline()
    cache = BasebackupCache.spawn(tmp_path, None, harness.host)
    with pytest.raises(FillError, match=r"disabled and builds nothing\nhint: "):
        cache.get_or_prepare(harness.tenant.tenant_shard_id, timeline.timeline_id, LSN_A, 1.0)


@pytest.mark.filterwarnings("ignore:the basebackup cache on .* was not closed:ResourceWarning")
def test_a_cache_that_is_dropped_while_they_wait(tmp_path: Path) -> None:
    """The shared file is closed when the last caller has its own file."""
    harness = Harness(tmp_path / "cache")
    harness.open()
    timeline = harness.timeline()
    cache, engine = harness.cache, harness.engine
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        workers = fillers(harness, timeline, 2)
        gate.wait_for()
        harness.opened.pop_all()
        del harness.cache, cache
        assert engine.is_serving
        gate.open()
        assert {worker.result() for worker in workers} == {
            ("built", tar_of(timeline)),
            ("joined", tar_of(timeline)),
        }
    wait_until(lambda: not engine.is_serving)
    engine.close(DEADLINE_S)


def test_no_caller_is_left_after_many_closes(tmp_path: Path) -> None:
    """Callers that meet a close at any moment get their bytes or are told."""
    harness = Harness(tmp_path / "cache", prepare_concurrency=2)
    for round_number in range(20):
        harness.open()
        timelines = [harness.timeline() for _ in range(3)]
        workers = [Worker(filled, harness, each, LSN_A, None) for each in timelines * 4]
        if round_number % 2:
            wait_until(lambda: fills(harness) or waiting_callers())
        harness.cache.close(DEADLINE_S)
        for worker in workers:
            try:
                assert worker.result()
            except ClosingError:
                continue
        assert waiting_callers() == 0
        assert unpublished_bytes(harness) == 0


@pytest.mark.parametrize("disk", ["good", "sick"])
def test_a_forked_child_builds_nothing(tmp_path: Path, disk: str) -> None:
    """The child's call is refused, and the parent's builds and accounting go on."""
    child = "support.fill_children:fork_while_they_wait"
    assert run_child(child, tmp_path / "cache", disk) == "done\n"


@pytest.mark.parametrize("is_daemon", ["daemon", "waited for"])
def test_the_exit_of_the_interpreter_ends_every_wait(tmp_path: Path, is_daemon: str) -> None:
    """Threads that wait without limit do not delay the exit; its callers are told the reason."""
    child = start_child("support.fill_children:exit_while_they_wait", tmp_path / "cache", is_daemon)
    code, out, err = end_child(child)
    assert (code, err) == (3, "")
    told_count = out.splitlines().count("ClosingError")
    assert told_count == 3 or (is_daemon == "daemon" and told_count < 3)  # it may be ended first
    with Harness(tmp_path / "cache") as harness:
        harness.check_accounting()


def test_a_kill_leaves_no_nameless_bytes(tmp_path: Path) -> None:
    """Killed while an unpublished archive is built and another read: the start sweeps all."""
    child = start_child("support.fill_children:die_while_it_is_built", tmp_path / "cache")
    code, _, err = end_child(child)
    assert code == -9, err
    with Harness(tmp_path / "cache") as harness:
        assert harness.cache.entries() == []
        harness.check_accounting()


def test_a_wait_for_the_lsn_does_not_hold_up_a_close(harness: Harness) -> None:
    """It is waited for in slices, and the caller is told at once."""
    timeline = MemoryTimeline(LSN_A)
    harness.tenant.timelines[timeline.timeline_id] = timeline
    workers = fillers(harness, timeline, 2, LSN_B)
    harness.cache.close(DEADLINE_S)
    check_closing(workers)
    assert not harness.living()
