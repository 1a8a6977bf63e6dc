"""The status page: one HTML document that loads nothing else.

Every value goes through `_e`, which escapes it: ids, texts of the log and
other values may be from a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from bbcache.http_service.look import SCRIPT, STYLE
from bbcache.http_service.recent_errors import RecentError
from bbcache.http_service.status import Meter, ShownEntry, Status
from bbcache.outcomes import SkipReason, Source

_HIGH: Final = 0.9  # a meter is red from here on
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_KIB: Final = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def render(status: Status) -> str:
    """Render the document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>bbcache: {_e(status.state)}</title>
<style>{STYLE}</style>
<noscript><meta http-equiv="refresh" content="5"></noscript>
</head>
<body>
<main>
{_header(status)}
<div class="grid">
{_hit_ratio(status)}
{_meters(status.meters)}
{_skips(status)}
{_trouble(status)}
{_broken(status)}
{_entries(status.entries, status.entry_count)}
{_errors(status.errors)}
</div>
<footer><span id="lost">The service does not answer; these values are old. </span>
<a href="/status.json">status.json</a> · <a href="/metrics">metrics</a> ·
<a href="/healthz">healthz</a> · <a href="/readyz">readyz</a></footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _header(status: Status) -> str:
    tokens = "tokens are required" if status.has_tokens else "tokens are not required"
    tls = "TLS" if status.has_tls else "no TLS"
    why = status.degraded_reason
    degraded = "" if why is None else f'<p class="text WARNING" id="degraded">{_e(why)}</p>'
    return f"""<header>
<h1>bbcache</h1>
<span class="pill {_e(status.state)}" id="state">{_e(status.state)}</span>
</header>
<p class="facts">Basebackups on <code>{_e(status.listen)}</code> · {tokens} · {tls} ·
up {_e(duration(status.uptime_s))} · version {_e(status.version)} · pid {_e(status.pid)}</p>
{degraded}"""


def _hit_ratio(status: Status) -> str:
    ratio = "none yet" if status.hit_ratio is None else f"{100 * status.hit_ratio:.1f}%"
    total = sum(status.answers.values())
    rows = "\n".join(
        f'<div class="line"><span class="key {_e(source)}">{_e(source)} '
        f'<span class="faint">{_e(source.text)}</span></span>'
        f'<span class="number">{_e(_number(status.answers.get(source, 0)))}</span></div>'
        for source in Source
    )
    failures = "\n".join(
        f'<div class="line faint"><span>not given: {_e(name.replace("_", " "))}</span>'
        f'<span class="number">{_e(_number(count))}</span></div>'
        for name, count in status.failures.items()
    )
    return f"""<section>
<h2>Hits among the basebackups given</h2>
<div class="big" id="hit-ratio">{_e(ratio)}</div>
{_stack(status.answers, total)}
{rows}
{failures}
</section>"""


def _stack(counts: Mapping[str, int], total: int) -> str:
    """A bar of parts with widths by their shares."""
    parts, start = [], 0.0
    for name in Source:
        share = 100 * counts.get(name, 0) / total if total else 0.0
        parts.append(
            f'<rect class="{_e(name)}" x="{start:.2f}%" width="{share:.2f}%" height="100%"/>'
        )
        start += share
    return (
        '<svg class="bar" aria-hidden="true"><rect class="track" width="100%" height="100%" '
        f'rx="3"/>{"".join(parts)}</svg>'
    )


def _meters(meters: Iterable[Meter]) -> str:
    rows = "\n".join(_meter(each) for each in meters)
    return f"<section>\n<h2>Sizes against limits</h2>\n{rows}\n</section>"


def _meter(meter: Meter) -> str:
    is_bytes = meter.unit == "bytes"
    used, limit = ((size if is_bytes else _number)(value) for value in (meter.used, meter.limit))
    share = min(1.0, meter.used / meter.limit)
    kind = "high" if share >= _HIGH else "used"
    return f"""<div class="line"><span title="{_e(meter.setting)}">{_e(meter.name)}</span>
<span class="number">{_e(used)} <span class="faint">of {_e(limit)}</span></span></div>
<svg class="bar" role="img" aria-label="{_e(f"{100 * share:.0f}% of {meter.setting}")}">
<rect class="track" width="100%" height="100%" rx="3"/>
<rect class="{kind}" width="{100 * share:.2f}%" height="100%" rx="3"/></svg>"""


def _skips(status: Status) -> str:
    rows = "\n".join(
        f'<tr><td><code>{_e(reason)}</code></td><td class="faint">'
        f'{_e(SkipReason(reason).text)}</td><td class="number">{_e(_number(count))}</td></tr>'
        for reason, count in sorted(status.skips.items(), key=lambda item: -item[1])
        if count
    )
    done = " · ".join(f"{_number(count)} {name}" for name, count in status.prepares.items())
    table = f'<div class="scroll"><table>{rows}</table></div>' if rows else _none("None so far.")
    return f"""<section>
<h2>Prepares skipped, and why</h2>
<p class="faint">All prepares: {_e(done)}</p>
{table}
</section>"""


def _trouble(status: Status) -> str:
    rows = "\n".join(
        f'<div class="line"><span>{_e(name.replace("_", " "))}</span>'
        f'<span class="number {"nonzero" if count else "zero"}">{_e(_number(count))}</span></div>'
        for name, count in (
            *status.trouble.items(),
            *((f"fills: {name}", status.fills.get(name, 0)) for name in ("error", "backing_off")),
        )
    )
    return f"<section>\n<h2>What should be zero</h2>\n{rows}\n</section>"


def _broken(status: Status) -> str:
    """The broken tenants and timelines; empty if there are none."""
    if not status.broken_count:
        return ""
    rows = "\n".join(
        f"<tr><td><code>{_e(each.tenant_id)}</code></td>"
        f"<td><code>{_e(each.timeline_id or 'all')}</code></td>"
        f'<td class="text">{_e(each.reason)}</td></tr>'
        for each in status.broken
    )
    left = status.broken_count - len(status.broken)
    more = f'<p class="faint">{_e(_number(left))} more.</p>' if left else ""
    head = "<tr><th>tenant</th><th>timeline</th><th>reason</th></tr>"
    return f"""<section class="wide">
<h2>Broken, and not served ({_e(_number(status.broken_count))})</h2>
<div class="scroll"><table id="broken"><thead>{head}</thead>{rows}</table></div>
{more}
</section>"""


def _errors(errors: Iterable[RecentError]) -> str:
    rows = "\n".join(
        f'<li><span class="pill {_e(error.level)}">{_e(error.level)}</span> '
        f'<span class="faint mono">{_e(error.at)} {_e(error.logger)}</span>{_times(error)}'
        f'<p class="text">{_e(error.text)}</p></li>'
        for error in errors
    )
    shown = f'<ol id="errors">{rows}</ol>' if rows else _none("None since the start.")
    return f'<section class="wide">\n<h2>Recent warnings and errors</h2>\n{shown}\n</section>'


def _times(error: RecentError) -> str:
    if error.times == 1:
        return ""
    return (
        f' <span class="faint">{_e(_number(error.times))} times since {_e(error.first_at)}</span>'
    )


def _entries(entries: tuple[ShownEntry, ...], count: int) -> str:
    rows = "\n".join(
        f"<tr><td><code>{_e(each.tenant_id)}</code></td><td><code>{_e(each.timeline_id)}</code>"
        f'</td><td><code>{_e(each.lsn)}</code></td><td class="number">'
        f"{_e(size(each.size_bytes))}</td></tr>"
        for each in entries
    )
    left = count - len(entries)
    more = f'<p class="faint">The largest are shown; {_e(_number(left))} more.</p>' if left else ""
    head = '<tr><th>tenant</th><th>timeline</th><th>LSN</th><th class="number">size</th></tr>'
    table = f'<div class="scroll"><table id="entries"><thead>{head}</thead>{rows}</table></div>'
    return f"""<section class="wide">
<h2>Entries ({_e(_number(count))})</h2>
{table if rows else _none("The cache holds nothing yet.")}
{more}
</section>"""


def _none(text: str) -> str:
    return f'<p class="faint">{_e(text)}</p>'


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


def _e(value: object) -> str:
    return escape(str(value), quote=True)
