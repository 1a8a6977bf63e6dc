"""The page and the pictures: complete, escaped, self-contained, for light and dark."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from support.bench_helpers import make_records

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

HOSTILE = "<script src='http://x.test/'>\"&amp;]]>--></title></style>é\u2028"
# What SVG refers to are parts of itself.
REFERENCES = re.compile(r"""(src|href|action|data)="(?!#)|url\((?!#)|@import""")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """The report, which needs the extra `bench`."""
    for name in ("jinja2", "matplotlib"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra `bench`")
    from benchmarks import report  # noqa: PLC0415 - needs the extra

    return report


class Reader(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append(tag)
        self.text += " ".join(value or "" for _, value in attrs if tag == "svg")

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


def test_everything_is_on_the_page(report: ModuleType) -> None:
    """The answer about the codec, every bar with verdict and hint, charts, notes, machine."""
    page = Reader(report.render(make_records()))
    text = " ".join(page.text.split())
    for wanted in (
        *("ISA-L at level 2", "80x the time", "0.95x the size", "ISA-L 2 (default)"),
        *("prepare-a", "pass", "fail", "peer missing", "error", "hint: Get plain."),
        *("1x", "+-5%", "at most 1.5x", "at least 2x faster", "300 bytes"),
        *("1 of 4 bars met", "plain was left out", "tiny counts", "CPU"),
    ):
        assert wanted in text, wanted
    assert page.tags.count("svg") == 4


def test_a_text_from_outside_is_escaped(report: ModuleType) -> None:
    """The same elements stand there as with a plain one, and the text is shown as it is."""
    plain, hostile = (Reader(report.render(make_records(each))) for each in ("plain", HOSTILE))
    shapes = {"path", "use", "g", "defs"}  # the letters of the charts
    assert [each for each in hostile.tags if each not in shapes] == [
        each for each in plain.tags if each not in shapes
    ]
    assert f"{HOSTILE} was left out" in hostile.text
    assert f"hint: Get {HOSTILE}." in hostile.text


def test_the_page_refers_to_nothing_outside(report: ModuleType) -> None:
    """No script, no address; and a policy forbids what might slip in."""
    page = report.render(make_records())
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(Reader(page).tags)
    assert not REFERENCES.search(page)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_every_colour_is_for_light_and_dark(report: ModuleType) -> None:
    """The style gives each variable two values, and nothing is drawn in another colour."""
    page = report.render(make_records())
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert set(re.findall(r"--\w+", light)) == set(re.findall(r"--\w+", dark))
    body = page.partition("</style>")[2]
    assert not re.search(r"#[0-9a-f]{6}\b", body)


def test_pictures_are_files_of_their_own_too(report: ModuleType) -> None:
    """Each is well-formed, has its description and its colours, and refers to nothing outside."""
    made = report.draw(make_records(HOSTILE))
    assert list(made) == ["codecs-lean", "latencies-1", "growth", "bars"]
    for svg in made.values():
        picture = report.charts.standalone(svg)
        assert ET.fromstring(picture).get("aria-label")  # noqa: S314 - made here
        assert "prefers-color-scheme: dark" in picture
        assert not REFERENCES.search(picture)


@pytest.mark.parametrize("kinds", [{"run"}, {"run", "bar"}, {"run", "codec"}, {"run", "latency"}])
def test_a_part_of_a_run_has_a_page(report: ModuleType, kinds: set[str]) -> None:
    """A run of one case shows what there is."""
    records: list[dict[str, Any]] = [each for each in make_records() if each["kind"] in kinds]
    page = Reader(report.render(records))
    assert ("Which codec" in page.text) is ("codec" in kinds)


def test_the_docs_get_the_figures_of_one_run(report: ModuleType, tmp_path: Path) -> None:
    """The part between the marks is replaced, and the charts that the page names are written."""
    page = tmp_path / "performance.md"
    page.write_text("a\n<!-- figures -->\nold\n<!-- end of figures -->\n![b](images/growth.svg)\n")
    (tmp_path / "images").mkdir()
    for _ in range(2):
        report.write_docs(make_records(), tmp_path)
    text = page.read_text()
    assert text.startswith("a\n<!-- figures -->\nOne run of bbcache 1.0 with tiny counts")
    assert "| `prepare-a` | 1x +-5% | met |" in text
    assert text.endswith("<!-- end of figures -->\n![b](images/growth.svg)\n")
    assert "Other work kept the processors busy" in text
    assert "old" not in text
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["growth.svg"]
