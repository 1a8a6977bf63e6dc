"""A trace of a real fleet as a `Fleet`: a CSV file of time, timeline, event and size."""

from __future__ import annotations

import csv
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks.fleets.fleets import DELETE, START, STOP, Fleet
from benchmarks.fleets.kinds import NEVER_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

DEFAULT_SIZE_BYTES: Final = 25_000
_KINDS: Final = {"start": START, "stop": STOP, "delete": DELETE}
_COLUMNS: Final = 3  # without the size


class TraceError(ValueError):
    """A trace that cannot be replayed; the text names the line and what it should be."""


class _Event(NamedTuple):
    time_s: float
    kind: int
    timeline: str
    size_bytes: float | None


def read_trace(path: Path, warm_share: float) -> Fleet:
    """Read a trace.

    Args:
        path: the file.
        warm_share: the share of the time at the beginning that results leave out.

    Raises:
        TraceError: a line is wrong, or no timeline starts after a stop.
        OSError: the file cannot be read.
    """
    with path.open(newline="") as file:
        events = sorted(_events(file, path), key=lambda event: event.time_s)
    events = list(_useful(events))
    if not any(event.kind == START for event in events):
        raise TraceError(
            f"{path} has no timeline that starts after a stop\n"
            "hint: Each line is time,timeline,event,size; see `replay --help`."
        )
    return _fleet(path.stem, events, warm_share)


def _events(lines: Iterable[str], path: Path) -> Iterator[_Event]:
    for number, fields in enumerate(csv.reader(lines), 1):
        cells = [field.strip() for field in fields]
        if not any(cells) or cells[0].startswith("#") or (number == 1 and cells[0] == "time"):
            continue
        try:
            yield _event(cells)
        except ValueError as error:
            raise TraceError(
                f"{path}, line {number}: {error}\n"
                "hint: Such as 1700000000.5,de20.../1122...,stop,25000 or "
                "2026-11-30T13:00:00Z,de20.../1122...,start,"
            ) from error


def _event(cells: list[str]) -> _Event:
    if len(cells) < _COLUMNS:
        raise ValueError(f"{len(cells)} columns, where there should be time,timeline,event,size")
    time, timeline, kind, *rest = cells
    if kind not in _KINDS:
        raise ValueError(f"the event {kind!r} is none of {', '.join(_KINDS)}")
    size_bytes = float(rest[0]) if rest and rest[0] else None
    if size_bytes is not None and not 0 < size_bytes < math.inf:
        raise ValueError(f"the size {rest[0]} is not a number of bytes")
    return _Event(_seconds(time), _KINDS[kind], timeline, size_bytes)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= seconds < math.inf:
        raise ValueError(f"the time {text} is not a number of seconds since 1970 or later")
    return seconds


def _useful(events: Iterable[_Event]) -> Iterator[_Event]:
    """Leave out starts of timelines that did not sleep: no cache could have helped."""
    asleep: set[str] = set()
    for event in events:
        if event.kind == STOP:
            asleep.add(event.timeline)
        elif event.kind == START and event.timeline not in asleep:
            continue
        else:
            asleep.discard(event.timeline)
        yield event


def _fleet(name: str, events: list[_Event], warm_share: float) -> Fleet:
    numbers = {timeline: n for n, timeline in enumerate(dict.fromkeys(e.timeline for e in events))}
    timelines = np.array([numbers[event.timeline] for event in events], np.int32)
    returns_s = np.full(len(events), NEVER_S)
    stops: dict[int, int] = {}  # of each sleeper, the position of its stop
    sizes: dict[int, float] = {}
    for position, (event, timeline) in enumerate(zip(events, timelines.tolist(), strict=True)):
        if event.kind == STOP:
            stops[timeline] = position
        elif event.kind == START:
            returns_s[stops.pop(timeline)] = event.time_s
        if event.size_bytes is not None:
            sizes[timeline] = event.size_bytes
    begin_s, end_s = events[0].time_s, events[-1].time_s
    mean_bytes = sum(sizes.values()) / len(sizes) if sizes else DEFAULT_SIZE_BYTES
    return Fleet(
        name=name,
        times_s=np.array([event.time_s for event in events]),
        kinds=np.array([event.kind for event in events], np.int8),
        timelines=timelines,
        returns_s=returns_s,
        count=len(numbers),
        sizes_bytes=np.round([sizes.get(n, mean_bytes) for n in range(len(numbers))]),
        costs_s=np.ones(len(numbers)),
        living=float(len(numbers)),
        warm_s=begin_s + warm_share * (end_s - begin_s),
        span_s=end_s - begin_s,
        sleeps_s=np.zeros((0, 0), np.float32),
    )
