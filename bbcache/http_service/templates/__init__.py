"""The status page: one HTML document that loads nothing else, rendered by Jinja2.

The template escapes every value: ids, texts of the log and other values may be from a
stranger.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

from bbcache.errors import MissingExtraError
from bbcache.http_service.assets import SCRIPT, STYLE
from bbcache.http_service.status import Status
from bbcache.outcomes import SkipReason, Source

try:
    import jinja2
except ImportError as error:
    raise MissingExtraError(
        "bbcache.http_service.templates cannot be imported", "serve", error
    ) from error

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_KIB: Final = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def render(status: Status) -> str:
    """Render the document."""
    total = sum(status.answers.values())
    shares = [100 * status.answers.get(each, 0) / total if total else 0.0 for each in Source]
    return _TEMPLATE.render(
        status=status,
        style=STYLE,
        script=SCRIPT,
        sources=list(zip(Source, shares, accumulate([0.0, *shares]), strict=False)),
        skips=[
            (reason, SkipReason(reason).text, count)
            for reason, count in sorted(status.skips.items(), key=lambda item: -item[1])
            if count
        ],
    )


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


def _number(value: int) -> str:
    return f"{value:,}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bbcache.http_service"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "duration": duration, "number": _number}
    return environment


_TEMPLATE: Final = _environment().get_template("status.html")
