"""The tenants of a pageserver, kept as directories.

``<root>/tenants/<tenant>/timelines/<timeline>/`` is a PGDATA directory each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError, PrepareError, StoreError
from bbcache.host import TenantState
from bbcache.ids import TenantId, TenantShardId, TimelineId
from bbcache.pageserver.broken import BrokenRegister, BrokenTimeline, RegisteredHealth
from bbcache.pageserver.listing import Listing, check_one_spelling, names_by_id
from bbcache.pageserver.takeover import (
    sync_directory,
    take_over,
    timeline_names,
)
from bbcache.pageserver.timeline import PgdataTimeline
from bbcache.postgres.pgdata.tarball import check_sendable
from bbcache.simple_host import SimpleTenant, SimpleTenantManager


class PgdataTenant(SimpleTenant[PgdataTimeline | BrokenTimeline]):
    """An unsharded tenant, ATTACHING at first. Thread-safe.

    Args:
        tenant_id: its id.
        directory: ``<root>/tenants/<tenant>``.
        broken: gets a report of every timeline that cannot be served.

    Attributes:
        directory: the same.
        listing: of its timelines.
        held: timelines whose directories a rescan leaves alone.
    """

    def __init__(self, tenant_id: TenantId, directory: Path, broken: BrokenRegister) -> None:
        super().__init__(TenantShardId(tenant_id))
        self.state = TenantState.ATTACHING
        self.directory = directory
        self._timelines_dir = directory / "timelines"
        self.listing = Listing(self._timelines_dir, timeline_names)
        self.held: set[TimelineId] = set()
        self._broken = broken

    def attach(self) -> None:
        """Find the timelines on disk; the tenant is ACTIVE then, or BROKEN.

        A takeover that a crash has cut short is finished first. A timeline that cannot be
        used is reported as broken, and the others are served.
        """
        try:
            found = self._load_all()
        except Exception as error:  # noqa: BLE001 - one tenant must not keep others from being served
            self.break_down(error)
            return
        self.timelines |= found
        self.state = TenantState.ACTIVE

    def break_down(self, error: BaseException | str) -> None:
        """Report the tenant as broken: none of its timelines is served until the next start."""
        self._broken.report(self.tenant_id, None, self.directory, error)
        self.state = TenantState.BROKEN

    def break_timeline(self, timeline_id: TimelineId, error: BaseException | str) -> None:
        """Report a timeline as broken: it is not served until the next start.

        May be called before `attach`, which then leaves the timeline's directory alone.
        """
        place = self._timelines_dir / str(timeline_id)
        self.held.add(timeline_id)
        broken = self._broken.report(self.tenant_id, timeline_id, place, error)
        self.add(BrokenTimeline(timeline_id, broken))

    def add_timeline(self, pgdata_dir: Path) -> PgdataTimeline:
        """Make a data directory a new timeline of this tenant.

        Args:
            pgdata_dir: a data directory that was shut down cleanly, on the file system of the
                tenants; it is moved.

        Raises:
            PostgresError: the directory was not shut down cleanly.
        """
        timeline_id = TimelineId.generate()
        place = self._timelines_dir / str(timeline_id)
        check_sendable(pgdata_dir)
        self.held.add(timeline_id)
        try:
            take_over(pgdata_dir, place)
            timeline = PgdataTimeline(timeline_id, place, self._health(timeline_id, place))
            self.add(timeline)
        finally:
            self.held.discard(timeline_id)
        return timeline

    def get_timeline(self, timeline_id: TimelineId) -> PgdataTimeline:
        """The timeline.

        Raises:
            BrokenError: it is broken, or the tenant is.
            PrepareError: the tenant has no timeline of that id.
        """
        timeline = self._find(timeline_id)
        if timeline is None:
            raise PrepareError(f"tenant {self.tenant_id} has no timeline {timeline_id}")
        return timeline

    def check_usable(self, timeline_id: TimelineId) -> None:
        """Raise `BrokenError` if the tenant or its timeline is broken; else do nothing.

        A timeline that its last build has found damaged passes: its tip is known, and
        the next build shows whether it is repaired.
        """
        timeline = self._find(timeline_id)
        if timeline is not None:
            timeline.check_usable()

    def _find(self, timeline_id: TimelineId) -> PgdataTimeline | None:
        """The timeline, or None; raises `BrokenError` if it cannot be served."""
        timeline = self.timelines.get(timeline_id)
        if self.state is TenantState.BROKEN:
            whole = self._broken.find(self.tenant_id, None)
            if whole is not None:
                raise whole.error()
        if isinstance(timeline, BrokenTimeline):
            raise timeline.broken.error()
        return timeline

    def _load_all(self) -> dict[TimelineId, PgdataTimeline | BrokenTimeline]:
        if not os.path.lexists(self._timelines_dir):
            self._timelines_dir.mkdir()
        found, foreign = names_by_id(TimelineId, self.listing.names())
        self._broken.report_foreign(self._timelines_dir, foreign)
        return {
            timeline_id: self._load_first(timeline_id, names)
            for timeline_id, names in sorted(found.items())
        }

    def _load_first(
        self, timeline_id: TimelineId, names: list[str]
    ) -> PgdataTimeline | BrokenTimeline:
        broken = self._broken.find(self.tenant_id, timeline_id)
        if broken is not None:
            self.held.add(timeline_id)
            return BrokenTimeline(timeline_id, broken)
        return self.load(timeline_id, names)

    def load(self, timeline_id: TimelineId, names: list[str]) -> PgdataTimeline | BrokenTimeline:
        """Make a timeline of its directory, or report why that cannot be.

        Args:
            timeline_id: the timeline.
            names: its directories, of which there must be one.
        """
        place = self._timelines_dir / names[-1]
        try:
            check_one_spelling(names)
            return PgdataTimeline(timeline_id, place, self._health(timeline_id, place))
        except Exception as error:  # noqa: BLE001 - one timeline must not keep others from being served
            broken = self._broken.report(self.tenant_id, timeline_id, place, error)
            return BrokenTimeline(timeline_id, broken)

    def _health(self, timeline_id: TimelineId, place: Path) -> RegisteredHealth:
        return RegisteredHealth(self._broken, self.tenant_id, timeline_id, place)


class PgdataTenantManager(SimpleTenantManager[PgdataTenant]):
    """All tenants below a directory, not ready at first. Thread-safe.

    Args:
        tenants_dir: ``<root>/tenants``; created if it does not exist.

    Attributes:
        broken: the tenants and timelines on disk that cannot be served.
        listing: of the tenants.
        on_attached: called with each timeline that is found on disk and can be served, at the
            start or by a rescan.
    """

    def __init__(self, tenants_dir: Path) -> None:
        super().__init__()
        check_passable("the directory of the tenants", tenants_dir, StoreError)
        self.is_ready = False
        self.listing = Listing(tenants_dir)
        self._tenants_dir = tenants_dir
        self.broken = BrokenRegister()
        self.on_attached: Callable[[TenantShardId, PgdataTimeline], None] = lambda *_: None

    def attach_all(self) -> None:
        """Find every tenant on disk. Before that, `list` raises NotReadyError.

        A tenant or timeline that cannot be served is reported to `broken`; the others are
        served. A name that is not an id is reported and left alone.

        Raises:
            StoreError: the directory of the tenants cannot be listed.
        """
        try:
            self._tenants_dir.mkdir(parents=True, exist_ok=True)
            names = self.listing.names()
        except OSError as error:
            raise StoreError(
                f"the tenants in {self._tenants_dir} cannot be listed: {error.strerror}",
                errno=error.errno,
            ) from error
        found, foreign = names_by_id(TenantId, names)
        self.broken.report_foreign(self._tenants_dir, foreign)
        tenants = [
            PgdataTenant(tenant_id, self._tenants_dir / names[-1], self.broken)
            for tenant_id, names in sorted(found.items())
        ]
        for tenant in tenants:
            self.add(tenant)
        self.is_ready = True
        for tenant in tenants:
            _attach(tenant, found[tenant.tenant_id])
        self.broken.end_attach()
        for tenant in tenants:
            self.tell_attached(tenant)

    def tell_attached(self, tenant: PgdataTenant) -> None:
        """Call `on_attached` with each timeline of a tenant that can be served."""
        for timeline in tenant.list_timelines():
            if isinstance(timeline, PgdataTimeline):
                self.on_attached(tenant.tenant_shard_id, timeline)

    def make_tenant(self, tenant_id: TenantId, names: list[str]) -> PgdataTenant:
        """Make a tenant of its directory, ACTIVE or BROKEN, without adding it.

        Args:
            tenant_id: the tenant.
            names: its directories, of which there must be one.
        """
        tenant = PgdataTenant(tenant_id, self._tenants_dir / names[-1], self.broken)
        _attach(tenant, names)
        return tenant

    def find_place(self, tenant_id: TenantId, timeline_id: TimelineId) -> Path | None:
        """The directory of a timeline, attached or not; None if it is not on disk.

        Raises:
            OSError: the directories cannot be listed.
            PostgresError: there are several directories of this id.
        """
        tenants, _ = names_by_id(TenantId, os.listdir(self._tenants_dir))
        if tenant_id not in tenants:
            return None
        check_one_spelling(tenants[tenant_id])
        timelines_dir = self._tenants_dir / tenants[tenant_id][0] / "timelines"
        timelines, _ = names_by_id(TimelineId, timeline_names(timelines_dir))
        if timeline_id not in timelines:
            return None
        check_one_spelling(timelines[timeline_id])
        return timelines_dir / timelines[timeline_id][0]

    def break_timeline(
        self, tenant_id: TenantId, timeline_id: TimelineId, error: BaseException | str
    ) -> None:
        """Report a timeline as broken: it is not served until the next start.

        May be called before `attach_all`, which then leaves the timeline's directory alone.

        Args:
            tenant_id: the tenant, which need not be attached yet.
            timeline_id: its timeline.
            error: why; clients see the first line, without the timeline's path.
        """
        tenant = self._find(tenant_id)
        if tenant is not None:
            tenant.break_timeline(timeline_id, error)
        else:
            place = self._tenants_dir / str(tenant_id) / "timelines" / str(timeline_id)
            self.broken.report(tenant_id, timeline_id, place, error)

    def check_usable(self, tenant_id: TenantId, timeline_id: TimelineId) -> None:
        """Raise `BrokenError` if the tenant or its timeline is broken; else do nothing."""
        if not self.broken:
            return
        tenant = self._find(tenant_id)
        if tenant is not None:
            tenant.check_usable(timeline_id)

    def check_sound(self, tenant_id: TenantId, timeline_id: TimelineId) -> None:
        """Raise `BrokenError` if the timeline was found damaged and does not work again."""
        for each in (None, timeline_id):
            broken = self.broken.find(tenant_id, each)
            if broken is not None:
                raise broken.error()

    def create_tenant(self) -> PgdataTenant:
        """A new tenant without timelines; it is on disk when this returns.

        Raises:
            OSError: the disk has failed.
        """
        tenant_id = TenantId.generate()
        directory = self._tenants_dir / str(tenant_id)
        (directory / "timelines").mkdir(parents=True)
        sync_directory(directory)
        sync_directory(self._tenants_dir)
        tenant = PgdataTenant(tenant_id, directory, self.broken)
        tenant.attach()
        self.add(tenant)
        return tenant

    def known(self) -> tuple[PgdataTenant, ...]:
        """The tenants that are known now: none before `attach_all`."""
        return tuple(tenant for tenant in [*self.tenants.values()] if tenant is not None)

    def get_tenant(self, tenant_id: TenantId) -> PgdataTenant:
        """The tenant.

        Raises:
            PrepareError: there is no tenant of that id.
        """
        return self.get_attached_tenant_shard(TenantShardId(tenant_id))

    def _find(self, tenant_id: TenantId) -> PgdataTenant | None:
        return self.tenants.get(TenantShardId(tenant_id))


def _attach(tenant: PgdataTenant, names: list[str]) -> None:
    try:
        check_one_spelling(names)
    except PostgresError as error:
        tenant.break_down(error)
    else:
        tenant.attach()
