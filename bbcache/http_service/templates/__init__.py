"""The status page: one HTML document that loads nothing else, rendered by Jinja2.

The template escapes every value: ids, texts of the log and other values may be from a
stranger.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate

from bbcache.errors import MissingExtraError
from bbcache.http_service.assets import SCRIPT, STYLE
from bbcache.http_service.status import Status
from bbcache.human_units import duration, size
from bbcache.outcomes import SkipReason, Source

try:
    import jinja2
except ImportError as error:
    raise MissingExtraError(
        "bbcache.http_service.templates cannot be imported", "serve", error
    ) from error


def render(status: Status) -> str:
    """Render the document."""
    total = sum(status.answers.values())
    shares = [100 * status.answers.get(each, 0) / total if total else 0.0 for each in Source]
    return _template().render(
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


def _number(value: int) -> str:
    return f"{value:,}"


@cache
def _template() -> jinja2.Template:
    """Compile the template, at the first request: it takes a third of a service's start."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bbcache.http_service"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "duration": duration, "number": _number}
    return environment.get_template("status.html")
