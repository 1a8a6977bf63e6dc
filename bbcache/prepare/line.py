"""The order of the requests of a cache: which one is next, and which ones fall out.

The *line* holds what can run: requests that callers wait for go before the others. A request
whose LSN is not reached goes *behind* the line. Workers look at the requests there when nothing
else can run, and once after each run.

Memory only: no lock, no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from bbcache.ids import ID_SIZE_BYTES
from bbcache.outcomes import SkipReason
from bbcache.prepare.fetch_line import FetchLine
from bbcache.storage.index import make_place

if TYPE_CHECKING:
    from bbcache.ids import Lsn
    from bbcache.prepare.request import Request

_MOST_LSNS: Final = 16  # of one timeline, among the requests that no caller waits for


class Line:
    """Requests that wait, and those that run. Every call but `len` needs the queue's lock.

    A KeyboardInterrupt may end a call anywhere. So a request is added to its new part before it
    is removed from the old one, and enters `fallen` before it is removed: no request is lost.

    Args:
        capacity: how many timelines may have requests in the line that no caller waits for.
            Likewise, how many requests of `send_prepare` may be behind the line, and how many
            that their callers have left.

    Attributes:
        running: by timeline, the request that has its slot.
        fetches: requests that the second tier is asked for; afterwards they enter the line.
        fallen: requests that have fallen out and are not settled, with the reason.
        is_open: whether workers may take requests that no caller waits for.
        is_open_for_fills: whether workers may take requests that callers wait for.
    """

    def __init__(self, capacity: int) -> None:
        self.running: dict[bytes, Request] = {}
        self.fetches = FetchLine()
        self.fallen: dict[Request, SkipReason] = {}
        self.is_open = self.is_open_for_fills = False
        self._capacity = capacity
        self._line: dict[bytes, Request] = {}  # by place, in the order of turns
        self._behind: dict[bytes, Request] = {}  # by place, in the order of turns
        self._polled: set[Request] = set()  # those behind that a worker looks at now
        self._owes_look = False  # the next turn is for the requests behind
        self._owes_turn = False  # the next turn in the line is for what no caller waits for
        self._lowest_next: set[bytes] = set()  # timelines whose next turn is for the lowest LSN

    def __len__(self) -> int:
        """How many requests wait; safe without the lock."""
        return len(self._line) + len(self._behind)

    @property
    def is_empty(self) -> bool:
        """Whether no request waits, runs or is to be settled."""
        return not (len(self) or self.running or self.fetches.requests or self.fallen)

    @property
    def behind_count(self) -> int:
        """How many requests are behind the line."""
        return len(self._behind)

    @property
    def has_unpolled(self) -> bool:
        """Whether a request is behind the line that no worker looks at."""
        return len(self._behind) > len(self._polled)

    def find(self, key: bytes, lsn: Lsn) -> list[Request]:
        """The requests at exactly `lsn`, waiting or running."""
        place = make_place(key, lsn)
        requests = (self._line, self._behind, self.fetches.requests)
        found = (self.running.get(key), *(each.get(place) for each in requests))
        return [each for each in found if each is not None and each.lsn == lsn]

    def of(self, key: bytes) -> list[Request]:
        """The requests of a timeline, the running one first."""
        running = [each for each in (self.running.get(key),) if each is not None]
        requests = (self.fetches.requests, self._line, self._behind)
        waiting = [request for each in requests for request in each.values()]
        return running + [each for each in waiting if each.key == key]

    def add(self, request: Request) -> None:
        """Add a request that no caller waits for, unless it is superfluous or one too many.

        A newer LSN makes an older one superfluous once it is known to be reached.
        """
        if self._is_covered(request):
            self.fallen[request] = SkipReason.COALESCED
        elif self._is_too_many(request):
            self.fallen[request] = SkipReason.QUEUE_FULL
        else:
            replaced = self._line.get(request.place)
            if replaced is not None:  # a rebuild
                self.fallen[replaced] = SkipReason.COALESCED
            self.line_up(request)
            self._trim(request.key)

    def adopt(self, request: Request, fill: Request) -> None:
        """Make a request that `fill`, of a caller, has joined do what `fill` would do."""
        if self.fetches.has(request) and not fill.must_build:
            self.fetches.adopt(request, fill)
        elif self.fetches.has(request):
            self.end_fetch(request)
        elif not request.is_seen:
            self.line_up(request)
        request.must_build |= fill.must_build
        request.disk_failure = request.disk_failure or fill.disk_failure
        if request.is_rebuild:  # no longer: it need not find the shard, nor insist on the tip
            request.tenant_shard_id = fill.tenant_shard_id

    def line_up(self, request: Request) -> None:
        """Put a request into the line; one that is there keeps its turn."""
        self._line[request.place] = request
        if self._behind.get(request.place) is request:
            del self._behind[request.place]

    def end_fetch(self, request: Request) -> None:
        """Let a request whose fetch gave nothing, or takes too long, become a build."""
        self.fetches.remove(request)
        if request.is_awaited or not (request.is_sent or request.is_warm):
            self.line_up(request)
            if not request.is_awaited:  # its callers have left
                self.give_up(request)
        elif request.is_sent:
            request.fetch_failure = None  # the build finds out for itself
            self.add(request)
        else:
            self.fallen[request] = SkipReason.NOT_FETCHED

    def claim(self, request: Request) -> bool:
        """Give a fetched request the slot of its timeline; False if it has lost its turn."""
        if not self.fetches.has(request) or request.key in self.running:
            return False
        self.running[request.key] = request
        request.is_reached = True
        self.fetches.remove(request)
        return True

    def unclaim(self, request: Request) -> None:
        """Let a request that could not be published after its fetch become a build."""
        request.is_reached = False
        self._free(request)
        self.end_fetch(request)

    def give_up(self, request: Request) -> None:
        """Move a request whose last caller has left; does nothing if it does not wait.

        If `send_prepare` asked for it too, it stays in the line with its like. Else it goes
        behind the line, and falls out there if its LSN is not reached.
        """
        if self.fetches.is_waiting(request) and not (request.is_sent or request.is_warm):
            self.end_fetch(request)
        elif self._line.get(request.place) is request:
            if request.is_sent:
                self._trim(request.key)
            else:
                self._behind[request.place] = request
                del self._line[request.place]
                self._bound_behind(request)
        elif not request.is_sent and request.is_seen and request in self._idle():
            self.fallen[request] = SkipReason.CANCELLED
            del self._behind[request.place]

    def take(self) -> Request | None:
        """Take the first request of the line; after each run, look at one from behind it first.

        A request of the line gets the slot of its timeline, one from behind does not.
        """
        if not self.is_open_for_fills:
            return None
        is_look, self._owes_look = self._owes_look, False
        behind = self._first_behind(is_ahead=True) if is_look else None
        request = None if behind is not None else self._first_in_line()
        if request is not None:
            self._run(request)
            return request
        behind = behind or self._first_behind()
        if behind is not None:
            behind.is_seen = True
            self._polled.add(behind)
            self._behind[behind.place] = self._behind.pop(behind.place)  # the last one now
        return behind

    def has_other(self, request: Request) -> bool:
        """Whether another request could run if this one, which is taken, went behind."""
        return self._first_in_line(request) is not None

    def postpone(self, request: Request) -> None:
        """Put a taken request behind the line, and free the slot of its timeline."""
        request.is_behind = True
        if request in self._polled:
            self._polled.discard(request)
            return
        if not self._behind:
            self._owes_look = False  # a worker has just looked at this one
        self._free(request)
        self._behind[request.place] = request
        self._bound_behind(request)

    def start(self, request: Request) -> bool:
        """Take the timeline's slot for a taken request, whose LSN is reached.

        Requests at older LSNs that no caller waits for fall out.

        Returns:
            False if another request has the slot: then this one is in the line again.
        """
        if request in self._polled:
            self._polled.discard(request)
            if request.key in self.running:
                self.line_up(request)
                return False
            del self._behind[request.place]
            self.running[request.key] = request
        request.is_reached = True
        for each in (*self._unawaited(request.key), *self._idle()):
            if each.key == request.key and each.lsn < request.lsn:
                self.fallen[each] = SkipReason.COALESCED
                self._withdraw(each)
        return True

    def release(self, request: Request) -> None:
        """Remove a taken request, which has ended."""
        if self.fetches.has(request):
            self.fetches.remove(request)
        if self.running.get(request.key) is request:
            self._free(request)
        elif request in self._polled:
            self._polled.discard(request)
            self._withdraw(request)

    def clear(self, reason: SkipReason) -> None:
        """Let every request that waits fall out."""
        waiting = (*self._line.values(), *self._behind.values(), *self.fetches.requests.values())
        self.fallen.update(dict.fromkeys(waiting, reason))
        self.fetches.clear()
        self._line.clear()
        self._behind.clear()

    def _is_covered(self, request: Request) -> bool:
        """Whether another request makes a new one superfluous."""
        running = self.running.get(request.key)
        # A running prepare may have relied on the very archive that a rebuild replaces, so it
        # covers no rebuild. And a rebuild may give up where an ordinary prepare does not.
        if running is not None and running.is_reached and running.lsn > request.lsn:
            return not request.is_rebuild
        for other in self.find(request.key, request.lsn):
            if other is not running if request.is_rebuild else not other.is_rebuild:
                other.is_sent = True
                if self._behind.get(other.place) is other and not other.is_seen:
                    self.line_up(other)
                return True
        return False

    def _is_too_many(self, request: Request) -> bool:
        """Whether a new request would be of one timeline too many."""
        timelines = {each.key for each in self._line.values() if not each.is_awaited}
        return request.key not in timelines and len(timelines) >= self._capacity

    def _run(self, request: Request) -> None:
        """Give a request of the line the slot of its timeline."""
        request.is_seen = self._owes_look = True
        request.is_first = request.is_awaited
        self._withdraw(request)
        self.running[request.key] = request
        if request.is_first:
            return
        self._owes_turn = False
        rest = self._unawaited(request.key)
        for each in rest:  # they go behind the other timelines
            self._line[each.place] = self._line.pop(each.place)
        if rest:
            self._lowest_next ^= {request.key}
        else:
            self._lowest_next.discard(request.key)

    def _free(self, request: Request) -> None:
        """Free the slot of a timeline.

        If an awaited request went first and built nothing, the next turn is for the others.
        """
        self._owes_turn |= request.is_first and not request.is_reached
        del self.running[request.key]

    def _first_in_line(self, freed: Request | None = None) -> Request | None:
        """The first request that can run if `freed` gives its slot up.

        Of the requests that callers wait for, the first one of the tenant with the fewest
        builds: so a tenant that asks for many delays another one by the end of one build.
        """
        is_free = {None, freed}
        can_run = [r for r in self._line.values() if self.running.get(r.key) in is_free]
        building = Counter(key[:ID_SIZE_BYTES] for key in self.running)
        awaited = min(
            (each for each in can_run if each.is_awaited),
            key=lambda each: building[each.key[:ID_SIZE_BYTES]],
            default=None,
        )
        if awaited is not None and not self._owes_turn:
            return awaited
        others = (each for each in can_run if self.is_open and not each.is_awaited)
        other = next(others, None)
        return awaited if other is None else self._most_likely(other.key)

    def _most_likely(self, key: bytes) -> Request:
        """Of the requests of a timeline in the line, the newest one whose LSN may be reached.

        An LSN above one that was not reached comes last, the lowest of these first; while there
        is one, every second turn is for the lowest LSN. So a flood of LSNs that are never
        reached, rising or falling, does not keep a good one from its turn.
        """
        waiting = self._unawaited(key)
        behind = (each for each in self._behind.values() if each.key == key)
        unreached = [each.lsn for each in behind if each.waiting_since_s is not None]
        bound = min(unreached, default=None)
        below = [each for each in waiting if bound is None or each.lsn < bound]
        if below and not (unreached and key in self._lowest_next):
            return max(below, key=lambda each: each.lsn)
        return min(waiting, key=lambda each: each.lsn)

    def _first_behind(self, *, is_ahead: bool = False) -> Request | None:
        """The first request behind the line that a worker can look at.

        Args:
            is_ahead: whether it must have the lowest LSN of those of its timeline.
        """
        ahead = [r for r in self._behind.values() if is_ahead and r.waiting_since_s is not None]
        lowest = {r.key: r for r in sorted(ahead, key=lambda r: r.lsn, reverse=True)}
        for request in ahead if is_ahead else self._behind.values():
            is_free = request not in self._polled and request.key not in self.running
            if is_free and lowest.get(request.key, request) is request:
                return request
        return None

    def _unawaited(self, key: bytes) -> list[Request]:
        """The requests of a timeline in the line that no caller waits for."""
        return [r for r in self._line.values() if r.key == key and not r.is_awaited]

    def _idle(self) -> list[Request]:
        """The requests behind the line that no caller waits for and no worker looks at."""
        behind = self._behind.values()
        return [r for r in behind if not (r.is_awaited or r in self._polled)]

    def _withdraw(self, request: Request) -> None:
        """Remove a request that waits."""
        for requests in (self._line, self._behind):
            if requests.get(request.place) is request:
                del requests[request.place]

    def _trim(self, key: bytes) -> None:
        """Drop the middle one of too many LSNs of a timeline.

        It is neither the newest one nor the first one that will be reached.
        """
        requests = sorted(self._unawaited(key), key=lambda each: each.lsn)
        if len(requests) > _MOST_LSNS:
            middle = requests[len(requests) // 2]
            self.fallen[middle] = SkipReason.COALESCED
            self._withdraw(middle)

    def _bound_behind(self, added: Request) -> None:
        """Of too many requests behind the line, drop the highest LSN of the largest timeline.

        Requests of `send_prepare` and those that their callers have left are counted apart.
        """
        idle = [each for each in self._idle() if each.is_sent == added.is_sent]
        if len(idle) <= self._capacity:
            return
        counts = Counter(each.key for each in idle)
        least_likely = max(idle, key=lambda each: (counts[each.key], each.lsn))
        self.fallen[least_likely] = SkipReason.QUEUE_FULL
        del self._behind[least_likely.place]
