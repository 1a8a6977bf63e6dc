"""One clean-up step: remove the entries that their timelines have outgrown.

Unknown is not gone: wherever the host cannot say, the entries stay, so that a
restart, with its tenants still attaching, never throws the cache away.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bbcache.errors import NotReadyError
from bbcache.host import TenantState
from bbcache.index import split_key
from bbcache.store import hint_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.activity import Activity
    from bbcache.host import Tenant, TenantManager, Timeline
    from bbcache.ids import TenantId, TimelineId
    from bbcache.index import Entry, Index
    from bbcache.shelf import Shelf

log = logging.getLogger(__name__)


class Cleaner:
    """Runs clean-up steps. Thread-safe: two steps at once do no harm.

    Args:
        tenants: the host, asked without any lock.
        index: the entries.
        shelf: removes them.
        activity: knows of a step under way.
    """

    def __init__(
        self, tenants: TenantManager, index: Index, shelf: Shelf, activity: Activity
    ) -> None:
        self._tenants = tenants
        self._index = index
        self._shelf = shelf
        self._activity = activity

    def step(self) -> None:
        """Remove what is outgrown, then see to parked files, strays and quarantine."""
        with self._activity.under_way():
            try:
                self._shelf.ensure_home()
            except OSError as error:
                log.error("clean-up cannot use the cache directory: %s%s", error, hint_for(error))  # noqa: TRY400 - no news in the traceback
                return
            # Before the host is asked: an entry born meanwhile is not judged.
            entries = self._index.snapshot()
            removed = sum(self._shelf.discard(entry) for entry in self._outgrown(entries))
            if removed:
                log.info("clean-up removed %d of %d basebackups", removed, len(entries))
            try:
                self._shelf.upkeep()
            except OSError as error:
                log.warning("clean-up cannot look at the directory: %s%s", error, hint_for(error))

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
                yield from _outgrown_of_tenant(attached, tenant_id, held)
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
        except Exception:
            log.exception("clean-up keeps everything: the tenants cannot be listed")
            return None
        return found


def _outgrown_of_tenant(
    attached: list[Tenant], tenant_id: TenantId, held: list[tuple[TimelineId, Entry]]
) -> Iterator[Entry]:
    """Of one tenant's entries those that all its attached shards zero have outgrown."""
    try:
        views = [_timelines_of(tenant) for tenant in attached]
    except Exception:
        log.exception("clean-up keeps the entries of tenant %s: its host raised", tenant_id)
        return
    for timeline_id, entry in held:
        try:
            if all(
                view is not None and _has_passed(view.get(timeline_id), entry) for view in views
            ):
                yield entry
        except Exception:
            log.exception("clean-up keeps %s: its host raised", entry)


def _timelines_of(tenant: Tenant) -> dict[TimelineId, Timeline] | None:
    """The tenant's timelines; None where it is not active, so that they are unknown."""
    if tenant.current_state() is not TenantState.ACTIVE:
        return None
    timelines = {timeline.timeline_id: timeline for timeline in tenant.list_timelines()}
    # A tenant that stops while it lists may have listed too few.
    return timelines if tenant.current_state() is TenantState.ACTIVE else None


def _has_passed(timeline: Timeline | None, entry: Entry) -> bool:
    return timeline is None or timeline.get_last_record_lsn() > entry.lsn
