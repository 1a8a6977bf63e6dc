"""Tenants and timelines that appear on disk, go or are mended are noticed by a rescan."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from pageserver.test_broken import cut, timeline_dir

from bbcache import Lsn, TenantId, TenantState, TimelineId
from bbcache.errors import BrokenError, NotReadyError, PrepareError
from bbcache.pageserver.rescan import Rescanner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pageserver.conftest import Address, Lab

    from bbcache.postgres.server.binaries import PostgresBinaries

pytestmark = pytest.mark.postgres


class Watched:
    """A pageserver with one timeline, and what rescans it."""

    def __init__(self, lab: Lab) -> None:
        lab.open()
        self.lab = lab
        self.address = lab.add_timeline()
        self.tenants = lab.pageserver.tenants
        self.rescanner = Rescanner(self.tenants)
        self.place = timeline_dir(lab, self.address)
        self.rescanner.rescan()

    def lsn_of(self, address: Address) -> Lsn:
        """Where a timeline stands; raises where it is not served."""
        tenant = self.tenants.get_tenant(address[0])
        return tenant.get_timeline(address[1]).get_last_record_lsn()


@pytest.fixture
def watched(newest_pg: PostgresBinaries, make_lab: Callable[[PostgresBinaries], Lab]) -> Watched:
    """One with a single timeline."""
    return Watched(make_lab(newest_pg))


def copy_of(watched: Watched, tenant_id: TenantId) -> Address:
    """Put a copy of the timeline on disk, for a tenant."""
    timeline_id = TimelineId.generate()
    place = watched.lab.root / "tenants" / str(tenant_id) / "timelines" / str(timeline_id)
    shutil.copytree(watched.place, place)
    return type(watched.address)(tenant_id, timeline_id)


@pytest.mark.parametrize("is_new_tenant", [True, False])
def test_what_appears_is_served(watched: Watched, *, is_new_tenant: bool) -> None:
    """A timeline, or a tenant with one."""
    tenant_id = TenantId.generate() if is_new_tenant else watched.address[0]
    address = copy_of(watched, tenant_id)
    with pytest.raises(PrepareError):
        watched.lsn_of(address)
    watched.rescanner.rescan()
    assert watched.lsn_of(address) == watched.lsn_of(watched.address)


@pytest.mark.parametrize("is_whole_tenant", [True, False])
def test_what_goes_is_forgotten(watched: Watched, *, is_whole_tenant: bool) -> None:
    """A timeline, or a tenant with all of its own; the others stay."""
    other = copy_of(watched, TenantId.generate() if is_whole_tenant else watched.address[0])
    watched.rescanner.rescan()
    place = timeline_dir(watched.lab, other)
    shutil.rmtree(place.parents[1] if is_whole_tenant else place)
    watched.rescanner.rescan()
    with pytest.raises(PrepareError):
        watched.lsn_of(other)
    assert watched.lsn_of(watched.address)
    assert watched.tenants.broken.list() == []


def test_a_timeline_that_is_mended_is_served(watched: Watched) -> None:
    """And its report goes; before, it is refused and its entries stay."""
    broken = copy_of(watched, watched.address[0])
    cut(timeline_dir(watched.lab, broken))
    for _ in range(2):
        watched.rescanner.rescan()
        with pytest.raises(BrokenError, match="pg_control"):
            watched.lsn_of(broken)
    tenant = watched.tenants.get_tenant(watched.address[0])
    assert broken[1] in [timeline.timeline_id for timeline in tenant.list_timelines()]
    shutil.rmtree(timeline_dir(watched.lab, broken))
    shutil.copytree(watched.place, timeline_dir(watched.lab, broken))
    watched.rescanner.rescan()
    assert watched.lsn_of(broken)
    assert watched.tenants.broken.list() == []


def test_a_tenant_that_is_mended_is_served(watched: Watched) -> None:
    """One whose id is there in two spellings is broken, until one of them goes."""
    other = copy_of(watched, TenantId.generate())
    directory = timeline_dir(watched.lab, other).parents[1]
    directory.with_name(directory.name.upper()).mkdir()
    watched.rescanner.rescan()
    assert watched.tenants.get_tenant(other[0]).current_state() is TenantState.BROKEN
    directory.with_name(directory.name.upper()).rmdir()
    watched.rescanner.rescan()
    assert watched.lsn_of(other)
    assert watched.tenants.broken.list() == []


def test_a_timeline_with_a_compute_node_stays(watched: Watched) -> None:
    """Its state is with the node: nothing on disk counts until that has stopped."""
    tenant = watched.tenants.get_tenant(watched.address[0])
    timeline = tenant.get_timeline(watched.address[1])
    timeline.lend_to_compute()
    copy_of(watched, watched.address[0])  # so that the directory is not empty
    watched.place.rename(watched.lab.root / "elsewhere")
    watched.rescanner.rescan()
    assert tenant.get_timeline(watched.address[1]) is timeline
    (watched.lab.root / "elsewhere").rename(watched.place)
    timeline.give_up_compute()


def test_a_timeline_that_was_held_back_stays_so(watched: Watched) -> None:
    """Its state is in a directory that could not be taken over, not in its own."""
    watched.tenants.break_timeline(*watched.address, "a compute node was left")
    watched.rescanner.rescan()
    with pytest.raises(BrokenError, match="a compute node was left"):
        watched.lsn_of(watched.address)


def unmount(tenants: Path, _: pytest.MonkeyPatch) -> None:
    """The directory is there and empty, as before the mount."""
    tenants.rename(tenants.with_name("hidden"))
    tenants.mkdir()


def remove(tenants: Path, _: pytest.MonkeyPatch) -> None:
    """The directory is gone."""
    tenants.rename(tenants.with_name("hidden"))


def replace_device(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system is mounted there."""
    stat = os.stat

    def stat_elsewhere(path: Path) -> os.stat_result:
        found = list(stat(path))
        if path == tenants:
            found[2] += 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "stat", stat_elsewhere)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (unmount, "is suddenly empty"),
        (remove, "cannot be listed"),
        (replace_device, "lies on another device than before"),
    ],
)
def test_a_listing_that_cannot_be_true_changes_nothing(
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    """Clean-up is told that the tenants are not known, and keeps every entry."""
    cache = watched.lab.pageserver.cache
    archive = watched.lab.pageserver.cache.get_or_prepare(
        watched.tenants.get_tenant(watched.address[0]).tenant_shard_id,
        watched.address[1],
        watched.lsn_of(watched.address),
    )
    archive.close()
    tenants = watched.lab.root / "tenants"
    with monkeypatch.context() as patch:
        spoil(tenants, patch)
        watched.rescanner.rescan()
        assert reason in (watched.rescanner.degraded_reason or "")
        with pytest.raises(NotReadyError):
            watched.tenants.list()
        cache.run_cleanup()
        assert len(cache.entries()) == 1
        assert watched.lsn_of(watched.address)
    if tenants.with_name("hidden").exists():
        if tenants.exists():
            tenants.rmdir()
        tenants.with_name("hidden").rename(tenants)
    watched.rescanner.rescan()
    assert watched.rescanner.degraded_reason is None
    assert [tenant.tenant_id for tenant in watched.tenants.known()] == [watched.address[0]]
    cache.run_cleanup()
    assert len(cache.entries()) == 1


def test_timelines_that_cannot_be_listed_stay(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a tenant whose directory of timelines is suddenly empty or gone."""
    timelines = watched.place.parent
    timelines.rename(timelines.with_name("hidden"))
    watched.rescanner.rescan()
    timelines.mkdir()
    watched.rescanner.rescan()
    assert watched.lsn_of(watched.address)
    assert caplog.text.count("stay as they were") == 2
    timelines.rmdir()
    timelines.with_name("hidden").rename(timelines)
