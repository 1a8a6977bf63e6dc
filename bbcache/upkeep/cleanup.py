"""One clean-up step: remove the entries that their timelines have outgrown.

Unknown is not gone: an entry stays if the host cannot say whether it is wanted. So a restart,
while tenants still attach, never empties the cache.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bbcache import lifecycle
from bbcache.errors import BrokenError, NotReadyError, safe_str
from bbcache.host import TenantState, attached_shards_zero
from bbcache.ids import ID_SIZE_BYTES
from bbcache.outcomes import RemovalReason
from bbcache.storage.disk_errors import hint_for
from bbcache.storage.index import LSN_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.history import History
    from bbcache.host import Tenant, TenantManager
    from bbcache.ids import TenantId
    from bbcache.metrics import Metrics
    from bbcache.pacer import Pacer
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.evictor import Evictor
    from bbcache.storage.index import Entry, Index
    from bbcache.storage.pins import Pins
    from bbcache.storage.saved_habits import SavedHabits
    from bbcache.work_counter import WorkCounter

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Cleaner:
    """Runs clean-up steps. Thread-safe: two steps may run at once.

    Attributes:
        tenants: the host, called without any lock.
        index: the entries.
        catalog: removes them.
        evictor: shrinks the cache to its limits.
        pins: the entries that are never evicted.
        saved_habits: saves what the policy of eviction has learned.
        metrics: counts failures.
        history: records removed entries.
        work_counter: counts a step under way.
        pacer: pauses a step for reads.
    """

    tenants: TenantManager
    index: Index
    catalog: Catalog
    evictor: Evictor
    pins: Pins
    saved_habits: SavedHabits
    metrics: Metrics
    history: History
    work_counter: WorkCounter
    pacer: Pacer
    _generation: int = field(init=False, default_factory=lifecycle.generation)

    def step(self) -> None:
        """Remove outgrown entries, then let the catalog do its upkeep.

        Failures of the host and the disk are counted and logged. Only a Ctrl-C in the main
        thread is raised.
        """
        with self.work_counter.under_way():
            self._step()
        self.work_counter.changed()

    def save_habits(self) -> None:
        """Save what the policy of eviction has learned; failures are counted and logged."""
        self._try("save the habits of timelines", self.saved_habits.save)

    def _step(self) -> None:
        if not self._try("use the cache directory", self.catalog.ensure_directory):
            return
        if self.catalog.read_only_reason is not None:
            return
        entries = self.index.by_key()  # before the host is asked: later entries are not judged
        entry_count = len(entries)
        with lifecycle.callback():
            outgrown = self._outgrown(entries)
        removed_count = sum(map(self._remove, outgrown))
        if removed_count:
            log.info("clean-up removed %d of %d basebackups", removed_count, entry_count)
        self._try("examine the cache directory", self.catalog.upkeep)
        self._try("shrink the cache", self.evictor.step)
        self.metrics.refresh()

    def _remove(self, entry: Entry) -> bool:
        if not self.catalog.discard(entry):
            return False
        self.metrics.removals[RemovalReason.OUTGROWN].inc()
        self.history.add(entry.key, entry.lsn, RemovalReason.OUTGROWN)
        return True

    def _try(self, doing: str, what: Callable[[], None]) -> bool:
        try:
            what()
        except OSError as error:
            self.metrics.cleanup_errors.inc()
            log.error("clean-up cannot %s: %s%s", doing, error, hint_for(error))  # noqa: TRY400 - the traceback says nothing more
            return False
        return True

    def _outgrown(self, entries: dict[bytes, Entry]) -> list[Entry]:
        """The entries that no attached shard zero of their tenants wants.

        Args:
            entries: all of them, by key; the wanted ones are removed from it.
        """
        ids: list[TenantId] = []
        tenants: list[Tenant] = []
        try:
            # Two lists, since tens of thousands of new pairs would start the garbage collector.
            for shard_id, tenant in self.pacer.paced(attached_shards_zero(self.tenants)):
                ids.append(shard_id.tenant_id)
                tenants.append(tenant)
        except NotReadyError:
            log.debug("clean-up keeps everything: the tenants are not known yet")
            return []
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            self._keep(error, "everything")
            return []
        self.pins.ask(self.pacer.paced(zip(ids, tenants, strict=True)), self._keep)
        if not entries:
            return []
        unknown = {
            bytes(tenant_id)  # a TenantId never equals the first half of a key
            for tenant_id, tenant in self.pacer.paced(zip(ids, tenants, strict=True))
            if not self._take_wanted(tenant_id, tenant, entries)
        }
        left = self.pacer.paced(entries.values())
        return [entry for entry in left if entry.key[:ID_SIZE_BYTES] not in unknown]

    def _take_wanted(
        self, tenant_id: TenantId, tenant: Tenant, entries: dict[bytes, Entry]
    ) -> bool:
        """Remove from `entries` those that one shard zero still wants.

        The loop may run hundreds of thousands of times, so it calls only the host and the clock.

        Returns:
            False if the shard cannot say, so all entries of its tenant must stay.
        """
        pacer, clock, take = self.pacer, self.pacer.clock, entries.pop  # as `paced`, but faster
        try:
            if tenant.current_state() is not TenantState.ACTIVE:
                return False
            for timeline in tenant.list_timelines():
                if clock() >= pacer.due_s:
                    pacer.pause()
                key = tenant_id + timeline.timeline_id
                entry = take(key, None)
                if entry is not None:
                    try:
                        if entry.packed >> LSN_SHIFT < timeline.get_last_record_lsn():
                            entries[key] = entry
                    except BaseException as error:  # noqa: BLE001 - a host may raise anything
                        self._keep(error, str(entry))
            # The list may be short if the tenant has stopped meanwhile.
            return tenant.current_state() is TenantState.ACTIVE
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            self._keep(error, f"the entries of tenant {tenant_id}")
            return False

    def _keep(self, error: BaseException, what: str) -> None:
        """Count and log what the host has raised; raise a Ctrl-C, and all in a forked child."""
        is_main_thread = threading.current_thread() is threading.main_thread()
        is_ctrl_c = isinstance(error, KeyboardInterrupt) and is_main_thread
        if is_ctrl_c or self._generation != lifecycle.generation():
            raise error
        if isinstance(error, BrokenError):  # the host has reported it
            log.debug("clean-up keeps %s: %s", what, error)
            return
        self.metrics.cleanup_errors.inc()
        log.error("clean-up keeps %s: the host raised %s", what, safe_str(error), exc_info=error)
