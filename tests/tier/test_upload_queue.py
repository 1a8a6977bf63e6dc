"""The queue of uploads: bounded, the newest LSN of a timeline wins, each offer is settled once."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from support.cache_helpers import DEADLINE_S, Worker

from bbcache import EntryInfo, Lsn, TenantId, TimelineId
from bbcache.outcomes import UploadResult
from bbcache.tier.upload_queue import Upload, UploadQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

TENANT = TenantId(b"t" * 16)


class Settled:
    """A queue that keeps what falls out."""

    def __init__(self, capacity: int = 10) -> None:
        self.fallen: list[tuple[int, UploadResult]] = []
        self.queue = UploadQueue(
            capacity, lambda upload, result: self.fallen.append((upload.info.lsn, result))
        )

    def put(self, lsn: int, timeline: int = 0, replaced: Iterable[int] = ()) -> None:
        """Offer an archive."""
        info = EntryInfo(TENANT, TimelineId(bytes([timeline]) * 16), Lsn(lsn), 1)
        self.queue.put(Upload(info, io.BytesIO, frozenset(map(Lsn, replaced))))

    def take(self) -> Upload:
        """The next upload."""
        upload = self.queue.take()
        assert upload is not None
        return upload


def test_the_newest_lsn_of_a_timeline_wins() -> None:
    """It keeps the turn, and removes also what the other one was to remove, but not that one."""
    settled = Settled()
    settled.put(2, replaced=[1])
    settled.put(5, timeline=1)
    settled.put(3, replaced=[2])
    settled.put(2)
    assert settled.fallen == [(2, UploadResult.SUPERSEDED)] * 2
    first, second = settled.take(), settled.take()
    assert (first.info.lsn, set(first.replaced_lsns)) == (3, {Lsn(1)})
    assert second.info.lsn == 5


def test_one_too_many_drops_the_oldest() -> None:
    """The queue keeps its bound, whatever hangs behind it."""
    settled = Settled(capacity=2)
    for timeline in range(4):
        settled.put(timeline + 1, timeline)
    assert settled.fallen == [(1, UploadResult.DROPPED), (2, UploadResult.DROPPED)]
    assert len(settled.queue) == 2


def test_uploads_of_one_timeline_take_turns() -> None:
    """So a lower LSN is never written after the deletion that a higher one has made."""
    settled = Settled()
    settled.put(1)
    first = settled.take()
    settled.put(2, replaced=[1])
    settled.put(7, timeline=1)
    assert settled.take().info.lsn == 7
    waiting = Worker(settled.take)
    settled.queue.done(first)
    second = waiting.result()
    assert isinstance(second, Upload)
    assert second.info.lsn == 2


def test_a_close_lets_what_waits_be_taken_until_its_time_is_up() -> None:
    """Afterwards nothing is taken, what waits is dropped, and offers are dropped at once."""
    settled = Settled()
    for timeline in range(3):
        settled.put(timeline + 1, timeline)
    settled.queue.close(DEADLINE_S)
    settled.put(9)
    assert settled.take().info.lsn == 1
    settled.queue.close(0)
    assert settled.queue.take() is None
    settled.queue.drop_waiting()
    assert settled.fallen == [(lsn, UploadResult.DROPPED) for lsn in (9, 2, 3)]


def test_a_thread_that_waits_ends_with_the_close() -> None:
    """It waits for an upload, not for time."""
    settled = Settled()
    waiting = Worker(settled.queue.take)
    settled.queue.close(DEADLINE_S)
    assert waiting.result() is None
