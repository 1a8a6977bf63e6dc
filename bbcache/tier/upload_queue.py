"""Archives that wait for their upload: bounded, and the newest LSN of a timeline wins."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from bbcache.outcomes import UploadResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.ids import Lsn, TenantId, TimelineId
    from bbcache.storage.index import EntryInfo


# An upload costs about a third of the processor time of a build. So it waits for the end of a
# burst of builds, but not for long.
_CALM_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Upload:
    """An archive to upload.

    Attributes:
        info: its ids, LSN and size.
        open_file: opens it.
        replaced_lsns: lower LSNs of the timeline, whose objects are removed after it is stored.
    """

    info: EntryInfo
    open_file: Callable[[], BinaryIO]
    replaced_lsns: frozenset[Lsn]

    @property
    def timeline(self) -> tuple[TenantId, TimelineId]:
        """The ids of its timeline."""
        return self.info.tenant_id, self.info.timeline_id


class UploadQueue:
    """Uploads that wait, the oldest first, and those that run. Thread-safe.

    An upload is given out once none was offered for a moment, or after half a second.

    Args:
        capacity: how many may wait.
        settle: called without the lock for each upload that falls out.
    """

    def __init__(self, capacity: int, settle: Callable[[Upload, UploadResult], None]) -> None:
        self._capacity = capacity
        self._settle = settle
        self._changed = threading.Condition()  # guards the rest
        self._waiting: dict[tuple[TenantId, TimelineId], Upload] = {}
        self._offered_s: dict[tuple[TenantId, TimelineId], float] = {}  # when each began to wait
        self._last_offer_s = 0.0
        self._running: set[tuple[TenantId, TimelineId]] = set()
        self._closes_at_s: float | None = None  # by `time.monotonic`; None while open

    def __len__(self) -> int:
        """How many wait; takes no lock."""
        return len(self._waiting)

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closes_at_s is not None

    def put(self, upload: Upload) -> None:
        """Add an upload. Another one of its timeline that waits, or the oldest, may fall out."""
        with self._changed:
            fallen = self._put_locked(upload)
            self._changed.notify()
        for each, result in fallen:
            self._settle(each, result)

    def _put_locked(self, upload: Upload) -> list[tuple[Upload, UploadResult]]:
        if self.is_closing:
            return [(upload, UploadResult.DROPPED)]
        self._last_offer_s = now_s = time.monotonic()
        self._offered_s.setdefault(upload.timeline, now_s)
        other = self._waiting.get(upload.timeline)
        if other is not None:
            newer, older = sorted((upload, other), key=lambda each: each.info.lsn, reverse=True)
            if newer.info.lsn == older.info.lsn:
                newer, older = upload, other
            # The object of the older one is never written; those that it replaces are there.
            lsns = (newer.replaced_lsns | older.replaced_lsns) - {older.info.lsn}
            self._waiting[upload.timeline] = Upload(newer.info, newer.open_file, lsns)
            return [(older, UploadResult.SUPERSEDED)]
        self._waiting[upload.timeline] = upload
        if len(self._waiting) <= self._capacity:
            return []
        return [(self._pop_locked(next(iter(self._waiting))), UploadResult.DROPPED)]

    def take(self) -> Upload | None:
        """Wait for an upload whose timeline has none that runs; None once closed.

        Call `done` after it.
        """
        with self._changed:
            while True:
                if self.is_closing and (self._is_over_locked() or not self._waiting):
                    return None
                ready = (each for each in self._waiting if each not in self._running)
                timeline = next(ready, None)
                wait_s = None if timeline is None else self._wait_s_locked(timeline)
                if timeline is not None and wait_s == 0:
                    self._running.add(timeline)
                    return self._pop_locked(timeline)
                self._changed.wait(self._left_s_locked() if self.is_closing else wait_s)

    def done(self, upload: Upload) -> None:
        """Note that a taken upload has ended."""
        with self._changed:
            self._running.discard(upload.timeline)
            self._changed.notify_all()

    def pause(self, timeout_s: float) -> None:
        """Wait some seconds, or until `close` is called."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_closing, timeout_s)

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Wait until no upload waits or runs; False if time runs out."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._running), timeout_s)

    def close(self, timeout_s: float) -> None:
        """Take no more uploads; drop those that are not taken within `timeout_s` seconds."""
        with self._changed:
            closes_at_s = time.monotonic() + timeout_s
            if self._closes_at_s is None or closes_at_s < self._closes_at_s:
                self._closes_at_s = closes_at_s
            self._changed.notify_all()

    def drop_waiting(self) -> None:
        """Drop all uploads that wait."""
        with self._changed:
            fallen = list(self._waiting.values())
            self._waiting.clear()
            self._offered_s.clear()
            self._changed.notify_all()
        for each in fallen:
            self._settle(each, UploadResult.DROPPED)

    def _pop_locked(self, timeline: tuple[TenantId, TimelineId]) -> Upload:
        del self._offered_s[timeline]
        return self._waiting.pop(timeline)

    def _wait_s_locked(self, timeline: tuple[TenantId, TimelineId]) -> float:
        """How many seconds an upload still waits for the end of a burst."""
        if self.is_closing:
            return 0.0
        due_s = min(self._last_offer_s + _CALM_S, self._offered_s[timeline] + _LONGEST_WAIT_S)
        return max(0.0, due_s - time.monotonic())

    def _is_over_locked(self) -> bool:
        return self._closes_at_s is not None and time.monotonic() >= self._closes_at_s

    def _left_s_locked(self) -> float | None:
        if self._closes_at_s is None:
            return None
        return max(0.0, self._closes_at_s - time.monotonic())
