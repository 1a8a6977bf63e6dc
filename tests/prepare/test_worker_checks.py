"""The checks of a prepare: if two fail, the earlier one decides."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    LSN_C,
    Harness,
    noise,
)

from bbcache import Lsn, TenantShardId, TenantState
from bbcache.testing import MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache.host import TarballWriter


class Scene:
    """A timeline whose prepare at `LSN_B` succeeds unless a test breaks something."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.timeline = MemoryTimeline(LSN_B)
        harness.tenant.timelines[self.timeline.timeline_id] = self.timeline
        self.timeline.tarball = lambda at: noise(1000, int(at))
        self.shard_id = harness.tenant.tenant_shard_id
        self.waits: list[Callable[[], None]] = []
        self.sends: list[Callable[[], None]] = []
        self.timeline.on_wait = self._wait
        self.timeline.on_send = self._send

    def _wait(self, _lsn: Lsn, _timeout: float) -> None:
        for step in self.waits:
            step()

    def _send(self, writer: TarballWriter, lsn: Lsn) -> None:
        for step in self.sends:
            step()
        writer.write(self.timeline.tarball(lsn))


def _not_shard_zero(scene: Scene) -> None:
    scene.shard_id = TenantShardId(scene.harness.tenant.tenant_id, 1, 2)


def _not_attached(scene: Scene) -> None:
    scene.harness.host.tenants[scene.harness.tenant.tenant_shard_id] = None


def _disabled(scene: Scene) -> None:
    scene.harness.tenant.is_cache_enabled = False


def _not_active(scene: Scene) -> None:
    scene.harness.tenant.state = TenantState.ATTACHING


def _unknown_timeline(scene: Scene) -> None:
    del scene.harness.tenant.timelines[scene.timeline.timeline_id]


def _held(scene: Scene) -> None:
    scene.harness.seed(scene.timeline, LSN_C)


def _tip_past(scene: Scene) -> None:
    scene.timeline.advance(LSN_C)


def _full(scene: Scene) -> None:
    scene.harness.seed(MemoryTimeline(LSN_A))


def _lsn_not_reached(scene: Scene) -> None:
    def wait() -> None:
        raise TimeoutError

    scene.waits.append(wait)


def _tip_moves_in_wait(scene: Scene) -> None:
    scene.waits.insert(0, lambda: scene.timeline.advance(LSN_C))


def _build_fails(scene: Scene) -> None:
    def fail() -> None:
        raise RuntimeError("the build fails")

    scene.sends.append(fail)


def _too_big(scene: Scene) -> None:
    scene.timeline.tarball = lambda _at: noise(9000)


def _tip_moves_in_build(scene: Scene) -> None:
    scene.sends.insert(0, lambda: scene.timeline.advance(LSN_C))


def _nothing(_scene: Scene) -> None:
    pass


class Check(NamedTuple):
    """One check of a prepare: how to make it fail, and its result then."""

    spoil: Callable[[Scene], None]
    result: str
    reason: str | None = None
    log: str = ""


# Files on disk are seeded before the cache starts, whatever its limits say.
SEEDED = (_held, _full)


CHECKS = [
    Check(_not_shard_zero, "skip", "not_shard_zero"),
    Check(_not_attached, "error", log="is not attached"),
    Check(_disabled, "skip", "disabled"),
    Check(_not_active, "error", log="the tenant is TenantState.ATTACHING"),
    Check(_unknown_timeline, "error", log="has no timeline"),
    Check(_held, "skip", "up_to_date"),
    Check(_tip_past, "skip", "tip_moved"),
    Check(_full, "skip", "full"),
    Check(_lsn_not_reached, "error", log="the LSN was not reached"),
    Check(_tip_moves_in_wait, "skip", "tip_moved"),
    Check(_build_fails, "error", log="the build fails"),
    Check(_too_big, "skip", "too_big"),
    Check(_tip_moves_in_build, "skip", "tip_moved"),
    Check(_nothing, "ok"),
]


PAIRS = [
    pytest.param(first, second, id=f"{first.spoil.__name__[1:]}-{second.spoil.__name__[1:]}")
    for first, second in itertools.combinations(CHECKS, 2)
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_failing_checks_the_earlier_decides(
    first: Check, second: Check, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first check that fails decides result, reason and log; the last one is success."""
    harness = Harness(
        tmp_path / "cache",
        max_size_entries=1,
        max_entry_size_bytes=4000,
        wait_lsn_timeout=0.01,
        eviction="none",
    )
    scene = Scene(harness)
    spoils = [first.spoil, second.spoil]
    for spoil in spoils:
        if spoil in SEEDED:
            spoil(scene)
    with harness:
        for spoil in spoils:
            if spoil not in SEEDED:
                spoil(scene)
        harness.cache.send_prepare(scene.shard_id, scene.timeline.timeline_id, LSN_B)
        harness.wait_idle()
        assert harness.counts() == {first.result: 1}
        assert harness.skips == ({first.reason: 1} if first.reason else {})
        assert first.log in caplog.text
        assert harness.temp_files() == []
        harness.check_accounting()
