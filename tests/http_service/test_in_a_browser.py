"""The status page in a real browser: light and dark, kept fresh, alone, and harmless."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from http_service.test_templates import HOSTILE, make_status
from support.helpers import tool

from bbcache.http_service.assets import CONTENT_SECURITY_POLICY
from bbcache.http_service.handler import Response
from bbcache.http_service.recent_errors import RecentError
from bbcache.http_service.status import ShownEntry, State
from bbcache.http_service.templates import render

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from http_service.conftest import Front

    from bbcache.http_service.status import Status

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
pytestmark = pytest.mark.slow


def page(status: Status) -> Response:
    """The page as the site answers it."""
    headers = (("Content-Security-Policy", CONTENT_SECURITY_POLICY),)
    return Response(HTTPStatus.OK, "text/html", render(status).encode(), headers)


class Browser:
    """Chromium without a window, and without a network but loopback."""

    def __init__(self, home: Path) -> None:
        found = [name for name in NAMES if shutil.which(name)]
        self._program = tool(found[0] if found else NAMES[0])
        self._home = home
        self.complaints = ""

    def run(self, url: str, *options: str) -> str:
        """Open a page; returns what is printed. Its own complaints are in `complaints`."""
        done = subprocess.run(
            [
                self._program,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--disable-dev-shm-usage", "--no-first-run", "--window-size=1200,1400"),
                f"--user-data-dir={self._home}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--enable-logging=stderr",
                *options,
                url,
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=100,
        )
        lines = done.stderr.splitlines()
        self.complaints = "\n".join(line for line in lines if "CONSOLE" in line)
        return done.stdout


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A browser with a home of its own."""
    return Browser(tmp_path / "home")


def first_pixel(png: bytes) -> tuple[int, ...]:
    """The colour in the upper left corner of an image with 8 bits a channel."""
    assert png[24] == 8
    channel_count = {2: 3, 6: 4}[png[25]]
    data, position = b"", 8
    while position < len(png):
        (length,) = struct.unpack_from("!I", png, position)
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += 12 + length
    return tuple(zlib.decompress(data)[1 : 1 + channel_count][:3])


@pytest.mark.parametrize(
    ("scheme", "colour"), [(1, (0xF5, 0xF6, 0xF8)), (0, (0x10, 0x14, 0x1B))], ids=["light", "dark"]
)
def test_light_and_dark(
    make_front: Callable[..., Front],
    browser: Browser,
    tmp_path: Path,
    scheme: int,
    colour: tuple[int, ...],
) -> None:
    """The style applies, policy or not, and follows what the user prefers."""
    front = make_front(lambda _, __: page(make_status()))
    picture = tmp_path / "page.png"
    browser.run(
        front.url, f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}"
    )
    assert first_pixel(picture.read_bytes()) == colour
    assert browser.complaints == ""


def test_it_keeps_itself_fresh(make_front: Callable[..., Front], browser: Browser) -> None:
    """The page shows the values of the moment, and asks for nothing but itself."""
    states = iter([State.STARTING])

    def respond(_: str, __: str) -> Response:
        return page(make_status(state=next(states, State.DRAINING)))

    front = make_front(respond)
    html = browser.run(front.url, "--dump-dom", "--virtual-time-budget=5000")
    assert '<span class="pill draining" id="state">draining</span>' in html
    assert len(front.asked) >= 2
    assert set(front.asked) == {"/"}
    assert browser.complaints == ""


def test_a_service_that_has_gone(make_front: Callable[..., Front], browser: Browser) -> None:
    """The page says that what it shows is old."""
    front: list[Front] = []

    def respond(_: str, __: str) -> Response:
        front[0].service.begin_close()
        return page(make_status())

    front.append(make_front(respond))
    html = browser.run(front[0].url, "--dump-dom", "--virtual-time-budget=5000")
    assert '<body class="lost">' in html
    assert "87.5%" in html


def test_what_strangers_have_said(make_front: Callable[..., Front], browser: Browser) -> None:
    """It is shown, also after a refresh, and does nothing."""
    title = "</title><script>document.title='owned'</script>"
    status = replace(
        make_status(),
        listen=HOSTILE,
        entries=(ShownEntry(HOSTILE, title, HOSTILE, 1),),
        errors=(RecentError("now", "ERROR", title, HOSTILE),),
    )
    front = make_front(lambda _, __: page(status))
    html = browser.run(front.url, "--dump-dom", "--virtual-time-budget=5000")
    assert "<title>bbcache: ready</title>" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img" in html
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert browser.complaints == ""


def test_the_policy_holds_what_escaping_would_let_through(
    make_front: Callable[..., Front], browser: Browser
) -> None:
    """A script that got into the page all the same would not run: the two are independent."""
    broken = page(make_status())
    body = broken.body.replace(b"<footer>", b"<script>document.title='owned'</script><footer>")
    front = make_front(lambda _, __: broken._replace(body=body))
    html = browser.run(front.url, "--dump-dom")
    assert "<title>bbcache: ready</title>" in html
    assert "owned" in html
    assert "Content Security Policy" in browser.complaints
