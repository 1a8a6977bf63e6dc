"""Prepares: the order of the checks, exactly one result each, coalescing, the wait."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
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
    put,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import filled
from support.helpers import run_threads, wait_until
from support.ledger import total_count
from support.seams import stand_still, start_close

from bbcache import BackingOffError, Lsn, TenantId, TenantShardId, TimelineId
from bbcache.prepare.queue import WAIT_SLICE_S
from bbcache.storage.files import Store
from bbcache.storage.index import Verification
from bbcache.testing import MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.host import TarballWriter


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker, so that a lost worker shows."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def test_a_prepare_publishes_the_hosts_bytes(harness: Harness) -> None:
    """An ordinary prepare ends ok, and its archive is the tarball that the host wrote."""
    timeline = harness.prepared()
    assert harness.get(timeline) == tar_of(timeline)
    assert harness.counts() == {"ok": 1}
    assert harness.value("bbcache_prepare_tar_bytes_total") == len(tar_of(timeline))
    size_bytes = harness.path(timeline).stat().st_size
    assert harness.value("bbcache_prepare_archive_bytes_total") == size_bytes
    for phase in ("queue", "wait_lsn", "build", "publish"):
        assert harness.value(f"bbcache_prepare_seconds_count{{phase={phase}}}") == 1
    harness.check_accounting()


def test_a_disabled_tenant_keeps_serving_what_it_has(harness: Harness) -> None:
    """The tenant's switch stops prepares; entries stay until their timelines move on."""
    timeline = harness.prepared()
    harness.tenant.is_cache_enabled = False
    timeline.advance(LSN_B)
    harness.prepare(timeline, LSN_B)
    assert harness.skips == {"disabled": 1}
    assert harness.get(timeline) == tar_of(timeline)
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


_SHARD = TenantShardId(TenantId.generate())


_WRONG = [
    (None, None, None),
    (_SHARD.tenant_id, TimelineId.generate(), LSN_A),
    (str(_SHARD), TimelineId.generate(), LSN_A),
    (_SHARD, TenantId.generate(), LSN_A),
    (_SHARD, bytes(16), LSN_A),
    (_SHARD, TimelineId.generate(), 0x1000),
    (_SHARD, TimelineId.generate(), "0/1000"),
]


@pytest.mark.parametrize("function", ["send_prepare", "send_warm"])
@pytest.mark.parametrize("arguments", _WRONG)
def test_arguments_of_a_wrong_type_are_an_error(
    harness: Harness,
    arguments: tuple[TenantShardId, TimelineId, Lsn],
    function: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is raised: they are counted, and logged with the function that was called."""
    getattr(harness.cache, function)(*arguments)
    harness.wait_idle()
    assert harness.counts() == {"error": 1}
    assert f"invalid call of {function}: " in caplog.text
    assert " must be a T" in caplog.text or "lsn must be an Lsn" in caplog.text


def _raising(error: Exception) -> Callable[..., None]:
    """A function that does nothing but raise."""

    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def test_one_logger_has_the_outcome_of_every_prepare(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level `bbcache.prepare.worker` says how each send_prepare ended, and why."""
    with (
        caplog.at_level(logging.DEBUG, "bbcache.prepare.worker"),
        Harness(tmp_path / "cache", prepare_concurrency=1, prepare_channel_size=1) as harness,
        Gate() as gate,
    ):

        def outcome(timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> str:
            """The log line of a timeline's prepare since the last call."""
            name = f"basebackup of {harness.tenant.tenant_id}/{timeline.timeline_id} at {lsn}"
            found = [r for r in caplog.records if name in r.getMessage()]
            caplog.clear()
            assert {r.name for r in found} == {"bbcache.prepare.worker"}
            (text,) = [r.getMessage().replace(name, "it") for r in found]
            return text

        held = harness.prepared()
        assert re.fullmatch(r"it prepared: \d+ bytes in [\d.]+ s", outcome(held))
        harness.prepare(held)
        assert outcome(held) == "it skipped (up_to_date)"
        harness.cache.send_prepare(
            TenantShardId(harness.tenant.tenant_id, 1, 2), held.timeline_id, LSN_A
        )
        assert outcome(held) == "it skipped (not_shard_zero)"
        failing = harness.timeline()
        failing.on_send = _raising(KeyError("page"))
        harness.prepare(failing)
        assert outcome(failing) == "cannot prepare the it: KeyError: 'page'"
        busy, waiting, late = harness.timeline(), harness.timeline(), harness.timeline()
        stop_while_sending(busy, gate)
        harness.send(busy)
        gate.wait_for()
        harness.send(waiting)
        harness.send(waiting)
        assert outcome(waiting) == "it skipped (coalesced)"
        harness.send(late)
        why = "1 prepares wait already (prepare_channel_size)"
        assert outcome(late) == f"it skipped (queue_full): {why}"
        closer = threading.Thread(target=harness.cache.close)
        closer.start()
        wait_until(lambda: harness.skips.get("closing") == 1)
        gate.open()
        closer.join(DEADLINE_S)
        assert outcome(waiting) == "it skipped (closing)"


def test_an_argument_that_cannot_be_printed_is_an_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """send_prepare does not raise for what a wrong argument does when it is logged."""
    monkeypatch.setattr("logging.raiseExceptions", False)
    harness.cache.send_prepare(_Unprintable(), _Unprintable(), LSN_A)  # type: ignore[arg-type]
    harness.wait_idle()
    assert harness.counts() == {"error": 1}


def test_of_many_requests_for_a_timeline_the_newest_is_built(harness: Harness) -> None:
    """Requests that wait coalesce when the newest LSN is found reached: the others are skips."""
    blocker, timeline = harness.timeline(), harness.timeline(LSN_C)
    with Gate() as gate:
        stop_while_sending(blocker, gate)
        harness.send(blocker)
        gate.wait_for()
        for lsn in (LSN_A, LSN_C, LSN_B, LSN_C, LSN_A):
            harness.send(timeline, lsn)
        assert harness.value("pageserver_basebackup_cache_prepare_queue_size") == 3
    harness.wait_idle()
    assert harness.skips == {"coalesced": 4}
    assert harness.counts() == {"ok": 2, "skip": 4}
    assert harness.get(timeline, LSN_C) == tar_of(timeline, LSN_C)


def test_a_request_not_newer_than_the_running_build_is_coalesced(harness: Harness) -> None:
    """While a timeline is built at an LSN, asking for that one or an older is a skip."""
    timeline = harness.timeline(LSN_B)
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        harness.send(timeline, LSN_B)
        gate.wait_for()
        harness.send(timeline, LSN_B)
        harness.send(timeline, LSN_A)
        assert harness.skips == {"coalesced": 2}
    harness.wait_idle()
    assert harness.counts() == {"ok": 1, "skip": 2}


def test_a_timeline_is_built_once_at_a_time(tmp_path: Path) -> None:
    """A newer request waits until the running build of its timeline has ended."""
    with Harness(tmp_path / "cache", prepare_concurrency=4) as harness, Gate() as gate:
        timeline, other = harness.timeline(), harness.timeline()
        running: list[Lsn] = []

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            running.append(lsn)
            assert len(running) == 1
            if lsn == LSN_A:
                gate()
                timeline.advance(LSN_B)
            writer.write(timeline.tarball(lsn))
            running.remove(lsn)

        timeline.on_send = send
        harness.send(timeline, LSN_A)
        gate.wait_for()
        harness.send(timeline, LSN_B)
        harness.send(other)
        wait_until(lambda: harness.counts() == {"ok": 1})  # the other overtakes
        assert running == [LSN_A]
        gate.open()
        harness.wait_idle()
        assert harness.counts() == {"ok": 2, "skip": 1}
        assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)


def test_timelines_are_built_at_the_same_time(tmp_path: Path) -> None:
    """As many basebackups are built at once as prepare_concurrency says."""
    with Harness(tmp_path / "cache", prepare_concurrency=4) as harness:
        all_here = threading.Barrier(4)
        timelines = [harness.timeline() for _ in range(4)]

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            all_here.wait(DEADLINE_S)
            writer.write(tar_of(timelines[0], lsn))

        for timeline in timelines:
            timeline.on_send = send
            harness.send(timeline)
        harness.wait_idle()
        assert harness.counts() == {"ok": 4}


def test_a_worker_is_nicer_than_the_process(tmp_path: Path) -> None:
    """Workers are nicer than the process by prepare_niceness, and no other thread is."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []
    with Harness(tmp_path / "cache", prepare_niceness=3) as harness:
        timeline = harness.timeline()

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            writer.write(tar_of(timeline, lsn))

        timeline.on_send = send
        harness.send(timeline)
        harness.wait_idle()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        assert harness.counts() == {"ok": 1}
    assert seen == [min(19, own + 3), own]


def test_the_queue_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A request too many is a skip; another request of a timeline that waits is not."""
    harness = Harness(tmp_path / "cache", prepare_concurrency=1, prepare_channel_size=2)
    with harness, Gate() as gate:
        blocker, *others = (harness.timeline(LSN_B) for _ in range(5))
        stop_while_sending(blocker, gate)
        harness.send(blocker, LSN_B)
        gate.wait_for()
        for timeline in others:
            harness.send(timeline, LSN_A)
        assert harness.skips == {"queue_full": 2}
        assert "prepare_channel_size" in caplog.text
        harness.send(others[0], LSN_B)
        gate.open()
        harness.wait_idle()
        assert harness.holds(others[0], LSN_B)
        assert harness.skips == {"queue_full": 2, "coalesced": 1, "tip_moved": 1}
        assert harness.counts() == {"ok": 2, "skip": 4}  # others[1] has moved past LSN_A


def test_requests_before_the_start_is_done_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the directory is loaded, `get` returns None and prepares wait in the bounded queue."""
    harness = Harness(tmp_path / "cache", prepare_channel_size=1)
    known, new, overflow = (harness.timeline() for _ in range(3))
    harness.seed(known)
    with Gate() as gate:
        stop_before(monkeypatch, Store, "scan", gate)
        harness.open(wait=False)
        with harness.opened:
            gate.wait_for()
            harness.send(new)
            harness.send(overflow)
            assert harness.get(known) is None
            assert harness.cache.entries() == []
            assert not harness.cache.wait_initialized(0)
            assert not harness.cache.wait_idle(0)
            assert harness.skips == {"queue_full": 1}
            gate.open()
            harness.wait_idle()
            assert harness.get(known) == tar_of(known)
            assert harness.get(new) == tar_of(new)


def test_every_request_has_exactly_one_result(tmp_path: Path) -> None:
    """Of requests from many threads, of all kinds, each is counted once: ok, skip or error."""
    harness = Harness(tmp_path / "cache", prepare_concurrency=3, prepare_channel_size=5)
    with harness:
        timelines = [harness.timeline(LSN_B) for _ in range(10)]
        unknown = MemoryTimeline(LSN_A)

        def failing(_writer: TarballWriter, _lsn: Lsn) -> None:
            raise RuntimeError

        timelines[3].on_send = failing
        foreign = TenantShardId(harness.tenant.tenant_id, 1, 2)

        def send_all() -> None:
            for timeline in [*timelines, unknown]:
                for lsn in (LSN_A, LSN_B, LSN_C):
                    harness.send(timeline, lsn)
            harness.cache.send_prepare(foreign, unknown.timeline_id, LSN_A)
            harness.cache.send_prepare(None, unknown.timeline_id, LSN_A)  # type: ignore[arg-type]

        for timeline in timelines:
            timeline.on_wait = lambda _lsn, _timeout: None
        run_threads([send_all] * 4)
        harness.wait_idle()
        counts = harness.counts()
        assert sum(counts.values()) == 4 * (11 * 3 + 2)
        assert sum(harness.skips.values()) == counts["skip"]
        harness.check_accounting()


def test_a_stuck_timeline_delays_nobody(tmp_path: Path) -> None:
    """One timeline that waits for its LSN holds up its worker alone, not the clean-up."""
    with Harness(tmp_path / "cache", prepare_concurrency=2) as harness, Gate() as gate:
        stuck, gone = harness.timeline(), harness.prepared()
        stuck.on_wait = gate
        harness.send(stuck)
        gate.wait_for()
        others = [harness.timeline() for _ in range(5)]
        for timeline in others:
            harness.send(timeline)
        wait_until(lambda: harness.counts() == {"ok": 6})
        gone.advance(LSN_B)
        harness.cache.run_cleanup()
        assert not harness.holds(gone)
        assert all(harness.holds(timeline) for timeline in others)


def test_the_lsn_is_awaited_in_slices(harness: Harness) -> None:
    """`wait_lsn` is called with short timeouts again and again until the LSN is there."""
    timeline = harness.timeline(LSN_A)
    timeouts_s: list[float] = []
    real_wait = MemoryTimeline(LSN_A)

    def wait(lsn: Lsn, timeout: float) -> None:
        timeouts_s.append(timeout)
        if len(timeouts_s) == 3:
            timeline.advance(LSN_B)
            return
        real_wait.wait_lsn(lsn, timeout)

    timeline.on_wait = wait
    harness.prepare(timeline, LSN_B)
    assert harness.counts() == {"ok": 1}
    assert len(timeouts_s) == 3
    assert all(0 < timeout_s <= 0.25 for timeout_s in timeouts_s)


def test_a_host_that_times_out_at_once_does_not_make_a_worker_spin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After an early TimeoutError the rest of the time is waited; the error names both LSNs."""
    with Harness(tmp_path / "cache", wait_lsn_timeout=0.5) as harness:
        timeline = harness.timeline(LSN_A)
        calls: list[float] = []

        def wait(_lsn: Lsn, timeout: float) -> None:
            calls.append(timeout)
            raise TimeoutError

        timeline.on_wait = wait
        harness.prepare(timeline, LSN_B)
        assert harness.counts() == {"error": 1}
        assert 1 <= len(calls) <= 6
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        for part in (harness.tenant.tenant_id, timeline.timeline_id, LSN_A, LSN_B, "0.5 s"):
            assert str(part) in record.getMessage()


def test_a_tip_that_moves_during_the_build_is_a_skip(harness: Harness) -> None:
    """A basebackup that its timeline outgrows during the build is not published."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(timeline.tarball(lsn))
        timeline.advance(LSN_C)

    timeline.on_send = send
    harness.prepare(timeline, LSN_B)
    assert harness.skips == {"tip_moved": 1}
    assert harness.get(timeline) == tar_of(timeline)  # until a clean-up
    assert harness.get(timeline, LSN_B) is None
    harness.check_accounting()


@pytest.mark.parametrize("calls_before", [0, 1, 2], ids=["wanted", "waited", "built"])
def test_a_stop_decides_whatever_comes_after(harness: Harness, calls_before: int) -> None:
    """A prepare that is stopped while it asks the host for the tip does nothing more."""
    timeline = harness.timeline()
    answers = iter([LSN_A] * calls_before)
    original = timeline.get_last_record_lsn
    closing: list[Worker] = []

    def answer() -> Lsn:
        if next(answers, None) is None and not closing:
            closing.append(start_close(harness))
        return original()

    put(timeline, "get_last_record_lsn", answer)
    harness.prepare(timeline)
    closing[0].result()
    assert harness.skips == {"closing": 1}
    harness.open()
    harness.check_accounting()


def test_a_stop_during_the_wait_decides_before_the_tip(harness: Harness) -> None:
    """A closing cache does not blame the timeline."""
    timeline = harness.timeline()
    closing: list[Worker] = []

    def stop(_lsn: Lsn, _timeout_s: float) -> None:
        closing.append(start_close(harness))
        timeline.advance(LSN_B)

    timeline.on_wait = stop
    harness.prepare(timeline)
    assert harness.skips == {"closing": 1}


def test_no_wait_goes_past_the_timeout(tmp_path: Path) -> None:
    """The last slice ends with the timeout."""
    waits_s: list[float] = []
    with Harness(tmp_path / "cache", wait_lsn_timeout=0.05) as harness:
        timeline = harness.timeline()

        def wait(_lsn: Lsn, timeout_s: float) -> None:
            waits_s.append(timeout_s)
            raise TimeoutError

        timeline.on_wait = wait
        harness.prepare(timeline, LSN_B)
        assert harness.counts() == {"error": 1}
    assert waits_s
    assert min(waits_s) >= 0
    assert max(waits_s) <= 0.05


def test_a_host_that_takes_its_time_is_asked_again_at_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the rest of a slice is waited, and never a negative time."""
    timeline = harness.timeline()
    real_wait = MemoryTimeline(LSN_A)
    real_sleep, left_s = time.sleep, []

    def note(timeout_s: float) -> None:
        if threading.current_thread().name.startswith("bbcache-prepare"):
            left_s.append(timeout_s)
        real_sleep(timeout_s)

    def wait(lsn: Lsn, timeout_s: float) -> None:
        if left_s:
            timeline.advance(LSN_B)
        else:
            real_wait.wait_lsn(lsn, timeout_s)

    monkeypatch.setattr(time, "sleep", note)
    timeline.on_wait = wait
    harness.prepare(timeline, LSN_B)
    assert harness.counts() == {"ok": 1}
    assert [0 <= timeout_s <= WAIT_SLICE_S for timeout_s in left_s] == [True]


def test_a_rebuild_says_that_its_tenant_is_not_here(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage found while the tenant is away is an error in words, and no traceback."""
    timeline = harness.prepared()
    path = harness.path(timeline)
    path.write_bytes(bytes(path.stat().st_size))
    tenant_id, timeline_id = harness.tenant.tenant_id, timeline.timeline_id
    harness.host.tenants[harness.tenant.tenant_shard_id] = None
    assert harness.cache.get(tenant_id, timeline_id, LSN_A) is None
    harness.wait_idle()
    assert harness.counts() == {"ok": 1, "error": 1}
    assert "shard zero of the tenant is not attached here" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_file_that_cannot_be_created_takes_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reservation is given back: the next prepare has room."""
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with Harness(tmp_path / "cache", max_size_entries=1) as harness:
        fail_with(monkeypatch, Store, "create_temp", error, times=1)
        harness.prepare(harness.timeline())
        assert harness.counts() == {"error": 1}
        assert total_count(harness.engine.index) == 0
        harness.prepared()


@pytest.mark.parametrize(
    ("verify_reads", "verification"), [("never", Verification.SEALED), ("first", Verification.NONE)]
)
def test_a_new_archive_counts_as_checked_only_with_never(
    tmp_path: Path, verify_reads: str, verification: Verification
) -> None:
    """With ``never`` a hit costs no read; else the first hit reads what is on the disk."""
    with Harness(tmp_path / "cache", verify_reads=verify_reads) as harness:
        harness.prepared()
        (entry,) = harness.engine.index.by_key().values()
        assert entry.verification is verification


def test_the_seconds_of_a_prepare_are_those_that_it_took(tmp_path: Path) -> None:
    """No phase is negative or longer than the time that passed."""
    started_s = time.monotonic()
    with Harness(tmp_path / "cache") as harness:
        harness.prepared()
        passed_s = time.monotonic() - started_s
        for phase in ("queue", "wait_lsn", "build", "publish"):
            assert 0 <= harness.value(f"bbcache_prepare_seconds_sum{{phase={phase}}}") <= passed_s


def test_an_entry_at_the_lsn_is_not_built_again(harness: Harness) -> None:
    """An entry at the LSN is not built again, and neither is one below a newer entry."""
    timeline = harness.prepared()
    harness.prepare(timeline)
    assert harness.counts() == {"ok": 1, "skip": 1}
    assert harness.skips == {"up_to_date": 1}


def test_a_skip_is_no_failure(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeline that moves on during its build does not pause: the next caller gets a build."""
    stand_still(monkeypatch, harness)
    timeline = harness.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(timeline.tarball(lsn))
        timeline.advance(LSN_B)

    timeline.on_send = send
    harness.prepare(timeline)
    assert harness.skips == {"tip_moved": 1}
    for lsn in (LSN_A, LSN_B):
        assert filled(harness, timeline, lsn) == ("built", tar_of(timeline, lsn))


@pytest.mark.parametrize("tip", [LSN_B, LSN_A], ids=["there", "back"])
def test_a_failed_build_makes_its_timeline_pause(
    harness: Harness, tip: Lsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the timeline has moved on; a tip that has moved back is an error."""
    stand_still(monkeypatch, harness)
    timeline = harness.timeline(LSN_B)

    def send(_writer: TarballWriter, _lsn: Lsn) -> None:
        timeline.advance(tip)
        raise RuntimeError("the build fails")

    timeline.on_send = send
    harness.prepare(timeline, LSN_B)
    assert harness.counts() == {"error": 1}
    with pytest.raises(BackingOffError, match="the build fails"):
        filled(harness, timeline, LSN_C)


def test_an_lsn_that_does_not_come_rests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its LSN pauses, while the timeline is built at its tip."""
    with Harness(tmp_path / "cache", wait_lsn_timeout=0.01) as harness:
        stand_still(monkeypatch, harness)
        timeline = harness.timeline()
        harness.prepare(timeline, LSN_C)
        assert harness.counts() == {"error": 1}
        with pytest.raises(BackingOffError, match="wait_lsn_timeout"):
            filled(harness, timeline, LSN_C)
        assert filled(harness, timeline) == ("built", tar_of(timeline))


def _not_to_be_called(*_: object) -> None:
    raise AssertionError


def _damage(harness: Harness, timeline: MemoryTimeline) -> None:
    path = harness.path(timeline)
    path.write_bytes(bytes(path.stat().st_size))
    assert harness.get(timeline) is None
    harness.wait_idle()


def test_a_rebuild_asks_the_tenant_of_the_entry(harness: Harness) -> None:
    """The host may list others before it, of smaller ids and of greater ones."""
    timeline = harness.prepared()
    wanted = dict(harness.host.tenants)
    harness.host.tenants.clear()
    for digit in "0f":
        harness.host.add_tenant(TenantShardId(TenantId.from_str(32 * digit)))
    harness.host.tenants.update(wanted)
    _damage(harness, timeline)
    assert harness.counts() == {"ok": 2}
    assert harness.get(timeline) == tar_of(timeline)


@pytest.mark.parametrize("tip", [Lsn(LSN_A - 1), Lsn(LSN_A + 1)], ids=["back", "on"])
def test_a_rebuild_wants_the_tip_at_exactly_its_lsn(harness: Harness, tip: Lsn) -> None:
    """If its tip is at another LSN, before or after, the rebuild is skipped."""
    timeline = harness.prepared()
    put(timeline, "get_last_record_lsn", lambda: tip)
    timeline.on_wait = _not_to_be_called
    _damage(harness, timeline)
    assert harness.counts() == {"ok": 1, "skip": 1}
    assert harness.skips == {"tip_moved": 1}
