"""The entries that are never evicted, because their tenants say so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from bbcache import lifecycle
from bbcache.errors import NotReadyError, safe_str
from bbcache.host import attached_shards_zero

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Tenant, TenantManager
    from bbcache.ids import TenantId
    from bbcache.storage.index import Index
    from bbcache.storage.locked_policy import LockedPolicy

_SHARE: Final = 2  # pins may take a half of each limit

log = logging.getLogger(__name__)


class Pins:
    """Asks tenants for their pins, and spares what they name. Thread-safe.

    Unknown keeps the pin: a tenant that raises keeps its last answer.

    Args:
        config: has the limits.
        index: the entries.
        policy: is told what to spare.

    Attributes:
        are_known: whether the host has said once what is pinned.
        keys: the timelines whose entries are spared; replaced as a whole, never changed.
        refused: those whose pins are refused, because they would take too much; likewise.
    """

    def __init__(
        self,
        config: BasebackupCacheConfig,
        index: Index,
        policy: LockedPolicy,
    ) -> None:
        self.are_known = False
        self.keys: frozenset[bytes] = frozenset()
        self.refused: frozenset[bytes] = frozenset()
        self._config = config
        self._index = index
        self._policy = policy
        self._answers: dict[TenantId, frozenset[bytes]] = {}  # replaced as a whole

    def ensure_known(self, tenants: TenantManager) -> None:
        """Ask for the pins unless they are known; for a thread of the cache, without any lock."""
        if self.are_known:
            return
        try:
            with lifecycle.callback():
                shards = list(attached_shards_zero(tenants))
                self.ask([(shard_id.tenant_id, tenant) for shard_id, tenant in shards], _warn)
        except NotReadyError:
            pass
        except BaseException as error:  # noqa: BLE001 - a host may raise anything
            _warn(error, "every pin")

    def ask(
        self,
        tenants: Iterable[tuple[TenantId, Tenant]],
        keep: Callable[[BaseException, str], None],
    ) -> None:
        """Ask every attached shard zero for its pins; call it without any lock.

        Args:
            tenants: all of them, by id.
            keep: is told of what a tenant has raised.
        """
        last, answers = self._answers, {}
        for tenant_id, tenant in tenants:
            pinned = getattr(tenant, "pinned_timelines", None)  # a check by `isinstance` takes 2 us
            if pinned is not None:
                try:
                    answers[tenant_id] = frozenset([tenant_id + each for each in pinned()])
                except BaseException as error:  # noqa: BLE001 - a host may raise anything
                    keep(error, f"the pins of tenant {tenant_id}")
                    answers[tenant_id] = last.get(tenant_id, frozenset())
        self._answers = answers
        self.are_known = True
        self._spare()

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to other limits from now on."""
        self._config = config
        self._spare()

    def _spare(self) -> None:
        """Accept pins up to half of each limit, those that were accepted before first."""
        wanted = frozenset[bytes]().union(*self._answers.values())
        if not (wanted or self.keys):
            return
        files = self._config.max_size_entries // _SHARE
        left_bytes = self._config.max_total_size_bytes // _SHARE
        accepted: list[bytes] = []
        for key in sorted(wanted, key=lambda key: (key not in self.keys, key)):
            entry = self._index.newest(key)
            size_bytes = 0 if entry is None else entry.size_bytes
            if len(accepted) < files and size_bytes <= left_bytes:
                accepted.append(key)
                left_bytes -= size_bytes
        self.keys = frozenset(accepted)
        self.refused = wanted - self.keys
        self._policy.pin(self.keys)
        if self.refused:
            log.warning(
                "%d of %d pinned timelines are refused: pins may take half of max_size_entries "
                "and of max_total_size_bytes\nhint: Pin fewer timelines, or raise the limits.",
                len(self.refused),
                len(wanted),
            )


def _warn(error: BaseException, what: str) -> None:
    log.warning("%s stays unknown: the host raised %s", what, safe_str(error))
