"""The order of the requests of a cache: which one is next, and which ones fall out.

The *line* has what can run: first the requests that callers wait for, then the others. A
request whose LSN is not reached goes *behind* the line. Workers look at what is behind when
nothing else can run, and once after each run.

Memory only: no lock, no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from bbcache.outcomes import SkipReason
from bbcache.prepare.request import most_likely
from bbcache.storage.index import make_place

if TYPE_CHECKING:
    from bbcache.ids import Lsn
    from bbcache.prepare.request import Request

_MOST_LSNS: Final = 16  # of one timeline in the line that no caller waits for


class Line:
    """Requests that wait, and those that run. Every call needs the queue's lock, but `len`.

    A KeyboardInterrupt may end a step of a caller anywhere. So a request is added to its new
    part before it is removed from the old one, and enters `fallen` before it is removed: an
    interrupt between the two loses no request.

    Args:
        capacity: how many timelines may have requests in the line that no caller waits for;
            and how many requests may be behind it that `send_prepare` has asked for, or that
            their callers have given up.

    Attributes:
        running: the request that has the slot of its timeline, by timeline.
        fallen: the requests that have fallen out and are not settled, with the reason.
        is_open: whether workers may take requests that no caller waits for.
        is_open_for_fills: whether workers may take requests that callers wait for.
    """

    def __init__(self, capacity: int) -> None:
        self.running: dict[bytes, Request] = {}
        self.fallen: dict[Request, SkipReason] = {}
        self.is_open = self.is_open_for_fills = False
        self._capacity = capacity
        self._awaited: dict[bytes, Request] = {}  # what callers wait for, by place
        self._unawaited: dict[bytes, dict[Lsn, Request]] = {}  # the rest of the line, by timeline
        self._behind: dict[bytes, Request] = {}  # by place
        self._polled: set[Request] = set()  # of these, what workers look at
        self._owes_look = False  # whether what is behind has the next turn
        self._owes_turn = False  # whether what no caller waits for has the next turn in the line
        self._lowest_next: set[bytes] = set()  # timelines whose lowest LSN has their next turn

    def __len__(self) -> int:
        """How many requests wait; safe without the lock, since a list is copied in one step."""
        unawaited = sum(map(len, list(self._unawaited.values())))
        return unawaited + len(self._awaited) + len(self._behind)

    @property
    def is_empty(self) -> bool:
        """Whether no request waits, runs or is to be settled."""
        return not (len(self) or self.running or self.fallen)

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
        place, lsns = make_place(key, lsn), self._unawaited.get(key, {})
        found = [self.running.get(key), lsns.get(lsn)]
        found += [requests.get(place) for requests in (self._awaited, self._behind)]
        return [each for each in found if each is not None and each.lsn == lsn]

    def add(self, request: Request) -> None:
        """Add a request that no caller waits for; one that is superfluous or too many falls out.

        A newer LSN makes an older one superfluous when it is known to be reached, no sooner.
        """
        lsns = self._unawaited.get(request.key)
        if self._is_covered(request):
            self.fallen[request] = SkipReason.COALESCED
        elif lsns is None and len(self._unawaited) >= self._capacity:
            self.fallen[request] = SkipReason.QUEUE_FULL
        else:
            replaced = None if lsns is None else lsns.get(request.lsn)
            if replaced is not None:  # a rebuild
                self.fallen[replaced] = SkipReason.COALESCED
            self.line_up(request)
            self._trim(request.key)

    def adopt(self, request: Request, fill: Request) -> None:
        """Make a request that a fill has joined do what the fill would."""
        if not request.is_seen and self._awaited.get(request.place) is not request:
            self.line_up(request)
        request.must_build |= fill.must_build
        request.disk_failure = request.disk_failure or fill.disk_failure
        if request.is_rebuild:  # it need not find the shard, nor insist on the tip
            request.tenant_shard_id = fill.tenant_shard_id

    def line_up(self, request: Request) -> None:
        """Put a request in the part of the line where it belongs."""
        if request.call.is_awaited:
            self._awaited[request.place] = request
            self._drop_unawaited(request)
        elif request.key in self._unawaited:
            self._unawaited[request.key][request.lsn] = request
        else:
            self._unawaited[request.key] = {request.lsn: request}
        if self._behind.get(request.place) is request:
            del self._behind[request.place]

    def may_give_up(self, request: Request) -> bool:
        """Whether `give_up` would change anything."""
        waiting = (self._awaited.get(request.place), self._behind.get(request.place))
        return request in waiting and not request.call.is_awaited

    def give_up(self, request: Request) -> None:
        """Move a request that its last caller has left.

        One that `send_prepare` has asked for too waits with its like. Another one goes behind
        the line, and does not wait for its LSN.
        """
        if self._awaited.get(request.place) is request:
            if request.is_sent:
                self.line_up(request)
                del self._awaited[request.place]
                self._trim(request.key)
            else:
                self._behind[request.place] = request
                del self._awaited[request.place]
                self._bound_behind(request)
        elif not request.is_sent and request.is_seen and request in self._idle():
            self.fallen[request] = SkipReason.CANCELLED
            del self._behind[request.place]

    def take(self) -> Request | None:
        """Take the first of the line; but every other time one whose LSN was not reached.

        One from the line gets the slot of its timeline, one from behind does not.
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
        """Whether another request can run if this one, which is taken, goes behind."""
        return self._first_in_line(request) is not None

    def postpone(self, request: Request) -> None:
        """Put a taken request behind what can run, and free the slot of its timeline."""
        request.is_behind = True
        if request in self._polled:
            self._polled.discard(request)
            return
        if not self._behind:
            self._owes_look = False  # this one was just looked at
        self._free(request)
        self._behind[request.place] = request
        self._bound_behind(request)

    def start(self, request: Request) -> bool:
        """Take the timeline's slot for the build of a taken request whose LSN is reached.

        Requests at older LSNs that no caller waits for fall out.

        Returns:
            False where another request has the slot: then this one is in the line again.
        """
        if request in self._polled:
            self._polled.discard(request)
            if request.key in self.running:
                self.line_up(request)
                return False
            del self._behind[request.place]
            self.running[request.key] = request
        request.is_reached = True
        waiting = [*self._unawaited.get(request.key, {}).values(), *self._idle()]
        for each in waiting:
            if each.key == request.key and each.lsn < request.lsn:
                self.fallen[each] = SkipReason.COALESCED
                self._withdraw(each)
        return True

    def release(self, request: Request) -> None:
        """Let go of a taken request, which has ended."""
        if self.running.get(request.key) is request:
            self._free(request)
        elif request in self._polled:
            self._polled.discard(request)
            self._withdraw(request)

    def clear(self, reason: SkipReason) -> None:
        """Let every request that waits fall out."""
        unawaited = [each for lsns in self._unawaited.values() for each in lsns.values()]
        for each in (*unawaited, *self._awaited.values(), *self._behind.values()):
            self.fallen[each] = reason
        self._unawaited.clear()
        self._awaited.clear()
        self._behind.clear()

    def _is_covered(self, request: Request) -> bool:
        """Whether another request makes superfluous one that is to be added."""
        running = self.running.get(request.key)
        # A running prepare may have seen, and relied on, the very archive that has been found
        # bad since: it does not cover a rebuild. And a rebuild may end where a prepare does not.
        if running is not None and running.is_reached and running.lsn > request.lsn:
            return not request.is_rebuild
        for other in self.find(request.key, request.lsn):
            if other is not running if request.is_rebuild else not other.is_rebuild:
                other.is_sent = True
                if self._behind.get(other.place) is other and not other.is_seen:
                    self.line_up(other)
                return True
        return False

    def _run(self, request: Request) -> None:
        """Give a request of the line the slot of its timeline."""
        request.is_seen = self._owes_look = True
        request.is_first = self._awaited.get(request.place) is request
        self._withdraw(request)
        self.running[request.key] = request
        if request.is_first:
            return
        self._owes_turn = False
        if request.key in self._unawaited:  # the rest of it goes behind other timelines
            self._unawaited[request.key] = self._unawaited.pop(request.key)
            self._lowest_next ^= {request.key}
        else:
            self._lowest_next.discard(request.key)

    def _free(self, request: Request) -> None:
        """Free the slot of a timeline.

        A request that went first and has built nothing gives the next turn to the others.
        """
        self._owes_turn |= request.is_first and not request.is_reached
        del self.running[request.key]

    def _first_in_line(self, freed: Request | None = None) -> Request | None:
        """The first request that can run where `freed` has no slot."""
        is_free = {None, freed}
        awaited = next(
            (each for each in self._awaited.values() if self.running.get(each.key) in is_free), None
        )
        if awaited is not None and not self._owes_turn:
            return awaited
        for key, lsns in self._unawaited.items() if self.is_open else ():
            if self.running.get(key) in is_free:
                behind = (each for each in self._behind.values() if each.key == key)
                return most_likely(lsns.values(), behind, is_lowest_next=key in self._lowest_next)
        return awaited

    def _first_behind(self, *, is_ahead: bool = False) -> Request | None:
        """The first request behind the line that a worker can look at.

        Args:
            is_ahead: whether it must be the next to be reached of its timeline.
        """
        ahead = [r for r in self._behind.values() if is_ahead and r.waiting_since_s is not None]
        lowest = {r.key: r for r in sorted(ahead, key=lambda r: r.lsn, reverse=True)}
        for request in ahead if is_ahead else self._behind.values():
            is_free = request not in self._polled and request.key not in self.running
            if is_free and lowest.get(request.key, request) is request:
                return request
        return None

    def _withdraw(self, request: Request) -> None:
        """Take out a request that waits."""
        for requests in (self._awaited, self._behind):
            if requests.get(request.place) is request:
                del requests[request.place]
        self._drop_unawaited(request)

    def _drop_unawaited(self, request: Request) -> None:
        lsns = self._unawaited.get(request.key, {})
        if lsns.get(request.lsn) is request:
            if len(lsns) > 1:
                del lsns[request.lsn]
            else:
                del self._unawaited[request.key]

    def _trim(self, key: bytes) -> None:
        """Of too many LSNs of a timeline the one in the middle falls out.

        It is neither the newest one nor the first one that will be reached.
        """
        lsns = self._unawaited.get(key, {})
        if len(lsns) > _MOST_LSNS:
            lsn = sorted(lsns)[len(lsns) // 2]
            self.fallen[lsns[lsn]] = SkipReason.COALESCED
            del lsns[lsn]

    def _idle(self) -> list[Request]:
        """What is behind the line, and neither a caller waits for it nor a worker looks at it."""
        behind = self._behind.values()
        return [r for r in behind if not (r.call.is_awaited or r in self._polled)]

    def _bound_behind(self, added: Request) -> None:
        """Of too many behind the line, the highest LSN of the timeline with the most falls out.

        What `send_prepare` has asked for, and what callers have given up, are counted apart.
        """
        idle = [each for each in self._idle() if each.is_sent == added.is_sent]
        if len(idle) <= self._capacity:
            return
        counts = Counter(each.key for each in idle)
        least_likely = max(idle, key=lambda each: (counts[each.key], each.lsn))
        self.fallen[least_likely] = SkipReason.QUEUE_FULL
        del self._behind[least_likely.place]
