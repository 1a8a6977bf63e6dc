"""`get_or_prepare`: one build for everyone, its failures, giving up, joining, back-off."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    Gate,
    Harness,
    Worker,
    noise,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills, waiting_callers
from support.helpers import wait_until
from support.seams import stand_still, stop_at_log

from bbcache import (
    BackingOffError,
    BbcacheError,
    FillError,
    FillTimeoutError,
    Lsn,
    TenantShardId,
    TenantState,
    TimelineId,
)
from bbcache.errors import ArgumentError, PrepareError
from bbcache.prepare.queue import PrepareQueue
from bbcache.storage.files import Store, TempFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import BasebackupFile
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

CALLERS = 500


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker, so that a lost worker shows."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def raising(error: BaseException, gate: Gate | None = None) -> object:
    """A build that stops at a gate, if there is one, and fails."""

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(b"half of")
        if gate is not None:
            gate()
        raise error

    return send


def test_a_hit_is_what_get_gives(harness: Harness) -> None:
    """Nothing is built, and the call counts as one read."""
    timeline = harness.prepared()
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    assert (harness.reads, harness.counts(), fills(harness)) == ({"hit": 1}, {"ok": 1}, {"hit": 1})
    with fill(harness, timeline, timeout_s=0) as file:
        assert file.name == str(harness.path(timeline))
    with harness.cache.get(harness.tenant.tenant_id, timeline.timeline_id, LSN_A) or file as got:
        assert (got is file, got.source) == (False, "hit")


def test_a_miss_is_built_published_and_returned(harness: Harness) -> None:
    """The caller gets it at once, and later callers have a hit."""
    timeline = harness.timeline()
    with fill(harness, timeline) as file:
        assert (file.source, file.tell(), file.name) == ("built", 0, str(harness.path(timeline)))
        assert file.read() == harness.sealed(timeline)
        assert not file.writable()
        assert not os.get_inheritable(file.fileno())
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    assert (harness.counts(), fills(harness)) == ({"ok": 1}, {"built": 1, "hit": 1})
    assert harness.reads == {"miss": 1, "hit": 1}
    harness.wait_idle()
    harness.check_accounting()


def test_five_hundred_callers_cause_one_build(harness: Harness) -> None:
    """All of them wait for the same one, and each gets all bytes, from its own offset."""
    timeline, builds = harness.timeline(), []
    tar = noise(100_000)
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            writer.write(tar[:1])
            gate()
            writer.write(tar[1:])

        timeline.on_send = send
        workers = fillers(harness, timeline, CALLERS)
        gate.open()
        results = [worker.result() for worker in workers]
    assert builds == [LSN_A]
    assert sorted(results) == sorted([("built", tar), *[("joined", tar)] * (CALLERS - 1)])  # type: ignore[type-var]
    assert fills(harness) == {"built": 1, "joined": CALLERS - 1}
    assert harness.counts() == {"ok": 1}
    harness.wait_idle()
    harness.check_accounting()


def test_a_caller_between_the_look_up_and_the_queue_gets_the_entry(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive published right after a caller has missed it is not built again."""
    timeline = harness.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, PrepareQueue, "join", gate)
            worker = Worker(filled, harness, timeline)
            gate.wait_for()
        harness.send(timeline)
        wait_until(lambda: harness.holds(timeline))
        gate.open()
        assert worker.result() == ("hit", tar_of(timeline))
    harness.wait_idle()
    assert (harness.counts(), harness.skips) == ({"ok": 1, "skip": 1}, {"up_to_date": 1})


@pytest.mark.parametrize("error", [ValueError("no such page"), SystemExit("bye")])
def test_a_failing_build_fails_everyone_with_its_cause(
    harness: Harness, error: BaseException
) -> None:
    """They fail at once, each with its own error, and no second build is tried."""
    timeline, count = harness.timeline(), 50
    with Gate() as gate:
        timeline.on_send = raising(error, gate)  # type: ignore[assignment]
        workers = fillers(harness, timeline, count)
        gate.open()
        errors = [_error_of(worker) for worker in workers]
    assert len({id(each) for each in errors}) == count
    assert all(type(each) is FillError and each.__cause__ is error for each in errors)
    first, hint = str(errors[0]).split("\n")
    for part in (str(timeline.timeline_id), str(LSN_A), str(error)):
        assert part in first
    assert hint.startswith("hint: ")
    assert (harness.counts(), fills(harness)) == ({"error": 1}, {"error": count})
    assert harness.skips == {}
    harness.wait_idle()
    harness.check_accounting()


def _error_of(worker: Worker) -> BaseException:
    with pytest.raises(BbcacheError) as caught:
        worker.result()
    return caught.value


@pytest.mark.parametrize("what", ["not attached", "not active", "unknown"])
def test_a_failure_before_the_build_fails_the_caller(
    harness: Harness, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the cause, and once that is mended the call works at once."""
    timeline = harness.timeline()
    with monkeypatch.context() as patch:
        if what == "not attached":
            patch.setitem(harness.host.tenants, harness.tenant.tenant_shard_id, None)
        elif what == "unknown":
            patch.delitem(harness.tenant.timelines, timeline.timeline_id)
        else:
            patch.setattr(harness.tenant, "state", TenantState.ATTACHING)
        shard_id = harness.tenant.tenant_shard_id
        with pytest.raises(FillError) as caught:
            harness.cache.get_or_prepare(shard_id, timeline.timeline_id, LSN_A, DEADLINE_S)
    assert isinstance(caught.value.__cause__, PrepareError)
    assert str(caught.value).count("\nhint: ") == 1
    assert filled(harness, timeline)[0] == "built"


def test_a_caller_that_gives_up_does_not_stop_the_build(harness: Harness) -> None:
    """It raises a TimeoutError; the other callers get their bytes, and the archive is published."""
    timeline = harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        patient = fillers(harness, timeline, 2)
        gate.wait_for()
        for timeout_s in (0, 0.01, -1):
            with pytest.raises(TimeoutError, match=r"not ready in time\nhint: ") as caught:
                fill(harness, timeline, timeout_s=timeout_s)
            assert type(caught.value) is FillTimeoutError
        assert waiting_callers() == 2
        gate.open()
        assert {worker.result() for worker in patient} == {
            ("built", tar_of(timeline)),
            ("joined", tar_of(timeline)),
        }
    assert fills(harness) == {"timeout": 3, "built": 1, "joined": 1}


def test_a_build_that_fails_as_the_tip_goes_on_spares_the_timeline(harness: Harness) -> None:
    """Its LSN pauses; the new tip is tried at once."""
    timeline = harness.timeline(LSN_A)

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        if lsn == LSN_A:
            timeline.advance(LSN_B)
            raise PrepareError("not at that LSN any more")
        writer.write(timeline.tarball(lsn))

    timeline.on_send = send
    with pytest.raises(FillError, match="any more"):
        fill(harness, timeline, LSN_A)
    with pytest.raises(BackingOffError):
        fill(harness, timeline, LSN_A)
    assert filled(harness, timeline, LSN_B) == ("built", tar_of(timeline, LSN_B))


class Gone(Exception):  # noqa: N818 - not an error
    """The client of a service has gone."""


def test_a_caller_that_is_told_to_give_up(harness: Harness) -> None:
    """An exception of `check_cancelled` ends this wait, but neither the build nor other waits."""
    timeline = harness.timeline()
    asked: list[int] = []

    def check_cancelled() -> None:
        asked.append(waiting_callers())
        if len(asked) == 2:
            raise Gone

    with Gate() as gate:
        stop_while_sending(timeline, gate)
        (patient,) = fillers(harness, timeline, 1)
        with pytest.raises(Gone):
            harness.cache.get_or_prepare(
                harness.shard_of(timeline),
                timeline.timeline_id,
                LSN_A,
                check_cancelled=check_cancelled,
            )
        assert asked == [2, 2]
        assert waiting_callers() == 1
        gate.open()
        assert patient.result() == ("built", tar_of(timeline))
    assert fills(harness) == {"cancelled": 1, "built": 1}


def test_a_caller_that_is_asked_whether_to_go_on_waits_all_the_while(harness: Harness) -> None:
    """It gets a build that ends meanwhile: nothing is built twice or thrown away."""
    timeline, builds = harness.timeline(LSN_B), []
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            gate()
            writer.write(timeline.tarball(lsn))

        def check_cancelled() -> None:
            gate.open()
            harness.wait_idle()
            harness.prepared()  # by the one worker, which has told all that wait by then

        timeline.on_send = send
        with harness.cache.get_or_prepare(
            harness.shard_of(timeline), timeline.timeline_id, LSN_A, check_cancelled=check_cancelled
        ) as file:
            assert file.source == "built"
    assert builds == [LSN_A]


def test_a_caller_that_may_go_on_has_its_time_and_no_more(harness: Harness) -> None:
    """A deadline holds beside `check_cancelled`, which is called only during a wait."""
    timeline, held = harness.timeline(), harness.prepared()
    asked: list[None] = []

    def get(of: MemoryTimeline, timeout_s: float | None) -> BasebackupFile:
        return harness.cache.get_or_prepare(
            harness.shard_of(of), of.timeline_id, LSN_A, timeout_s, lambda: asked.append(None)
        )

    get(held, None).close()
    assert not asked
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        with pytest.raises(FillTimeoutError):
            get(timeline, 0.3)
        assert asked
    assert fills(harness) == {"hit": 1, "timeout": 1}


def test_get_held_counts_hits_but_no_misses(harness: Harness) -> None:
    """`get_held` opens exactly the entry, and counts hits alone."""
    timeline = harness.prepared()
    ids = harness.shard_of(timeline).tenant_id, timeline.timeline_id
    assert harness.cache.get_held(*ids, LSN_B) is None
    assert harness.cache.get_held(ids[0], TimelineId.generate(), LSN_A) is None
    assert harness.reads == {}
    file = harness.cache.get_held(*ids, LSN_A)
    assert file is not None
    with file:
        assert file.read() == harness.path(timeline).read_bytes()
    assert harness.reads == {"hit": 1}
    harness.cache.close(DEADLINE_S)
    assert harness.cache.get_held(*ids, LSN_A) is None


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_build_that_everyone_has_given_up_is_published(
    harness: Harness, *, is_begun: bool
) -> None:
    """Whether the build had begun or not, the next caller has a hit."""
    timeline, busy = harness.timeline(), harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline if is_begun else busy, gate)
        if not is_begun:
            harness.send(busy)
            gate.wait_for()
        with pytest.raises(FillTimeoutError):
            fill(harness, timeline, timeout_s=0)
        if is_begun:
            gate.wait_for()
        gate.open()
        harness.wait_idle()
    assert filled(harness, timeline) == ("hit", tar_of(timeline))


def test_a_caller_that_is_interrupted_leaves(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C reaches the caller, which does not count as waiting any more."""
    timeline = harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        with monkeypatch.context() as patch:
            patch.setattr("bbcache.prepare.request.Request.wait", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                fill(harness, timeline)
        gate.wait_for()
        assert waiting_callers() == 0
        gate.open()
        harness.wait_idle()
    assert filled(harness, timeline)[0] == "hit"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_running", [False, True])
def test_a_prepare_is_joined(harness: Harness, *, is_running: bool) -> None:
    """There is no second build, whether the prepare waits for a worker or runs."""
    timeline, busy = harness.timeline(), harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline if is_running else busy, gate)
        harness.send(timeline if is_running else busy)
        gate.wait_for()
        harness.send(timeline)
        (worker,) = fillers(harness, timeline, 1)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline))
    harness.wait_idle()
    assert harness.counts()["ok"] == (1 if is_running else 2)
    harness.check_accounting()


def test_a_prepare_joined_as_it_is_published_gives_its_entry(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too late for a shared file, the caller gets what has been published."""
    timeline = harness.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, TempFile, "sync", gate)
            harness.send(timeline)
            gate.wait_for()
        (worker,) = fillers(harness, timeline, 1)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline))
    assert harness.counts() == {"ok": 1}


def test_a_prepare_joined_as_it_is_skipped_is_built_for_the_caller(harness: Harness) -> None:
    """The skip was decided before the caller joined, so the caller asks again by itself."""
    timeline = harness.timeline()
    seen = timeline.get_last_record_lsn
    with Gate() as gate:
        timeline.advance(LSN_B)
        with stop_at_log("skipped (tip_moved)", gate):
            harness.send(timeline, LSN_A)
            gate.wait_for()
            (worker,) = fillers(harness, timeline, 1)
            gate.open()
        assert worker.result() == ("built", tar_of(timeline))
    assert seen() == LSN_B
    assert harness.skips == {"tip_moved": 2}
    assert harness.cache.entries() == []


def test_a_newer_prepare_replaces_no_request_with_callers(harness: Harness) -> None:
    """Both LSNs are built, each for its caller, and the newer one is the entry."""
    timeline, busy = harness.timeline(), harness.timeline()
    with Gate() as gate:
        stop_while_sending(busy, gate)
        harness.send(busy)
        gate.wait_for()
        harness.send(timeline, LSN_A)
        (worker,) = fillers(harness, timeline, 1, LSN_A)
        harness.send(timeline, LSN_B)
        timeline.advance(LSN_B)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline, LSN_A))
    harness.wait_idle()
    assert harness.holds(timeline, LSN_B)
    harness.check_accounting()


def test_damage_is_found_and_filled(harness: Harness) -> None:
    """The bad archive goes to quarantine, and the caller gets the one that replaces it."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(harness.sealed(timeline)[:-1] + b"?")
    source, tar = filled(harness, timeline)
    assert tar == tar_of(timeline)
    assert source in {"joined", "built", "hit"}  # the read itself has queued a rebuild
    harness.wait_idle()
    assert len(harness.quarantined()) == 1
    assert harness.get(timeline) == tar_of(timeline)
    assert harness.counts()["ok"] == 2
    harness.check_accounting()


def test_an_entry_that_cannot_be_read_is_built_beside_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk proves nothing: the entry stays, and the caller still gets the bytes."""
    timeline = harness.prepared()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", _raise_io_error)
        assert filled(harness, timeline) == ("built", tar_of(timeline))
    assert harness.reads == {"error": 2}
    assert harness.skips == {"up_to_date": 2}
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    harness.check_accounting()


def _raise_io_error(*_: object) -> None:
    raise OSError(5, os.strerror(5))


def test_before_the_start_is_done_a_caller_waits_for_it(tmp_path: Path) -> None:
    """Archives that turn out to be on the disk are hits, and the others are built."""
    harness = Harness(tmp_path / "cache")
    held, missing = harness.timeline(), harness.timeline()
    harness.seed(held)
    (harness.dir / "tmp").mkdir()
    with Gate() as gate, pytest.MonkeyPatch.context() as patch:
        stop_before(patch, Store, "scan", gate)
        harness.open(wait=False)
        with harness.opened:
            workers = [*fillers(harness, held, 1), *fillers(harness, missing, 1)]
            with pytest.raises(FillTimeoutError):
                fill(harness, held, timeout_s=0)
            gate.open()
            assert workers[0].result() == ("hit", tar_of(held))
            assert workers[1].result() == ("built", tar_of(missing))


def test_after_a_restart_what_was_filled_is_a_hit(harness: Harness) -> None:
    """The rebuild is published like any other archive."""
    timeline = harness.timeline()
    filled(harness, timeline)
    harness.reopen()
    assert filled(harness, timeline) == ("hit", tar_of(timeline))
    assert harness.counts() == {}


def test_the_lsn_is_waited_for(harness: Harness) -> None:
    """As for a prepare: the caller gets it once the timeline is there."""
    timeline = harness.timeline(LSN_A)
    (worker,) = fillers(harness, timeline, 1, LSN_B)
    timeline.advance(LSN_B)
    assert worker.result() == ("built", tar_of(timeline, LSN_B))


class TestBackoff:
    """Failing timelines back off."""

    @pytest.fixture
    def now_s(self, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The clock of the back-off, which a test moves."""
        return stand_still(monkeypatch, harness)

    def test_a_failing_timeline_is_left_alone(self, harness: Harness, now_s: list[float]) -> None:
        """At any LSN; each pause is longer than the last, and ends in time."""
        timeline, builds = harness.timeline(), []

        def send(_writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            raise ValueError("no such page")

        timeline.on_send = send
        for pause_s in (1, 2, 4):
            with pytest.raises(FillError) as failed:
                fill(harness, timeline)
            assert not isinstance(failed.value, BackingOffError)
            for lsn in (LSN_A, LSN_B):
                with pytest.raises(BackingOffError, match="no such page") as caught:
                    fill(harness, timeline, lsn)
                assert caught.value.retry_after_s == pause_s
                assert caught.value.until in str(caught.value)
            now_s[0] += pause_s
        timeline.on_send = None
        assert filled(harness, timeline)[0] == "built"
        assert len(builds) == 3
        assert fills(harness) == {"error": 3, "backing_off": 6, "built": 1}

    @pytest.mark.usefixtures("now_s")
    def test_other_timelines_do_not_suffer(self, harness: Harness) -> None:
        """A failing timeline delays no other timeline, and no hit of its own."""
        failing, other = harness.prepared(), harness.timeline()
        failing.advance(LSN_B)
        failing.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(harness, failing, LSN_B)
        with pytest.raises(BackingOffError):
            fill(harness, failing, LSN_B)
        assert filled(harness, failing, LSN_A) == ("hit", tar_of(failing))
        assert filled(harness, other)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_an_lsn_that_is_too_old_costs_the_tip_nothing(self, harness: Harness) -> None:
        """An LSN that the host cannot build any more pauses alone."""
        timeline = harness.timeline(LSN_B)
        timeline.on_send = raising(ValueError("below the horizon"))  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(harness, timeline, LSN_A)
        with pytest.raises(BackingOffError, match=f"at {LSN_A} is not tried"):
            fill(harness, timeline, LSN_A)
        timeline.on_send = None
        assert filled(harness, timeline, LSN_B)[0] == "built"

    def test_an_lsn_that_never_comes_costs_the_tip_nothing(self, tmp_path: Path) -> None:
        """A client may name any LSN."""
        with Harness(tmp_path / "cache", wait_lsn_timeout=0.01) as harness:
            timeline = harness.timeline(LSN_A)
            with pytest.raises(FillError, match="wait_lsn_timeout"):
                fill(harness, timeline, LSN_C)
            assert filled(harness, timeline, LSN_A)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_a_tenant_that_is_not_ready_causes_no_pause(self, harness: Harness) -> None:
        """A tenant that is still attaching costs nothing, so its callers do not pause."""
        timeline = harness.timeline()
        harness.tenant.state = TenantState.ATTACHING
        for _ in range(3):
            with pytest.raises(FillError, match="ATTACHING"):
                fill(harness, timeline)
        harness.tenant.state = TenantState.ACTIVE
        assert filled(harness, timeline)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_a_build_in_flight_is_joined_during_a_pause(self, harness: Harness) -> None:
        """A prepare is no retry: it is tried, and callers join it."""
        timeline = harness.timeline()
        timeline.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(harness, timeline)
        with Gate() as gate:
            stop_while_sending(timeline, gate)
            harness.send(timeline)
            gate.wait_for()
            (worker,) = fillers(harness, timeline, 1)
            gate.open()
            assert worker.result() == ("joined", tar_of(timeline))

    @pytest.mark.usefixtures("now_s")
    def test_a_prepare_that_succeeds_ends_the_pause(self, harness: Harness) -> None:
        """It also ends the pause of an LSN that was not prepared."""
        timeline = harness.timeline()
        timeline.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(harness, timeline)
        timeline.on_send = None
        harness.prepare(timeline)
        timeline.advance(LSN_B)
        assert filled(harness, timeline, LSN_B)[0] == "built"


class TestArguments:
    """Calls that are refused."""

    def test_wrong_types_are_refused(self, harness: Harness) -> None:
        """Arguments of wrong types are refused by name, with errors of bbcache."""
        ids = (harness.tenant.tenant_shard_id, TimelineId.generate(), LSN_A)
        for wrong in range(3):
            arguments: list[Any] = list(ids)
            arguments[wrong] = 17
            with pytest.raises(ArgumentError, match=r" must be an? \w+, not the int 17"):
                harness.cache.get_or_prepare(*arguments)
        assert harness.counts() == {}

    def test_another_shard_is_refused(self, harness: Harness) -> None:
        """Basebackups are taken on shard zero."""
        shard_id = TenantShardId(harness.tenant.tenant_id, 1, 2)
        with pytest.raises(FillError, match=r"-0102 makes no basebackups\nhint: "):
            harness.cache.get_or_prepare(shard_id, TimelineId.generate(), LSN_A, 1.0)
        assert harness.counts() == {}

    @pytest.mark.parametrize("callback", ["on_wait", "on_send"])
    def test_a_callback_gets_hits_and_does_not_wait(self, harness: Harness, callback: str) -> None:
        """Its worker is the only one, and would wait for itself."""
        held, missing, asking = harness.prepared(), harness.timeline(), harness.timeline()
        seen: list[object] = []

        def call_back(*_: object) -> None:
            seen.append(filled(harness, held, timeout_s=None))
            fill(harness, missing, timeout_s=None)

        setattr(asking, callback, call_back)
        with pytest.raises(FillError, match="callback of the cache cannot wait") as caught:
            fill(harness, asking)
        assert isinstance(caught.value.__cause__, FillError)
        assert seen == [("hit", tar_of(held))]
        assert filled(harness, missing)[0] == "built"

    def test_a_clean_up_of_the_callers_own_may_wait(self, harness: Harness) -> None:
        """Only the cache's own threads are refused, since builds need them."""
        held, missing = harness.prepared(), harness.timeline()
        seen: list[object] = []
        listed = harness.host.list

        def list_tenants() -> object:
            if not seen:
                seen.append(threading.current_thread())
                seen.append(filled(harness, missing))
            return listed()

        harness.host.list = list_tenants  # type: ignore[method-assign, assignment]
        harness.cache.run_cleanup()
        assert seen[1] == ("built", tar_of(missing))
        assert harness.holds(held)


def test_the_pool_goes_on(harness: Harness) -> None:
    """After failures, give-ups and refusals the one worker still builds."""
    for index in range(20):
        timeline = harness.timeline()
        if index % 2:
            timeline.on_send = raising(KeyboardInterrupt())  # type: ignore[assignment]
            with pytest.raises(FillError):
                fill(harness, timeline)
        else:
            with pytest.raises(FillTimeoutError):
                fill(harness, timeline, timeout_s=0)
    assert filled(harness, harness.timeline())[0] == "built"
    wait_until(lambda: waiting_callers() == 0)
    harness.wait_idle()
    harness.check_accounting()
