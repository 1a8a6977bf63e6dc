"""The page: well-formed, escaped, by itself, and readable in light and dark."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from support.bench_helpers import make_report

from bbcache.bench.contest import Curve, Figures
from bbcache.bench.latency import Distribution
from bbcache.bench.page import page
from bbcache.bench.plots import plots
from bbcache.bench.svg import standalone

if TYPE_CHECKING:
    from bbcache.bench.report import Report

HOSTILE = "<script src='http://x.test/'>\"&amp;]]>--></title></style>é\u2028"
_REFERENCES = {"src", "href", "action", "background", "poster", "data", "style"}


def parsed(report: Report) -> ET.Element:
    """The page as a tree: it is well-formed XML, too, so that any slip is an error."""
    return ET.fromstring(page(report).removeprefix("<!DOCTYPE html>"))  # noqa: S314 - made here


def text_of_page(report: Report) -> str:
    """All that can be read."""
    return "".join(parsed(report).itertext())


def test_everything_is_on_it() -> None:
    """The table with every verdict and hint, the plots, the notes, machine and versions."""
    text = text_of_page(make_report())
    for wanted in (
        *("prepare-a", "pass", "fail", "peer missing", "error", "hint: Get plain."),
        *("1x", "+-5%", "at most 1.5x", "at least 2x faster", "300 bytes"),
        *("1 of 4 bars met", "plain was left out", "200 calls", "tiny counts", "CPU"),
    ):
        assert wanted in text, wanted
    svgs = parsed(make_report()).iter("svg")
    assert sum(svg.get("role") == "img" for svg in svgs) == 3


def test_whatever_the_text_it_is_shown_and_no_more() -> None:
    """Every text from outside is escaped: the same elements stand there as with a plain one."""
    plain, hostile = parsed(make_report()), parsed(make_report(HOSTILE))
    assert [each.tag for each in hostile.iter()] == [each.tag for each in plain.iter()]
    text = text_of_page(make_report(HOSTILE))
    assert f"{HOSTILE} was left out" in text
    assert f"hint: Get {HOSTILE}." in text


def test_it_refers_to_nothing_outside() -> None:
    """No script, no import, no address; and a policy forbids what might slip in."""
    tree = parsed(make_report())
    tags = {each.tag for each in tree.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"}
    assert not {name for each in tree.iter() for name in each.attrib} & _REFERENCES
    style = "".join(each.text or "" for each in tree.iter("style"))
    assert not re.search(r"url\(|@import|//", style)
    policy = next(each for each in tree.iter("meta") if each.get("http-equiv"))
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"


def test_plots_are_files_of_their_own_too() -> None:
    """Each is well-formed, with title and legend in it, and escaped; names tell them apart."""
    made = plots(make_report(HOSTILE).figures)
    assert [each.name for each in made] == ["codecs-lean", "latencies", "growth-1"]
    for each in made:
        tree = ET.fromstring(standalone(each))  # noqa: S314 - made here
        text = "".join(tree.itertext())
        assert each.title in text
        assert all(series.name in text for series in each.series)
        assert not {name for node in tree.iter() for name in node.attrib} & _REFERENCES


def test_it_is_made_for_light_and_dark() -> None:
    """Each colour has a value for both, and nothing is drawn in a colour of its own."""
    text = page(make_report())
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    names = set(re.findall(r"--[\w]+", light))
    assert names == set(re.findall(r"--[\w]+", dark))
    body = text.partition("</style>")[2]
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb\(|(fill|stroke|color)=", body)


@pytest.mark.parametrize(
    "figures",
    [
        Figures(),
        Figures(curves=[Curve("nothing", {"none": []})]),
        Figures(curves=[Curve("one point", {"one": [(100.0, 1e-6)]})]),
        Figures(distributions={"one call": Distribution([0.0], [1e-6], 1)}),
        Figures(distributions={"too fast for the clock": Distribution([0.0], [0.0], 1)}),
    ],
)
def test_little_to_show_is_no_error(figures: Figures) -> None:
    """A run of one bar, or one with a single point, has a page all the same."""
    assert parsed(replace(make_report(), outcomes=[], figures=figures)).tag == "html"
