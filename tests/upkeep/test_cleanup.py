"""Clean-up: what goes, what stays because it is unknown, and its races with publishing."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    LSN_C,
    Harness,
    fail_with,
    put,
    tar_of,
)
from support.helpers import wait_until

from bbcache import NotReadyError, TenantShardId, TenantState
from bbcache.errors import BrokenError
from bbcache.storage.catalog import Catalog
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


UNKNOWN_STATES = [state for state in TenantState if state is not TenantState.ACTIVE]


FAILURES = [
    *(RuntimeError("the host broke"), KeyError("x"), OSError(5, "EIO"), TimeoutError()),
    *(SystemExit(1), GeneratorExit(), asyncio.CancelledError()),
]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache whose periodic clean-up does not come in a test's time."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def _set_rows(harness: Harness, *rows: tuple[tuple[int, int], MemoryTenant | None]) -> None:
    """Make the host list its one tenant as these shards: (number, count) and the tenant."""
    tenant_id = harness.tenant.tenant_id
    listed = [(TenantShardId(tenant_id, *shard), tenant) for shard, tenant in rows]
    put(harness.host, "list", lambda: listed)


def _no_row(harness: Harness, _timeline: MemoryTimeline) -> None:
    _set_rows(harness)


def _only_none_rows(harness: Harness, _timeline: MemoryTimeline) -> None:
    _set_rows(harness, ((0, 0), None), ((0, 4), None))


def _only_other_shards(harness: Harness, _timeline: MemoryTimeline) -> None:
    _set_rows(harness, ((1, 4), harness.tenant), ((3, 4), harness.tenant), ((2, 4), None))


def _not_listed(harness: Harness, timeline: MemoryTimeline) -> None:
    del harness.tenant.timelines[timeline.timeline_id]


def _passed(_harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_B + 1)


def _passed_on_every_row(harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_C)
    other = MemoryTenant(TenantShardId(harness.tenant.tenant_id, 0, 4))
    _set_rows(harness, ((0, 0), harness.tenant), ((0, 4), other), ((0, 2), None))


@pytest.mark.parametrize(
    "change",
    [_no_row, _only_none_rows, _only_other_shards, _not_listed, _passed, _passed_on_every_row],
    ids=lambda change: change.__name__[1:],
)
def test_what_is_outgrown_goes(
    harness: Harness, change: Callable[[Harness, MemoryTimeline], None]
) -> None:
    """An entry goes with its tenant's shard zero, its timeline, or once the tip is past it."""
    timeline = harness.prepared(LSN_B)
    path = harness.path(timeline, LSN_B)
    change(harness, timeline)
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    assert not path.exists()
    harness.check_accounting()


def _nothing(_harness: Harness, _timeline: MemoryTimeline) -> None:
    pass


def _tip_before(_harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_A)


def _one_of_two_rows_holds_it(harness: Harness, _timeline: MemoryTimeline) -> None:
    other = MemoryTenant(TenantShardId(harness.tenant.tenant_id, 0, 4))
    _set_rows(harness, ((0, 4), other), ((0, 0), harness.tenant))


def _one_row_is_none(harness: Harness, _timeline: MemoryTimeline) -> None:
    _set_rows(harness, ((0, 4), None), ((0, 0), harness.tenant), ((0, 2), None))


def _one_of_two_rows_is_attaching(harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_C)
    other = MemoryTenant(TenantShardId(harness.tenant.tenant_id, 0, 4))
    other.state = TenantState.ATTACHING
    _set_rows(harness, ((0, 0), harness.tenant), ((0, 4), other))


def _not_ready(harness: Harness, _timeline: MemoryTimeline) -> None:
    harness.host.tenants.clear()
    harness.host.is_ready = False


def _not_ready_half_way(harness: Harness, _timeline: MemoryTimeline) -> None:
    def rows() -> Iterator[tuple[TenantShardId, MemoryTenant | None]]:
        yield TenantShardId(harness.tenant.tenant_id, 1, 2), harness.tenant
        raise NotReadyError

    put(harness.host, "list", rows)


def _rows_of_nonsense(harness: Harness, _timeline: MemoryTimeline) -> None:
    put(harness.host, "list", lambda: [None])


@pytest.mark.parametrize(
    "change",
    [
        *(_nothing, _tip_before, _one_of_two_rows_holds_it, _one_row_is_none),
        *(_one_of_two_rows_is_attaching, _not_ready, _not_ready_half_way, _rows_of_nonsense),
    ],
    ids=lambda change: change.__name__[1:],
)
def test_what_is_wanted_or_unknown_stays(
    harness: Harness, change: Callable[[Harness, MemoryTimeline], None]
) -> None:
    """Unknown is not gone: an entry stays if the host cannot say."""
    timeline = harness.prepared(LSN_B)
    change(harness, timeline)
    harness.cache.run_cleanup()
    assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
    harness.check_accounting()


@pytest.mark.parametrize("state", UNKNOWN_STATES)
def test_a_tenant_that_is_not_active_keeps_its_entries(
    harness: Harness, state: TenantState
) -> None:
    """In every state but ACTIVE a tenant's timelines are unknown, listed or not, moved or not."""
    timelines = [harness.prepared() for _ in range(3)]
    timelines[0].advance(LSN_B)
    del harness.tenant.timelines[timelines[1].timeline_id]
    harness.tenant.state = state
    harness.cache.run_cleanup()
    assert len(harness.cache.entries()) == 3
    harness.tenant.state = TenantState.ACTIVE
    harness.cache.run_cleanup()
    assert [entry.timeline_id for entry in harness.cache.entries()] == [timelines[2].timeline_id]


@pytest.mark.parametrize("state", UNKNOWN_STATES)
def test_a_tenant_that_stops_while_it_lists_keeps_its_entries(
    harness: Harness, state: TenantState
) -> None:
    """A list made by a tenant that was not ACTIVE at its end may be short: it proves nothing."""
    timeline = harness.prepared()

    def list_timelines() -> list[MemoryTimeline]:
        harness.tenant.state = state
        return []

    put(harness.tenant, "list_timelines", list_timelines)
    harness.cache.run_cleanup()
    assert harness.holds(timeline)


def test_a_restart_throws_nothing_away(harness: Harness) -> None:
    """Neither the start itself nor steps while tenants attach remove anything."""
    timelines = [harness.prepared() for _ in range(3)]
    known = dict(harness.tenant.timelines)
    harness.tenant.state = TenantState.ATTACHING
    harness.tenant.timelines.clear()
    harness.host.is_ready = False
    harness.reopen()
    harness.cache.run_cleanup()
    harness.host.is_ready = True
    harness.cache.run_cleanup()
    harness.tenant.timelines.update(known)
    harness.tenant.state = TenantState.ACTIVE
    harness.cache.run_cleanup()
    assert [harness.get(timeline) for timeline in timelines] == [tar_of(t) for t in timelines]
    assert harness.reads == {"hit": 3}


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("is_half_way", [False, True], ids=["at_once", "half_way"])
def test_a_list_that_raises_keeps_everything(
    harness: Harness, error: BaseException, is_half_way: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If `TenantManager.list` raises, even after some rows, all entries stay."""
    timelines = [harness.prepared(), harness.prepared()]
    timelines[0].advance(LSN_B)

    def rows() -> Iterator[tuple[TenantShardId, MemoryTenant | None]]:
        if is_half_way:
            yield harness.tenant.tenant_shard_id, harness.tenant
        raise error

    put(harness.host, "list", rows)
    harness.cache.run_cleanup()
    assert len(harness.cache.entries()) == 2
    assert "clean-up keeps everything" in caplog.text
    assert harness.value("bbcache_cleanup_errors_total") == 1


def _state_raises(broken: Any, error: BaseException) -> None:
    broken.current_state = _raiser(error)


def _listing_raises(broken: Any, error: BaseException) -> None:
    broken.list_timelines = _raiser(error)


def _listing_raises_half_way(broken: Any, error: BaseException) -> None:
    def list_timelines() -> Iterator[MemoryTimeline]:
        yield from ()
        raise error

    broken.list_timelines = list_timelines


def _tip_raises(broken: Any, error: BaseException) -> None:
    for timeline in broken.timelines.values():
        timeline.get_last_record_lsn = _raiser(error)


def _raiser(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "breaking", [_state_raises, _listing_raises, _listing_raises_half_way, _tip_raises]
)
def test_a_tenant_that_raises_keeps_what_it_was_asked_about(
    harness: Harness,
    breaking: Callable[[Any, BaseException], None],
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A callback that raises keeps the entries it is about; all others are judged."""
    broken = harness.host.add_tenant()
    kept = harness.timeline(tenant=broken)
    harness.prepare(kept)
    gone, wanted = harness.prepared(), harness.prepared()
    gone.advance(LSN_B)
    kept.advance(LSN_B)
    breaking(broken, error)
    harness.cache.run_cleanup()
    assert (harness.holds(kept), harness.holds(gone), harness.holds(wanted)) == (True, False, True)
    assert str(broken.tenant_id) in caplog.text


def test_one_timeline_that_raises_keeps_itself_alone(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The other timelines of its tenant are judged."""
    broken, gone = harness.prepared(), harness.prepared()
    gone.advance(LSN_B)
    put(broken, "get_last_record_lsn", _raiser(RuntimeError("no tip")))
    harness.cache.run_cleanup()
    assert (harness.holds(broken), harness.holds(gone)) == (True, False)
    for part in (harness.tenant.tenant_id, broken.timeline_id, LSN_A):
        assert str(part) in caplog.text


def test_a_broken_timeline_keeps_its_entry_in_silence(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The host has reported it: no step counts an error or logs a line about it again."""
    broken, outgrown = harness.prepared(), harness.prepared()
    put(broken, "get_last_record_lsn", _raiser(BrokenError("it is cut")))
    outgrown.advance(LSN_B)
    harness.cache.run_cleanup()
    harness.cache.run_cleanup()
    assert (harness.holds(broken), harness.holds(outgrown)) == (True, False)
    assert harness.value("bbcache_cleanup_errors_total") == 0
    assert "it is cut" not in caplog.text


def test_the_period_runs_steps_and_survives_whatever_they_raise(tmp_path: Path) -> None:
    """Steps come period by period, not at the start, also after one has raised anything."""
    harness = Harness(tmp_path / "cache", cleanup_period=0.02)
    calls: list[bool] = []
    ready: list[bool] = []

    class Host(MemoryHost):
        def list(self) -> list[tuple[TenantShardId, MemoryTenant | None]]:
            calls.append(harness.cache.wait_initialized(0))
            if len(calls) == 1:
                raise SystemExit
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().list() if ready else raise_not_ready()

    def raise_not_ready() -> Any:
        raise NotReadyError

    harness.host = Host()
    harness.tenant = harness.host.add_tenant()
    with harness:
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        wait_until(lambda: len(calls) > 3)
        assert harness.holds(timeline)
        ready.append(True)
        wait_until(lambda: not harness.cache.entries())
        assert all(calls)


@pytest.mark.parametrize("error", [SystemExit("no"), KeyboardInterrupt(), GeneratorExit()])
def test_a_tenant_that_raises_anything_does_not_save_the_others(
    tmp_path: Path, error: BaseException
) -> None:
    """The other tenants are judged, even after SystemExit or KeyboardInterrupt."""
    with Harness(tmp_path / "cache", cleanup_period=0.02) as harness:
        broken = harness.host.add_tenant()
        harness.host.tenants = {broken.tenant_shard_id: broken, **harness.host.tenants}
        harness.prepare(harness.timeline(tenant=broken))
        kept, gone = harness.cache.entries()[0], harness.prepared()
        put(broken, "list_timelines", _raiser(error))
        gone.advance(LSN_B)
        wait_until(lambda: not harness.holds(gone), 5)
        assert kept in harness.cache.entries()
        assert harness.value("bbcache_cleanup_errors_total") >= 1


@pytest.mark.parametrize("callback", ["list", "list_timelines", "get_last_record_lsn"])
def test_a_ctrl_c_passes_through_run_cleanup(harness: Harness, callback: str) -> None:
    """A Ctrl-C in the caller's own thread is the caller's; the cache goes on."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    owner = next(o for o in (harness.host, harness.tenant, timeline) if hasattr(o, callback))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, callback, _raiser(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            harness.cache.run_cleanup()
    harness.wait_idle()
    assert harness.holds(timeline)
    harness.cache.run_cleanup()
    assert not harness.holds(timeline)


def test_the_log_tells_how_many_went(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """A step that removes entries logs one line; others log none."""
    caplog.set_level(logging.INFO, logger="bbcache.upkeep.cleanup")
    harness.prepared()
    outgrown = harness.prepared()
    harness.cache.run_cleanup()
    assert "clean-up" not in caplog.text
    outgrown.advance(LSN_B)
    harness.cache.run_cleanup()
    assert "clean-up removed 1 of 2 basebackups" in caplog.text


def test_without_its_directory_a_step_judges_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step ends if the directory cannot be used; the next step does the work."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    fail_with(monkeypatch, Catalog, "ensure_directory", OSError(errno.EIO, "EIO"), times=1)
    harness.cache.run_cleanup()
    assert harness.holds(timeline)
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []
