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
    Rig,
    Worker,
    noise,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import aboard, fill, filled, fillers, fills
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
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache with one worker, so that a lost worker shows."""
    with Rig(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def raising(error: BaseException, gate: Gate | None = None) -> object:
    """A build that stops at a gate, if there is one, and fails."""

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(b"half of")
        if gate is not None:
            gate()
        raise error

    return send


def test_a_hit_is_what_get_gives(rig: Rig) -> None:
    """Nothing is built, and the call counts as one read."""
    timeline = rig.prepared()
    assert filled(rig, timeline) == ("hit", tar_of(timeline))
    assert (rig.reads, rig.counts(), fills(rig)) == ({"hit": 1}, {"ok": 1}, {"hit": 1})
    with fill(rig, timeline, timeout_s=0) as file:
        assert file.name == str(rig.path(timeline))
    with rig.cache.get(rig.tenant.tenant_id, timeline.timeline_id, LSN_A) or file as got:
        assert (got is file, got.source) == (False, "hit")


def test_a_miss_is_built_published_and_handed_out(rig: Rig) -> None:
    """The caller gets it at once, everyone later a hit."""
    timeline = rig.timeline()
    with fill(rig, timeline) as file:
        assert (file.source, file.tell(), file.name) == ("built", 0, str(rig.path(timeline)))
        assert file.read() == rig.sealed(timeline)
        assert not file.writable()
        assert not os.get_inheritable(file.fileno())
    assert filled(rig, timeline) == ("hit", tar_of(timeline))
    assert (rig.counts(), fills(rig)) == ({"ok": 1}, {"built": 1, "hit": 1})
    assert rig.reads == {"miss": 1, "hit": 1}
    rig.wait_idle()
    rig.check_books()


def test_five_hundred_callers_cause_one_build(rig: Rig) -> None:
    """All of them wait for the same one, and each gets all bytes, from its own offset."""
    timeline, builds = rig.timeline(), []
    tar = noise(100_000)
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            writer.write(tar[:1])
            gate()
            writer.write(tar[1:])

        timeline.on_send = send
        workers = fillers(rig, timeline, CALLERS)
        gate.open()
        results = [worker.result() for worker in workers]
    assert builds == [LSN_A]
    assert sorted(results) == sorted([("built", tar), *[("joined", tar)] * (CALLERS - 1)])  # type: ignore[type-var]
    assert fills(rig) == {"built": 1, "joined": CALLERS - 1}
    assert rig.counts() == {"ok": 1}
    rig.wait_idle()
    rig.check_books()


def test_who_comes_between_the_look_up_and_the_queue_gets_the_entry(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive published right after a caller has missed it is not built again."""
    timeline = rig.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, PrepareQueue, "join", gate)
            worker = Worker(filled, rig, timeline)
            gate.wait_for()
        rig.send(timeline)
        wait_until(lambda: rig.holds(timeline))
        gate.open()
        assert worker.result() == ("hit", tar_of(timeline))
    rig.wait_idle()
    assert (rig.counts(), rig.skips) == ({"ok": 1, "skip": 1}, {"up_to_date": 1})


@pytest.mark.parametrize("error", [ValueError("no such page"), SystemExit("bye")])
def test_a_failing_build_fails_everyone_with_its_cause(rig: Rig, error: BaseException) -> None:
    """At once, each with an error of its own, and no second build is tried for them."""
    timeline, count = rig.timeline(), 50
    with Gate() as gate:
        timeline.on_send = raising(error, gate)  # type: ignore[assignment]
        workers = fillers(rig, timeline, count)
        gate.open()
        errors = [_error_of(worker) for worker in workers]
    assert len({id(each) for each in errors}) == count
    assert all(type(each) is FillError and each.__cause__ is error for each in errors)
    first, hint = str(errors[0]).split("\n")
    for part in (str(timeline.timeline_id), str(LSN_A), str(error)):
        assert part in first
    assert hint.startswith("hint: ")
    assert (rig.counts(), fills(rig)) == ({"error": 1}, {"error": count})
    assert rig.skips == {}
    rig.wait_idle()
    rig.check_books()


def _error_of(worker: Worker) -> BaseException:
    with pytest.raises(BbcacheError) as caught:
        worker.result()
    return caught.value


@pytest.mark.parametrize("what", ["not attached", "not active", "unknown"])
def test_what_fails_before_the_build_fails_the_caller(
    rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenant or the timeline: with the cause, and mended it works at once."""
    timeline = rig.timeline()
    cause: type[BaseException] = KeyError
    with monkeypatch.context() as patch:
        if what == "not attached":
            patch.setitem(rig.host.tenants, rig.tenant.tenant_shard_id, None)
        elif what == "unknown":
            patch.delitem(rig.tenant.timelines, timeline.timeline_id)
        else:
            patch.setattr(rig.tenant, "state", TenantState.ATTACHING)
            cause = PrepareError
        shard_id = rig.tenant.tenant_shard_id
        with pytest.raises(FillError) as caught:
            rig.cache.get_or_prepare(shard_id, timeline.timeline_id, LSN_A, DEADLINE_S)
    assert isinstance(caught.value.__cause__, cause)
    assert str(caught.value).count("\nhint: ") == 1
    assert filled(rig, timeline)[0] == "built"


def test_who_gives_up_does_not_stop_the_build(rig: Rig) -> None:
    """The error is a TimeoutError, the others get their bytes, and it is published."""
    timeline = rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        patient = fillers(rig, timeline, 2)
        gate.wait_for()
        for timeout_s in (0, 0.01, -1):
            with pytest.raises(TimeoutError, match=r"not ready in time\nhint: ") as caught:
                fill(rig, timeline, timeout_s=timeout_s)
            assert type(caught.value) is FillTimeoutError
        assert aboard() == 2
        gate.open()
        assert {worker.result() for worker in patient} == {
            ("built", tar_of(timeline)),
            ("joined", tar_of(timeline)),
        }
    assert fills(rig) == {"timeout": 3, "built": 1, "joined": 1}


def test_a_build_that_fails_as_the_tip_goes_on_spares_the_timeline(rig: Rig) -> None:
    """Its own LSN rests; the new tip is tried at once."""
    timeline = rig.timeline(LSN_A)

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        if lsn == LSN_A:
            timeline.advance(LSN_B)
            raise PrepareError("not at that LSN any more")
        writer.write(timeline.tarball(lsn))

    timeline.on_send = send
    with pytest.raises(FillError, match="any more"):
        fill(rig, timeline, LSN_A)
    with pytest.raises(BackingOffError):
        fill(rig, timeline, LSN_A)
    assert filled(rig, timeline, LSN_B) == ("built", tar_of(timeline, LSN_B))


class Gone(Exception):  # noqa: N818 - not an error
    """The client of a service has gone."""


def test_a_caller_that_is_told_to_give_up(rig: Rig) -> None:
    """What `go_on` raises ends its wait, and neither the build nor the wait of others."""
    timeline = rig.timeline()
    asked: list[int] = []

    def go_on() -> None:
        asked.append(aboard())
        if len(asked) == 2:
            raise Gone

    with Gate() as gate:
        stop_while_sending(timeline, gate)
        (patient,) = fillers(rig, timeline, 1)
        with pytest.raises(Gone):
            rig.cache.get_or_prepare(
                rig.shard_of(timeline), timeline.timeline_id, LSN_A, go_on=go_on
            )
        assert asked == [2, 2]
        assert aboard() == 1
        gate.open()
        assert patient.result() == ("built", tar_of(timeline))
    assert fills(rig) == {"given_up": 1, "built": 1}


def test_a_caller_that_is_asked_whether_to_go_on_waits_all_the_while(rig: Rig) -> None:
    """A build that ends meanwhile is for it: nothing is built twice, or thrown away."""
    timeline, builds = rig.timeline(LSN_B), []
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            gate()
            writer.write(timeline.tarball(lsn))

        def go_on() -> None:
            gate.open()
            rig.wait_idle()
            rig.prepared()  # by the one worker, which has told all that wait by then

        timeline.on_send = send
        with rig.cache.get_or_prepare(
            rig.shard_of(timeline), timeline.timeline_id, LSN_A, go_on=go_on
        ) as file:
            assert file.source == "built"
    assert builds == [LSN_A]


def test_a_caller_that_may_go_on_has_its_time_and_no_more(rig: Rig) -> None:
    """A deadline holds beside `go_on`, which is not asked where nothing is waited for."""
    timeline, held = rig.timeline(), rig.prepared()
    asked: list[None] = []

    def get(of: MemoryTimeline, timeout_s: float | None) -> BasebackupFile:
        return rig.cache.get_or_prepare(
            rig.shard_of(of), of.timeline_id, LSN_A, timeout_s, lambda: asked.append(None)
        )

    get(held, None).close()
    assert not asked
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        with pytest.raises(FillTimeoutError):
            get(timeline, 0.3)
        assert asked
    assert fills(rig) == {"hit": 1, "timeout": 1}


def test_what_is_held_is_got_and_what_is_not_is_no_miss(rig: Rig) -> None:
    """`get_held` opens exactly the entry, and counts hits alone."""
    timeline = rig.prepared()
    ids = rig.shard_of(timeline).tenant_id, timeline.timeline_id
    assert rig.cache.get_held(*ids, LSN_B) is None
    assert rig.cache.get_held(ids[0], TimelineId.generate(), LSN_A) is None
    assert rig.reads == {}
    file = rig.cache.get_held(*ids, LSN_A)
    assert file is not None
    with file:
        assert file.read() == rig.path(timeline).read_bytes()
    assert rig.reads == {"hit": 1}
    rig.cache.close(DEADLINE_S)
    assert rig.cache.get_held(*ids, LSN_A) is None


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_build_that_everyone_has_given_up_is_published(rig: Rig, *, is_begun: bool) -> None:
    """Whether it had begun or not; the next caller has a hit."""
    timeline, busy = rig.timeline(), rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline if is_begun else busy, gate)
        if not is_begun:
            rig.send(busy)
            gate.wait_for()
        with pytest.raises(FillTimeoutError):
            fill(rig, timeline, timeout_s=0)
        if is_begun:
            gate.wait_for()
        gate.open()
        rig.wait_idle()
    assert filled(rig, timeline) == ("hit", tar_of(timeline))


def test_a_caller_that_is_interrupted_leaves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C passes, and no seat stays taken."""
    timeline = rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        with monkeypatch.context() as patch:
            patch.setattr("bbcache.prepare.singleflight.Flight.wait", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                fill(rig, timeline)
        gate.wait_for()
        assert aboard() == 0
        gate.open()
        rig.wait_idle()
    assert filled(rig, timeline)[0] == "hit"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_running", [False, True])
def test_a_prepare_is_joined(rig: Rig, *, is_running: bool) -> None:
    """Whether it waits for a worker or runs: there is no second build."""
    timeline, busy = rig.timeline(), rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline if is_running else busy, gate)
        rig.send(timeline if is_running else busy)
        gate.wait_for()
        rig.send(timeline)
        (worker,) = fillers(rig, timeline, 1)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline))
    rig.wait_idle()
    assert rig.counts()["ok"] == (1 if is_running else 2)
    rig.check_books()


def test_a_prepare_joined_as_it_is_published_gives_its_entry(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too late for a handout, the caller gets what has been published."""
    timeline = rig.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, TempFile, "sync", gate)
            rig.send(timeline)
            gate.wait_for()
        (worker,) = fillers(rig, timeline, 1)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline))
    assert rig.counts() == {"ok": 1}


def test_a_prepare_joined_as_it_is_skipped_is_built_for_the_caller(rig: Rig) -> None:
    """The skip was decided before anyone waited: the caller asks again, by himself."""
    timeline = rig.timeline()
    seen = timeline.get_last_record_lsn
    with Gate() as gate:
        timeline.advance(LSN_B)
        with stop_at_log("skipped (tip_moved)", gate):
            rig.send(timeline, LSN_A)
            gate.wait_for()
            (worker,) = fillers(rig, timeline, 1)
            gate.open()
        assert worker.result() == ("built", tar_of(timeline))
    assert seen() == LSN_B
    assert rig.skips == {"tip_moved": 2}
    assert rig.cache.entries() == []


def test_a_newer_prepare_does_not_take_the_place_of_what_is_waited_for(rig: Rig) -> None:
    """Both LSNs are built, each for its caller, and the newer one is held."""
    timeline, busy = rig.timeline(), rig.timeline()
    with Gate() as gate:
        stop_while_sending(busy, gate)
        rig.send(busy)
        gate.wait_for()
        rig.send(timeline, LSN_A)
        (worker,) = fillers(rig, timeline, 1, LSN_A)
        rig.send(timeline, LSN_B)
        timeline.advance(LSN_B)
        gate.open()
        assert worker.result() == ("joined", tar_of(timeline, LSN_A))
    rig.wait_idle()
    assert rig.holds(timeline, LSN_B)
    rig.check_books()


def test_damage_is_found_and_filled(rig: Rig) -> None:
    """The bad archive goes to quarantine, and the caller gets the one that replaces it."""
    timeline = rig.prepared()
    rig.path(timeline).write_bytes(rig.sealed(timeline)[:-1] + b"?")
    source, tar = filled(rig, timeline)
    assert tar == tar_of(timeline)
    assert source in {"joined", "built", "hit"}  # the read itself has queued a rebuild
    rig.wait_idle()
    assert len(rig.quarantined()) == 1
    assert rig.get(timeline) == tar_of(timeline)
    assert rig.counts()["ok"] == 2
    rig.check_books()


def test_an_entry_that_cannot_be_read_is_built_beside_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk proves nothing: the entry stays, and the caller gets bytes all the same."""
    timeline = rig.prepared()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", _raise_io_error)
        assert filled(rig, timeline) == ("built", tar_of(timeline))
    assert rig.reads == {"error": 2}
    assert rig.skips == {"up_to_date": 2}
    assert filled(rig, timeline) == ("hit", tar_of(timeline))
    rig.check_books()


def _raise_io_error(*_: object) -> None:
    raise OSError(5, os.strerror(5))


def test_before_the_start_is_done_a_caller_waits_for_it(tmp_path: Path) -> None:
    """What turns out to be on the disk is a hit, the rest is built."""
    rig = Rig(tmp_path / "cache")
    held, missing = rig.timeline(), rig.timeline()
    rig.seed(held)
    (rig.dir / "tmp").mkdir()
    with Gate() as gate, pytest.MonkeyPatch.context() as patch:
        stop_before(patch, Store, "scan", gate)
        rig.open(wait=False)
        with rig.opened:
            workers = [*fillers(rig, held, 1), *fillers(rig, missing, 1)]
            with pytest.raises(FillTimeoutError):
                fill(rig, held, timeout_s=0)
            gate.open()
            assert workers[0].result() == ("hit", tar_of(held))
            assert workers[1].result() == ("built", tar_of(missing))


def test_after_a_restart_what_was_filled_is_a_hit(rig: Rig) -> None:
    """It was published like any other."""
    timeline = rig.timeline()
    filled(rig, timeline)
    rig.reopen()
    assert filled(rig, timeline) == ("hit", tar_of(timeline))
    assert rig.counts() == {}


def test_the_lsn_is_waited_for(rig: Rig) -> None:
    """As for a prepare: the caller gets it once the timeline is there."""
    timeline = rig.timeline(LSN_A)
    (worker,) = fillers(rig, timeline, 1, LSN_B)
    timeline.advance(LSN_B)
    assert worker.result() == ("built", tar_of(timeline, LSN_B))


class TestBackoff:
    """Failing timelines back off."""

    @pytest.fixture
    def now_s(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """What the clock of the back-off shows; a test moves it."""
        return stand_still(monkeypatch, rig)

    def test_a_failing_timeline_is_left_alone(self, rig: Rig, now_s: list[float]) -> None:
        """At any LSN, for longer with each failure, and not a moment longer than that."""
        timeline, builds = rig.timeline(), []

        def send(_writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            raise ValueError("no such page")

        timeline.on_send = send
        for pause_s in (1, 2, 4):
            with pytest.raises(FillError) as failed:
                fill(rig, timeline)
            assert not isinstance(failed.value, BackingOffError)
            for lsn in (LSN_A, LSN_B):
                with pytest.raises(BackingOffError, match="no such page") as caught:
                    fill(rig, timeline, lsn)
                assert caught.value.retry_after_s == pause_s
                assert caught.value.until in str(caught.value)
            now_s[0] += pause_s
        timeline.on_send = None
        assert filled(rig, timeline)[0] == "built"
        assert len(builds) == 3
        assert fills(rig) == {"error": 3, "backing_off": 6, "built": 1}

    @pytest.mark.usefixtures("now_s")
    def test_other_timelines_do_not_suffer(self, rig: Rig) -> None:
        """Nor do hits of the same one."""
        failing, other = rig.prepared(), rig.timeline()
        failing.advance(LSN_B)
        failing.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(rig, failing, LSN_B)
        with pytest.raises(BackingOffError):
            fill(rig, failing, LSN_B)
        assert filled(rig, failing, LSN_A) == ("hit", tar_of(failing))
        assert filled(rig, other)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_an_lsn_that_is_too_old_costs_the_tip_nothing(self, rig: Rig) -> None:
        """What the host cannot build any more is left alone by itself."""
        timeline = rig.timeline(LSN_B)
        timeline.on_send = raising(ValueError("below the horizon"))  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(rig, timeline, LSN_A)
        with pytest.raises(BackingOffError, match=f"at {LSN_A} is not tried"):
            fill(rig, timeline, LSN_A)
        timeline.on_send = None
        assert filled(rig, timeline, LSN_B)[0] == "built"

    def test_an_lsn_that_never_comes_costs_the_tip_nothing(self, tmp_path: Path) -> None:
        """A client may name any."""
        with Rig(tmp_path / "cache", wait_lsn_timeout=0.01) as rig:
            timeline = rig.timeline(LSN_A)
            with pytest.raises(FillError, match="wait_lsn_timeout"):
                fill(rig, timeline, LSN_C)
            assert filled(rig, timeline, LSN_A)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_what_is_not_there_yet_is_asked_for_again(self, rig: Rig) -> None:
        """A tenant that is still attaching costs nothing, and is not made to wait longer."""
        timeline = rig.timeline()
        rig.tenant.state = TenantState.ATTACHING
        for _ in range(3):
            with pytest.raises(FillError, match="ATTACHING"):
                fill(rig, timeline)
        rig.tenant.state = TenantState.ACTIVE
        assert filled(rig, timeline)[0] == "built"

    @pytest.mark.usefixtures("now_s")
    def test_a_build_in_flight_is_joined_all_the_same(self, rig: Rig) -> None:
        """A prepare is no retry: it is tried, and who comes then waits for it."""
        timeline = rig.timeline()
        timeline.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(rig, timeline)
        with Gate() as gate:
            stop_while_sending(timeline, gate)
            rig.send(timeline)
            gate.wait_for()
            (worker,) = fillers(rig, timeline, 1)
            gate.open()
            assert worker.result() == ("joined", tar_of(timeline))

    @pytest.mark.usefixtures("now_s")
    def test_a_prepare_that_succeeds_ends_the_pause(self, rig: Rig) -> None:
        """The timeline is well again, also at an LSN that was not prepared."""
        timeline = rig.timeline()
        timeline.on_send = raising(ValueError())  # type: ignore[assignment]
        with pytest.raises(FillError):
            fill(rig, timeline)
        timeline.on_send = None
        rig.prepare(timeline)
        timeline.advance(LSN_B)
        assert filled(rig, timeline, LSN_B)[0] == "built"


class TestArguments:
    """What cannot be asked for, and from where."""

    def test_wrong_types_are_refused(self, rig: Rig) -> None:
        """By name, as errors of bbcache."""
        ids = (rig.tenant.tenant_shard_id, TimelineId.generate(), LSN_A)
        for wrong in range(3):
            arguments: list[Any] = list(ids)
            arguments[wrong] = 17
            with pytest.raises(ArgumentError, match=r" must be an? \w+, not the int 17"):
                rig.cache.get_or_prepare(*arguments)
        assert rig.counts() == {}

    def test_another_shard_is_refused(self, rig: Rig) -> None:
        """Basebackups are taken on shard zero."""
        shard_id = TenantShardId(rig.tenant.tenant_id, 1, 2)
        with pytest.raises(FillError, match=r"-0102 makes no basebackups\nhint: "):
            rig.cache.get_or_prepare(shard_id, TimelineId.generate(), LSN_A, 1.0)
        assert rig.counts() == {}

    @pytest.mark.parametrize("callback", ["on_wait", "on_send"])
    def test_a_callback_gets_hits_and_does_not_wait(self, rig: Rig, callback: str) -> None:
        """Its worker is the only one: it would wait for itself."""
        held, missing, asking = rig.prepared(), rig.timeline(), rig.timeline()
        seen: list[object] = []

        def call_back(*_: object) -> None:
            seen.append(filled(rig, held, timeout_s=None))
            fill(rig, missing, timeout_s=None)

        setattr(asking, callback, call_back)
        with pytest.raises(FillError, match="callback of the cache cannot wait") as caught:
            fill(rig, asking)
        assert isinstance(caught.value.__cause__, FillError)
        assert seen == [("hit", tar_of(held))]
        assert filled(rig, missing)[0] == "built"

    def test_a_clean_up_of_the_callers_own_may_wait(self, rig: Rig) -> None:
        """Only the cache's own threads are refused: no build needs this one."""
        held, missing = rig.prepared(), rig.timeline()
        seen: list[object] = []
        listed = rig.host.list

        def list_tenants() -> object:
            if not seen:
                seen.append(threading.current_thread())
                seen.append(filled(rig, missing))
            return listed()

        rig.host.list = list_tenants  # type: ignore[method-assign, assignment]
        rig.cache.run_cleanup()
        assert seen[1] == ("built", tar_of(missing))
        assert rig.holds(held)


def test_the_pool_goes_on(rig: Rig) -> None:
    """After failures, give-ups and refusals the one worker still builds."""
    for index in range(20):
        timeline = rig.timeline()
        if index % 2:
            timeline.on_send = raising(KeyboardInterrupt())  # type: ignore[assignment]
            with pytest.raises(FillError):
                fill(rig, timeline)
        else:
            with pytest.raises(FillTimeoutError):
                fill(rig, timeline, timeout_s=0)
    assert filled(rig, rig.timeline())[0] == "built"
    wait_until(lambda: aboard() == 0)
    rig.wait_idle()
    rig.check_books()
