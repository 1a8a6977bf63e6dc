"""The habits of one timeline: how long it sleeps, how regularly, and when it starts.

A timeline runs, stops, sleeps, and starts again. All that is kept of it is packed into 32 bytes,
and one more for the size of its last archive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import Final

UNKNOWN_SLEEP_S: Final = 3600.0  # the typical sleep of a timeline that has not started yet
_LEARNING: Final = 1 / 8  # the weight of the newest sleep, once there are enough of them
_FIRST_DEVIATION: Final = 0.8
_MOST_DEVIATION: Final = 4.0
_REGULARITY_CUTS: Final = (0.04, 0.2, 0.6, 1.1)
UNKNOWN_REGULARITY: Final = 3
_VISIT_CUTS: Final = (1, 2, 5)
_HOUR_STEP: Final = 8
_HOUR_MOST: Final = 240
_LEAST_STARTS: Final = 6  # before the hours say something
_QUIET, _BUSY = 0.3, 1.7  # share of the starts over share of the time
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
_MU_STEPS: Final = 3000.0  # per unit of ln(seconds)
_SIZE_STEPS: Final = 7  # per power of two
_WRAP_S: Final = 2**31  # times are kept modulo 68 years
_ASLEEP: Final = 1

# mean of ln(sleep), deviation, sleeps seen, starts by hour, last stop and whether it sleeps, size
RECORD: Final = Struct("<HBB24sIB")
_HEAD: Final = Struct("<HBB")
_STOP: Final = Struct("<I")
_HOURS_AT: Final = 4
_STOP_AT: Final = 28
_SIZE_AT: Final = 32
NEW_RECORD: Final = bytes(RECORD.size)


class Regularity(StrEnum):
    """How much the sleeps of a timeline differ from each other."""

    CLOCKWORK = "clockwork"
    REGULAR = "regular"
    FAIRLY_REGULAR = "fairly regular"
    NOT_REGULAR = "not regular"
    ERRATIC = "erratic"


REGULARITIES: Final = tuple(Regularity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """The habits of one timeline in numbers.

    Attributes:
        typical_sleep_s: the geometric mean of its sleeps; the later ones weigh more. None until
            it has started once.
        regularity: how much they differ.
        sleeps_seen: how many; 255 stands for more.
        starts_by_hour: 24 weights, for the hours of the day in UTC.
        asleep_s: how long it has slept; None while it runs.
        horizon_s: the time from now for which keeping its archive pays best; None while it runs.
        return_share: the share of its kind that starts within the horizon; None while it runs.
    """

    typical_sleep_s: float | None
    regularity: Regularity
    sleeps_seen: int
    starts_by_hour: tuple[int, ...]
    asleep_s: float | None
    horizon_s: float | None
    return_share: float | None


def note_stop(record: bytearray, at: int, now_s: float) -> None:
    """Begin a sleep, in the record at an offset."""
    _STOP.pack_into(record, at + _STOP_AT, (int(now_s) % _WRAP_S) << 1 | _ASLEEP)


def note_start(record: bytearray, at: int, now_s: float) -> bool:
    """End a sleep and learn from it; False if the timeline did not sleep."""
    slept_s = asleep_s(record, at, now_s)
    if slept_s is None:
        return False
    mu_code, deviation_code, count = _HEAD.unpack_from(record, at)
    x = math.log(slept_s) if slept_s > 1.0 else 0.0
    if count == 0:
        mu, deviation = x, _FIRST_DEVIATION
    else:
        mu, deviation = mu_code / _MU_STEPS, _deviation(deviation_code)
        difference = x - mu
        deviation += max(_LEARNING, 1 / (count + 2)) * (
            min(abs(difference), _MOST_DEVIATION) - deviation
        )
        mu += max(_LEARNING, 1 / (count + 1)) * difference
    # A square root gives small deviations the finer steps that they need to shrink further.
    deviation_code = round(math.sqrt(deviation / _MOST_DEVIATION) * 255)
    _HEAD.pack_into(record, at, round(mu * _MU_STEPS), deviation_code, min(count + 1, 255))
    hour_at = at + _HOURS_AT + int(now_s // HOUR_S) % 24
    if record[hour_at] > _HOUR_MOST:
        first = at + _HOURS_AT
        record[first : first + 24] = bytes([each // 2 for each in record[first : first + 24]])
    record[hour_at] += _HOUR_STEP
    record[at + _STOP_AT] &= ~_ASLEEP & 0xFF
    return True


def asleep_s(record: bytes | bytearray, at: int, now_s: float) -> float | None:
    """How long the timeline has slept; None if it runs."""
    (stop,) = _STOP.unpack_from(record, at + _STOP_AT)
    if not stop & _ASLEEP:
        return None
    slept_s = (now_s - (stop >> 1)) % _WRAP_S
    return slept_s if slept_s < _WRAP_S / 2 else 0.0  # the clock was set back


def last_stop_s(record: bytes | bytearray, at: int, now_s: float) -> float:
    """When the timeline stopped last, whether or not it has started since."""
    (stop,) = _STOP.unpack_from(record, at + _STOP_AT)
    ago_s = (now_s - (stop >> 1)) % _WRAP_S
    return now_s - (ago_s if ago_s < _WRAP_S / 2 else 0.0)


def note_size(record: bytearray, at: int, size_bytes: int) -> None:
    """Keep the size of the last archive, rounded up by at most a tenth."""
    steps = math.ceil(math.log2(size_bytes) * _SIZE_STEPS) if size_bytes > 1 else 0
    record[at + _SIZE_AT] = min(steps + 1, 255)


def last_size_bytes(record: bytes | bytearray, at: int) -> int | None:
    """The size of the last archive, rounded up; None if there was none."""
    code = record[at + _SIZE_AT]
    return math.ceil(2.0 ** ((code - 1) / _SIZE_STEPS)) if code else None


def kind_of(record: bytes | bytearray, at: int, now_s: float) -> tuple[float, int, int, int]:
    """The kind of timeline that it is, for a sleep that begins now.

    Returns:
        The typical sleep in seconds, and the levels of visits (0 to 3), of regularity (0 to 4)
        and of the clock (0 to 3).
    """
    mu_code, deviation_code, count = _HEAD.unpack_from(record, at)
    if count == 0:
        return UNKNOWN_SLEEP_S, 0, UNKNOWN_REGULARITY, 0
    typical_s = math.exp(mu_code / _MU_STEPS)
    visits = 1 if count == 1 else 2 if count < _VISIT_CUTS[-1] else 3
    clock = 0
    if count >= _LEAST_STARTS:
        clock = _clock_level(record[at + _HOURS_AT : at + _STOP_AT], now_s, typical_s)
    return typical_s, visits, _regularity_level(count, deviation_code), clock


def describe(record: bytes | bytearray, at: int, now_s: float) -> Habits:
    """The habits in numbers, but for the chance of a return."""
    mu_code, deviation_code, count = _HEAD.unpack_from(record, at)
    return Habits(
        typical_sleep_s=math.exp(mu_code / _MU_STEPS) if count else None,
        regularity=REGULARITIES[_regularity_level(count, deviation_code)],
        sleeps_seen=count,
        starts_by_hour=tuple(record[at + _HOURS_AT : at + _STOP_AT]),
        asleep_s=asleep_s(record, at, now_s),
        horizon_s=None,
        return_share=None,
    )


def _deviation(code: int) -> float:
    return (code / 255) ** 2 * _MOST_DEVIATION


def _regularity_level(count: int, deviation_code: int) -> int:
    if count < _VISIT_CUTS[1]:
        return UNKNOWN_REGULARITY
    deviation = _deviation(deviation_code)
    level = 0
    for cut in _REGULARITY_CUTS:
        if deviation < cut:
            break
        level += 1
    return level


def _clock_level(hours: bytes | bytearray, now_s: float, typical_s: float) -> int:
    """Whether the timeline often starts at the hours that come now: 1 rarely, 3 often.

    Level 0 is that of a timeline that has started too seldom to say.
    """
    window = min(max(2 * typical_s / HOUR_S, 1.0), 6.0)  # in hours
    begin = now_s / HOUR_S
    end = begin + window
    first, last = int(begin), int(end)
    starts = hours[first % 24] * (first + 1 - begin) + hours[last % 24] * (end - last)
    for hour in range(first + 1, last):
        starts += hours[hour % 24]
    share = (starts / sum(hours)) / (window / 24)
    return 1 if share < _QUIET else 2 if share < _BUSY else 3
