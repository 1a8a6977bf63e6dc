"""Why a timeline has an entry, or has none: facts of one moment, as values and as one text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Self

from bbcache.eviction.habits import Habits
from bbcache.history import PastOutcome
from bbcache.human_units import duration, rough_duration, size
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.outcomes import RequestState

_MANY_SEEN: Final = 255  # or more
_TIME_FORMAT: Final = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True, slots=True)
class HeldEntry:
    """The entry of a timeline.

    Attributes:
        lsn: its position.
        size_bytes: the size of its file.
        age_s: seconds since its file was written; None if that is not known.
        is_verified: whether its bytes were checked since the start of the cache.
    """

    lsn: Lsn
    size_bytes: int
    age_s: float | None
    is_verified: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What the policy of eviction thinks of a timeline.

    Attributes:
        score: the worth of its archive: with ``return-rate`` the returns per second and per share
            of the cache. It is compared with other scores alone. None while no entry is ranked,
            before the cache is nearly full.
        lowest_score: that of the entry that goes next; None if no entry can go, or is ranked.
        rank: how many entries go before its own; None if it has none, or none is ranked.
        is_pinned: whether its entry is never evicted.
        is_pin_refused: whether the host pins it in vain: pins take half of each limit at most.
        habits: its habits; None for an unknown timeline, and with another policy.
    """

    score: float | None
    lowest_score: float | None
    rank: int | None
    is_pinned: bool
    is_pin_refused: bool
    habits: Habits | None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A prepare that has not ended.

    Attributes:
        lsn: its position.
        state: what it does.
        age_s: seconds since it was asked for.
        is_awaited: whether a caller of `get_or_prepare` waits for it.
    """

    lsn: Lsn
    state: RequestState
    age_s: float
    is_awaited: bool


@dataclass(frozen=True, slots=True)
class BackingOff:
    """A pause after failed builds.

    Attributes:
        lsn: the only LSN that it holds for; None if it holds for the timeline.
        failure_count: failures in a row.
        until: when the next build is tried, UTC.
        cause: the text of the last failure.
    """

    lsn: Lsn | None
    failure_count: int
    until: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What the host says about a timeline.

    Attributes:
        tenant_state: the state of its tenant, a value of `TenantState`; None if not known.
        is_enabled: whether the tenant's switch is on; None if not known.
        tip: the tip of the timeline; None if not known.
        problem: why the host does not say all of that; empty if it does.
    """

    tenant_state: str | None = None
    is_enabled: bool | None = None
    tip: Lsn | None = None
    problem: str = ""

    def __str__(self) -> str:
        words = [] if self.tenant_state is None else [f"the tenant is {self.tenant_state}"]
        if self.is_enabled is not None:
            words.append(f"its switch is {'on' if self.is_enabled else 'off'}")
        if self.tip is not None:
            words.append(f"the tip of the timeline is {self.tip}")
        return ", ".join([*words, self.problem] if self.problem else words)


NOT_ASKED: Final = HostAnswer(problem="it was not asked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a timeline has an entry at this moment, or has none. `str` gives it as a text.

    Attributes:
        tenant_id: the tenant.
        timeline_id: its timeline.
        at: the moment, UTC.
        entry: the entry; None if there is none.
        standing: what the policy of eviction thinks of it; None if the cache does nothing.
        under_way: prepares that wait or run, the running one first.
        backing_off: pauses after failed builds.
        host: what the host says.
        history_since: outcomes before this time are not known, UTC.
        outcomes: the last outcomes of prepares, reads and removals, newest first; hits are not
            recorded.
        notes: what holds for the whole cache, such as why nothing can be published.
    """

    tenant_id: TenantId
    timeline_id: TimelineId
    at: datetime
    entry: HeldEntry | None
    standing: Standing | None
    under_way: tuple[UnderWay, ...]
    backing_off: tuple[BackingOff, ...]
    host: HostAnswer
    history_since: datetime
    outcomes: tuple[PastOutcome, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_dead_cache(cls, tenant_id: TenantId, timeline_id: TimelineId, why: str) -> Self:
        """Return the explanation of a cache that does nothing, for the reason `why`."""
        now = datetime.now(UTC)
        return cls(
            tenant_id=tenant_id,
            timeline_id=timeline_id,
            at=now,
            entry=None,
            standing=None,
            under_way=(),
            backing_off=(),
            host=NOT_ASKED,
            history_since=now,
            outcomes=(),
            notes=(why,),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as values of JSON: ids, LSNs and times are texts."""
        document: dict[str, Any] = _as_json(self)
        return document

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"timeline {self.timeline_id} of tenant {self.tenant_id} at {self.at:{_TIME_FORMAT}}"
        yield from (f"note: {each}" for each in self.notes)
        yield f"entry: {'none' if self.entry is None else _entry_text(self.entry)}"
        if self.standing is not None:
            yield from _standing_lines(self.standing, has_entry=self.entry is not None)
        yield f"host: {self.host}{self._comparison()}"
        yield from _block("under way", [_under_way_text(each) for each in self.under_way])
        yield from _block("backing off", [_backing_off_text(each) for each in self.backing_off])
        title = f"outcomes since {self.history_since:{_TIME_FORMAT}}, newest first"
        yield from _block(title, [_outcome_text(each) for each in self.outcomes])

    def _comparison(self) -> str:
        """What the tip means for the entry."""
        if self.entry is None or self.host.tip is None or self.host.tip == self.entry.lsn:
            return ""
        if self.host.tip > self.entry.lsn:
            return ": past the entry, which the next clean-up removes"
        return ": before the entry"


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        items = [_as_json(each) for each in value]
        return items if names is None else dict(zip(names, items, strict=True))
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, Enum):
        return value.value
    # Ids and LSNs are subclasses of what JSON has, and have a text of their own.
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def _block(title: str, lines: list[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: none"
    yield from (f"  {each}" for each in lines)


def _entry_text(entry: HeldEntry) -> str:
    age = "" if entry.age_s is None else f", written {duration(entry.age_s)} ago"
    checked = "verified" if entry.is_verified else "not verified"
    return f"at {entry.lsn}, {size(entry.size_bytes)}{age}, {checked} since the start of the cache"


def _standing_lines(standing: Standing, *, has_entry: bool) -> Iterator[str]:
    if standing.is_pinned:
        yield "pinned: yes, so its entry is never evicted"
    elif standing.is_pin_refused:
        yield "pinned: no, since the pins of the host would take more than half of a limit"
    elif has_entry:
        yield "pinned: no"
    yield f"score: {_score_text(standing)}"
    yield f"habits: {habits_text(standing.habits)}"


def _score_text(standing: Standing) -> str:
    if standing.score is None:
        return "entries are not ranked before the cache is nearly full"
    lowest = standing.lowest_score
    others = "no entry can be evicted" if lowest is None else f"the lowest score is {lowest:.3g}"
    rank = "" if standing.rank is None else f", number {standing.rank + 1} from eviction"
    return f"{standing.score:.3g}{rank}; {others}"


def habits_text(habits: Habits | None) -> str:
    """The habits of a timeline as a line."""
    if habits is None:
        return "not known"
    if habits.typical_sleep_s is None:
        words = ["has not started after a stop yet"]
    else:
        seen = f"{habits.sleeps_seen}{' or more' if habits.sleeps_seen >= _MANY_SEEN else ''} seen"
        regular = f"{habits.regularity}, " if habits.sleeps_seen > 1 else ""
        words = [f"sleeps {rough_duration(habits.typical_sleep_s)} typically, {regular}{seen}"]
    if habits.asleep_s is None:
        return "; ".join([*words, "runs now"])
    words.append(f"asleep {rough_duration(habits.asleep_s)}")
    if habits.return_share is not None and habits.horizon_s is not None:
        within = rough_duration(habits.horizon_s)
        words.append(f"of its kind {habits.return_share:.0%} return within {within}")
    return "; ".join(words)


def _under_way_text(request: UnderWay) -> str:
    awaited = "a caller waits for it" if request.is_awaited else "no caller waits for it"
    text = f"{request.state.text}, asked for {duration(request.age_s)} ago"
    return f"prepare at {request.lsn}: {text}, {awaited}"


def _backing_off_text(pause: BackingOff) -> str:
    what = "the timeline" if pause.lsn is None else f"LSN {pause.lsn} alone"
    return (
        f"{what} until {pause.until:{_TIME_FORMAT}}, after {pause.failure_count} failures "
        f"in a row; the last one: {pause.cause}"
    )


def _outcome_text(outcome: PastOutcome) -> str:
    at = f"{outcome.at:{_TIME_FORMAT}}"
    return f"{at}  {outcome.what} at {outcome.lsn}: {outcome.result} ({outcome.text})"
