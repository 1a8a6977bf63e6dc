"""Find out why a timeline has an entry, or has none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from bbcache import lifecycle
from bbcache.errors import printable, safe_str
from bbcache.explanation import NOT_ASKED, BackingOff, Explanation, HeldEntry, HostAnswer
from bbcache.host import attached_shards_zero
from bbcache.ids import Lsn
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.history import History
    from bbcache.host import Tenant, TenantManager
    from bbcache.ids import TenantId, TimelineId
    from bbcache.prepare.backoff import Backoff
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.storage.evictor import Evictor
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry, Index

_MOST_OUTCOMES: Final = 50  # of one timeline


@dataclass(eq=False)
class Explainer:
    """Explains one timeline at a time. Thread-safe.

    It asks the parts of the cache one after the other, so a change meanwhile may show in one
    fact and not in another. The host and the disk are asked in the caller's thread, without
    any lock.
    """

    tenants: TenantManager
    index: Index
    evictor: Evictor
    store: Store
    queue: PrepareQueue
    backoff: Backoff
    history: History
    notes: Callable[[], tuple[str, ...]]

    def explain(
        self, tenant_id: TenantId, timeline_id: TimelineId, *, memory_only: bool
    ) -> Explanation:
        """See `BasebackupCache.explain`."""
        key = make_key(tenant_id, timeline_id)
        entry = self.index.newest(key)
        host = NOT_ASKED if memory_only else self._ask_host(tenant_id, timeline_id)
        return Explanation(
            tenant_id=tenant_id,
            timeline_id=timeline_id,
            at=datetime.now(UTC),
            entry=None if entry is None else self._describe(entry, memory_only=memory_only),
            standing=self.evictor.standing(key),
            under_way=self.queue.under_way(key),
            backing_off=self._backing_off(key),
            host=host,
            history_since=self.history.since(),
            outcomes=self.history.of(key, _MOST_OUTCOMES),
            notes=self.notes(),
        )

    def _describe(self, entry: Entry, *, memory_only: bool) -> HeldEntry:
        written_s = None if memory_only else self.store.written_s(entry.key, entry.lsn)
        age_s = None if written_s is None else max(0.0, time.time() - written_s)
        return HeldEntry(entry.lsn, entry.size_bytes, age_s, entry.is_verified)

    def _backing_off(self, key: bytes) -> tuple[BackingOff, ...]:
        found = []
        for what in self.backoff.beginning_with(key):
            refusal = self.backoff.refusal(what, "")
            if refusal is not None:
                lsn = Lsn.of_valid(int.from_bytes(what[len(key) :], "big")) if what != key else None
                until = datetime.fromisoformat(refusal.until)
                cause = refusal.cause.partition("\n")[0]
                found.append(BackingOff(lsn, refusal.failure_count, until, cause))
        return tuple(found)

    def _ask_host(self, tenant_id: TenantId, timeline_id: TimelineId) -> HostAnswer:
        try:
            with lifecycle.callback():
                shards = attached_shards_zero(self.tenants)
                tenant = next(
                    (each for shard, each in shards if shard.tenant_id == tenant_id), None
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            return HostAnswer(problem=_raised(error))
        if tenant is None:
            return HostAnswer(problem="shard zero of the tenant is not attached here")
        return _ask_tenant(tenant, timeline_id)


def _ask_tenant(tenant: Tenant, timeline_id: TimelineId) -> HostAnswer:
    state = is_enabled = None
    try:
        with lifecycle.callback():
            state = tenant.current_state().value
            is_enabled = bool(tenant.basebackup_cache_enabled())
            tip = tenant.get_timeline(timeline_id).get_last_record_lsn()
            return HostAnswer(state, is_enabled, Lsn(tip))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a host may raise anything
        return HostAnswer(state, is_enabled, problem=_raised(error))


def _raised(error: BaseException) -> str:
    return f"it raised {printable(safe_str(error).partition(chr(10))[0])}"
