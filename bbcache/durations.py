"""Durations as humantime texts, the way settings in TOML have them."""

from __future__ import annotations

import re
from typing import Final

from bbcache.setting_rows import bad_value, seconds

_UNITS_S: Final = {
    unit: seconds
    for seconds, units in (
        (1e-9, "ns nsec"),
        (1e-6, "us usec"),
        (1e-3, "ms msec"),
        (1.0, "s sec secs second seconds"),
        (60.0, "m min mins minute minutes"),
        (3600.0, "h hr hrs hour hours"),
        (86400.0, "d day days"),
        (604800.0, "w wk wks week weeks"),
        (2630016.0, "M month months"),  # 30.44 days
        (31557600.0, "y yr yrs year years"),  # 365.25 days
    )
    for unit in units.split()
}
_DURATION_PART = re.compile(r"([0-9]{1,18})\s*([a-zA-Z]+)\s*")


def parse_duration_s(text: object, key: str = "duration") -> float:
    """Seconds of a humantime text such as ``60s``, ``500ms`` or ``1h 30m``.

    Args:
        text: whole numbers, each with its unit.
        key: the setting's name, for the error.

    Raises:
        ConfigError: (a `ValueError`) for anything else.
    """
    wanted = 'a duration such as "60s", "500ms" or "1h 30m"'
    if not isinstance(text, str) or not text.strip():
        raise bad_value(key, text, wanted)
    total_s, position, stripped = 0.0, 0, text.strip()
    while position < len(stripped):
        part = _DURATION_PART.match(stripped, position)
        unit_s = _UNITS_S.get(part[2]) if part else None
        if part is None or unit_s is None:
            raise bad_value(key, text, wanted)
        total_s += int(part[1]) * unit_s
        position = part.end()
    return total_s


DURATION: Final = seconds(parse_duration_s)
