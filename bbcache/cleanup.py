"""One clean-up step: remove the entries that their timelines have outgrown.

Unknown is not gone: wherever the host cannot say, the entries stay, so that a
restart, with its tenants still attaching, never throws the cache away.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from bbcache.errors import NotReadyError, text_of
from bbcache.host import TenantState
from bbcache.index import split_key
from bbcache.store import hint_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.activity import Activity
    from bbcache.host import Tenant, TenantManager, Timeline
    from bbcache.ids import TenantId, TimelineId
    from bbcache.index import Entry, Index
    from bbcache.metrics import Metrics
    from bbcache.shelf import Shelf

log = logging.getLogger(__name__)


class Cleaner:
    """Runs clean-up steps. Thread-safe: two steps at once do no harm.

    Args:
        tenants: the host, asked without any lock.
        index: the entries.
        shelf: removes them.
        metrics: counts failures.
        activity: knows of a step under way.
    """

    def __init__(
        self,
        tenants: TenantManager,
        index: Index,
        shelf: Shelf,
        metrics: Metrics,
        activity: Activity,
    ) -> None:
        self._tenants = tenants
        self._index = index
        self._shelf = shelf
        self._metrics = metrics
        self._activity = activity

    def step(self) -> None:
        """Remove what is outgrown, then see to parked files, strays and quarantine.

        Failures of the host and the disk are counted and logged; only a Ctrl-C in the
        main thread passes through.
        """
        with self._activity.under_way():
            if not self._try("use the cache directory", self._shelf.ensure_home):
                return
            # Before the host is asked: an entry born meanwhile is not judged.
            entries = self._index.snapshot()
            removed_count = sum(self._shelf.discard(entry) for entry in self._outgrown(entries))
            if removed_count:
                log.info("clean-up removed %d of %d basebackups", removed_count, len(entries))
            self._try("look after the cache directory", self._shelf.upkeep)

    def _try(self, doing: str, what: Callable[[], None]) -> bool:
        try:
            what()
        except OSError as error:
            self._metrics.cleanup_failed()
            log.error("clean-up cannot %s: %s%s", doing, error, hint_for(error))  # noqa: TRY400 - no news in the traceback
            return False
        return True

    def _keep(self, error: BaseException, what: str) -> None:
        """The host has raised: unknown is not gone."""
        if isinstance(error, KeyboardInterrupt) and _is_main_thread():
            raise error
        self._metrics.cleanup_failed()
        log.error("clean-up keeps %s: the host raised %s", what, text_of(error), exc_info=error)

    def _outgrown(self, entries: list[Entry]) -> Iterator[Entry]:
        tenants = self._ask_tenants() if entries else None
        if tenants is None:
            return
        by_tenant: dict[TenantId, list[tuple[TimelineId, Entry]]] = {}
        for entry in entries:
            tenant_id, timeline_id = split_key(entry.key)
            by_tenant.setdefault(tenant_id, []).append((timeline_id, entry))
        for tenant_id, held in by_tenant.items():
            attached = tenants.get(tenant_id)
            if attached:
                yield from self._outgrown_of_tenant(attached, tenant_id, held)
            else:  # no row, or none that is attached
                yield from (entry for _, entry in held)

    def _ask_tenants(self) -> dict[TenantId, list[Tenant]] | None:
        """The attached shards zero of each tenant; None where the host cannot say."""
        found: dict[TenantId, list[Tenant]] = {}
        try:
            for shard_id, tenant in self._tenants.list():
                if shard_id.is_shard_zero and tenant is not None:
                    found.setdefault(shard_id.tenant_id, []).append(tenant)
        except NotReadyError:
            log.debug("clean-up keeps everything: the tenants are not known yet")
            return None
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            self._keep(error, "everything")
            return None
        return found

    def _outgrown_of_tenant(
        self,
        attached: list[Tenant],
        tenant_id: TenantId,
        held: list[tuple[TimelineId, Entry]],
    ) -> Iterator[Entry]:
        """Of one tenant's entries those that all its attached shards zero have outgrown."""
        try:
            views = [_timelines_of(tenant) for tenant in attached]
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            self._keep(error, f"the entries of tenant {tenant_id}")
            return
        for timeline_id, entry in held:
            try:
                is_outgrown = all(_has_passed(view, timeline_id, entry) for view in views)
            except BaseException as error:  # noqa: BLE001 - a host may raise anything
                self._keep(error, str(entry))
                continue
            if is_outgrown:
                yield entry


def _timelines_of(tenant: Tenant) -> dict[TimelineId, Timeline] | None:
    """The tenant's timelines; None where it is not active, so that they are unknown."""
    if tenant.current_state() is not TenantState.ACTIVE:
        return None
    timelines = {timeline.timeline_id: timeline for timeline in tenant.list_timelines()}
    # A tenant that stops while it lists may have listed too few.
    return timelines if tenant.current_state() is TenantState.ACTIVE else None


def _has_passed(
    timelines: dict[TimelineId, Timeline] | None, timeline_id: TimelineId, entry: Entry
) -> bool:
    """Whether one shard zero is sure that the entry is of no more use."""
    if timelines is None:
        return False
    timeline = timelines.get(timeline_id)
    return timeline is None or timeline.get_last_record_lsn() > entry.lsn


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
