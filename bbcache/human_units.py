"""Quantities as people read them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_KIB: Final = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def size(size_bytes: int) -> str:
    """Bytes, for people."""
    if size_bytes < _KIB:
        return f"{size_bytes} bytes"
    value, units = size_bytes / _KIB, iter(_UNITS)
    unit = next(units)
    while value >= _KIB and (larger := next(units, None)):
        value, unit = value / _KIB, larger
    return f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """A time, for people: its two largest units."""
    left = int(seconds)
    days, hours, minutes = left // _DAY_S, left % _DAY_S // _HOUR_S, left % _HOUR_S // _MINUTE_S
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left % _MINUTE_S} s" if minutes else f"{left} s"


def rough_duration(seconds: float) -> str:
    """Like `duration`, without the seconds of minutes."""
    is_minutes = _MINUTE_S <= seconds < _HOUR_S
    return f"{int(seconds) // _MINUTE_S} min" if is_minutes else duration(seconds)
