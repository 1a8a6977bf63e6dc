"""The style of the status page, and the script that refreshes it; no data of a request."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --line: #e2e5ea; --text: #1b2330; --faint: #667085;
  --accent: #2f6fdb; --good: #1f8f55; --warn: #a96800; --bad: #c8372d; --track: #e8ebf0;
  --joined: #7c5cd6; --built: #c07a14;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --card: #181e28; --line: #2a3240; --text: #e6eaf1; --faint: #94a0b3;
    --accent: #6ba2ff; --good: #4cc38a; --warn: #e0a63f; --bad: #ff7b70; --track: #2a3240;
    --joined: #a78bfa; --built: #e0a63f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .9rem; }
h1 { font-size: 1.45rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: .95rem; margin: 0 0 .8rem; }
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .88em; }
.faint { color: var(--faint); }
.pill {
  display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-size: .8rem;
  font-weight: 600; border: 1px solid currentColor;
}
.ready { color: var(--good); } .starting, .draining, .degraded, .WARNING { color: var(--warn); }
.ERROR, .CRITICAL { color: var(--bad); }
.facts { margin: .35rem 0 1.4rem; color: var(--faint); }
.grid {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
section {
  background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: 1.1rem 1.2rem; min-width: 0;
}
.wide { grid-column: 1 / -1; }
.big { font-size: 2.6rem; font-weight: 650; line-height: 1.1; font-variant-numeric: tabular-nums; }
.bar { display: block; width: 100%; height: .55rem; margin: .3rem 0 .9rem; }
.bar .track { fill: var(--track); } .bar .used { fill: var(--accent); }
.bar .high { fill: var(--bad); } .bar .hit { fill: var(--good); }
.bar .joined { fill: var(--joined); } .bar .built { fill: var(--built); }
.key::before { content: "\\25cf"; margin-right: .4rem; }
.key.hit::before { color: var(--good); } .key.joined::before { color: var(--joined); }
.key.built::before { color: var(--built); }
.line { display: flex; justify-content: space-between; gap: 1rem; }
.line:has(+ .bar) { margin-top: .1rem; }
.number, td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: .82rem; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.zero { color: var(--faint); }
.nonzero { color: var(--bad); font-weight: 600; }
ol { list-style: none; margin: 0; padding: 0; }
li { padding: .55rem 0; border-bottom: 1px solid var(--line); }
li:last-child { border-bottom: 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0 0; }
footer { margin-top: 1.4rem; color: var(--faint); font-size: .88rem; }
a { color: var(--accent); }
#lost { display: none; color: var(--bad); font-weight: 600; }
body.lost #lost { display: inline; } body.lost main { opacity: .65; }
"""

SCRIPT: Final = """
const load = async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.pathname, {cache: "no-store"});
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
  }
};
setInterval(load, 2000);
"""


def _source_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_source_of(STYLE)}",
        f"script-src {_source_of(SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
