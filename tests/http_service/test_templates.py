"""The status page: what it shows, that it escapes it, and that it needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from bbcache.http_service.assets import CONTENT_SECURITY_POLICY, SCRIPT, STYLE
from bbcache.http_service.recent_errors import RecentError
from bbcache.http_service.status import Meter, ShownBroken, ShownEntry, State, Status
from bbcache.http_service.templates import render
from bbcache.outcomes import SkipReason

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTILE = "</p><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"
VOID = {"meta", "link", "rect"}


def make_status(**changes: Any) -> Status:
    """A status in which everything occurs."""
    status = Status(
        state=State.READY,
        version="1.2.3",
        pid=4711,
        started_at="2026-01-01T00:00:00+00:00",
        uptime_s=3700.0,
        listen="127.0.0.1:64000",
        has_tokens=True,
        has_tls=False,
        meters=(
            Meter("bytes on disk", 950, 1000, "bytes", "max_total_size_bytes"),
            Meter("entries", 12345, 100_000, "entries", "max_size_entries"),
        ),
        hit_ratio=0.875,
        answers={"hit": 7, "joined": 0, "built": 1},
        failures={"error": 2, "client_error": 0},
        reads={"hit": 7, "miss": 1, "error": 0},
        fills={"error": 1, "backing_off": 0},
        prepares={"ok": 1, "skip": 3, "error": 0},
        skips={"full": 2, "disabled": 0, "tip_moved": 1},
        trouble={"archives_quarantined": 3, "read_errors": 0},
        entry_count=3,
        entries=(ShownEntry("a" * 32, "b" * 32, "0/10", 2048),),
        broken_count=3,
        broken=(
            ShownBroken("c" * 32, "d" * 32, "pg_control is cut"),
            ShownBroken("e" * 32, None, "it cannot be read"),
        ),
        errors=(RecentError("2026-01-01T00:00:01", "ERROR", "bbcache.x", "no\nhint: Do."),),
    )
    return replace(status, **changes)


class Document(HTMLParser):
    """A parsed page: its tags with their attributes, and the text that is to be read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "not every tag is closed"

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Note a tag without an end."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Every tag is closed in its turn."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += f"{data} "


def safe_str(status: Status) -> str:
    """The text of the page, with single blanks."""
    return " ".join(Document(render(status)).text.split())


@pytest.mark.parametrize(
    "shown",
    [
        *(
            "ready",
            "87.5%",
            "7",
            "127.0.0.1:64000",
            "tokens are required",
            "no TLS",
            "up 1 h 1 min",
        ),
        *("950 bytes of 1000 bytes", "12,345 of 100,000", "1 ok · 3 skip · 0 error"),
        *(f"full {SkipReason.FULL.text} 2", "archives quarantined 3", "fills: error 1"),
        *("a" * 32, "b" * 32, "0/10", "2.0 KiB", "Entries (3)", "2 more"),
        *(f"{'c' * 32} {'d' * 32} pg_control is cut", f"{'e' * 32} all it cannot be read"),
        *("Broken, and not served (3)", "it cannot be read 1 more."),
        *("ERROR 2026-01-01T00:00:01 bbcache.x no hint: Do.", "version 1.2.3", "pid 4711"),
    ],
)
def test_what_is_shown(shown: str) -> None:
    """Each fact can be read."""
    assert shown in safe_str(make_status())


def test_what_is_not_shown() -> None:
    """Reasons that have skipped nothing are left out, and so is the list of nothing broken."""
    assert "disabled" not in safe_str(make_status())
    assert "Broken" not in safe_str(make_status(broken_count=0, broken=()))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"hit_ratio": None, "answers": {}}, "none yet"),
        ({"skips": {"full": 0}}, "None so far."),
        ({"errors": ()}, "None since the start."),
        ({"entries": (), "entry_count": 0}, "The cache holds nothing yet."),
        ({"has_tokens": False, "has_tls": True}, "tokens are not required · TLS"),
        ({"state": State.DRAINING}, "draining"),
    ],
)
def test_what_there_is_not(changes: dict[str, Any], shown: str) -> None:
    """An empty list says so."""
    assert shown in safe_str(make_status(**changes))


def test_a_limit_that_is_near_is_red() -> None:
    """From nine tenths on; more than all is shown as all."""
    kinds = {}
    for used in (899, 900, 1500):
        meters = (Meter("m", used, 1000, "things", "most"),)
        tags = Document(render(make_status(meters=meters))).tags
        kinds[used] = [
            (attrs["class"], attrs["width"])
            for tag, attrs in tags
            if tag == "rect" and attrs["class"] in ("used", "high")
        ]
    assert kinds == {
        899: [("used", "89.90%")],
        900: [("high", "90.00%")],
        1500: [("high", "100.00%")],
    }


def test_everything_is_escaped() -> None:
    """For any texts the page has the same tags, and shows the texts as they are."""
    hostile = make_status(
        version=HOSTILE,
        listen=HOSTILE,
        meters=(Meter(HOSTILE, 1, 2, HOSTILE, HOSTILE), Meter(HOSTILE, 1, 2, HOSTILE, HOSTILE)),
        failures={HOSTILE: 2, "client_error": 0},
        prepares={HOSTILE: 1},
        trouble={HOSTILE: 3, "read_errors": 0},
        entries=(ShownEntry(HOSTILE, HOSTILE, HOSTILE, 2048),),
        broken=(ShownBroken(HOSTILE, HOSTILE, HOSTILE), ShownBroken(HOSTILE, None, HOSTILE)),
        errors=(RecentError(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
    )
    good, bad = Document(render(make_status())), Document(render(hostile))
    assert [tag for tag, _ in good.tags] == [tag for tag, _ in bad.tags]
    assert [set(attrs) for _, attrs in good.tags] == [set(attrs) for _, attrs in bad.tags]
    assert bad.text.count("<script>alert(1)</script>") == 19


def test_it_needs_nothing_but_itself() -> None:
    """Nothing is loaded from anywhere, and no attribute carries a style or a script."""
    html = render(make_status())
    for tag, attrs in Document(html).tags:
        assert tag not in {"img", "iframe", "object", "embed", "form", "base"}
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "style")]
        for name in ("href",):
            assert (attrs.get(name) or "data:,").startswith(("/", "data:,"))
    assert not re.search(r"https?:|@import|url\(", html)


def test_the_policy_knows_style_and_script() -> None:
    """By their digests: what else gets into the page does nothing."""
    html = render(make_status())
    assert html.count(f"<style>{STYLE}</style>") == html.count(f"<script>{SCRIPT}</script>") == 1
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
