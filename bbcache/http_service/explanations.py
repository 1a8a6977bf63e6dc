"""Explanations over HTTP, for which no client waits long."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Final

from bbcache.cache import BasebackupCache
from bbcache.explanation import Explanation, HostAnswer
from bbcache.ids import TenantId, TimelineId

_MOST_ASKED: Final = 4  # calls of the host at once, each in a thread of its own
_TIMEOUT_S: Final = 1.0


class Explanations:
    """Explains timelines, also where the host does not answer. Thread-safe.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: BasebackupCache) -> None:
        self._cache = cache
        self._slots = threading.BoundedSemaphore(_MOST_ASKED)

    def explain(self, tenant_id: TenantId, timeline_id: TimelineId) -> Explanation:
        """Explain a timeline; after a second without what the host and the disk know."""
        explained: list[Explanation] = []
        is_over = threading.Event()

        def ask() -> None:
            try:
                explained.append(self._cache.explain(tenant_id, timeline_id))
            finally:
                self._slots.release()
                is_over.set()

        if self._slots.acquire(blocking=False):  # else too many calls hang already
            threading.Thread(target=ask, name="bbcache-http-why", daemon=True).start()
            is_over.wait(_TIMEOUT_S)
        if explained:
            return explained[0]
        known = self._cache.explain(tenant_id, timeline_id, memory_only=True)
        return replace(known, host=HostAnswer(problem="the host did not answer within 1 s"))
