"""Tables of a profile, and their places in a page."""

from __future__ import annotations

import pytest

from bbcache.bench.bars import Bar, Sense
from bbcache.bench.latency import Distribution
from bbcache.errors import ConfigError
from benchmarks.profiling.accounts import Account
from benchmarks.profiling.stage import Profile, Samples
from benchmarks.profiling.steps import GIL
from benchmarks.profiling.tables import (
    call_lines,
    function_lines,
    lines,
    marked_bars,
    merged,
    picture_in,
    put_into,
    quantile_of,
)

BAR = Bar("prepare-a", "ours", "theirs", Sense.AT_MOST, 1.2)
OURS = Account(
    {"compress": 50, "fsync": 30, "hand-over": 18, "metrics": 1, "accounting": 1}, 100, ()
)
THEIRS = Account({"compress": 60, "fsync": 40}, 100, ())


def samples(ours: Account, peers: Account | None = None) -> Samples:
    """Samples of nothing but two sides."""
    return Samples(ours, peers, None, None)


def test_steps_stand_in_times_of_what_the_peer_takes() -> None:
    """So that what the peer has too, the floor, is seen beside what it has not."""
    table = list(lines(Profile(BAR, 1.5, samples(OURS, THEIRS), {})))
    assert table == [
        "**`prepare-a`**: 1.50x (*ours*, against *theirs*); 100 samples.",
        "",
        "| step | share | in times of the peer | peer |",
        "| --- | --- | --- | --- |",
        "| compress | 50% | 0.75x | 0.60x |",
        "| fsync | 30% | 0.45x | 0.40x |",
        "| hand-over | 18% | 0.27x |  |",
        "| 2 more, each below 2% | 2% | 0.03x |  |",
        "| all | 100% | 1.50x | 1.00x |",
    ]


def test_a_peer_of_other_processes_has_no_column() -> None:
    """And a bar of so many times faster says so; threads at once add up to more."""
    bar, ours = BAR._replace(sense=Sense.AT_LEAST), Account({"compress": 180}, 100, ())
    table = list(lines(Profile(bar, 0.5, samples(ours), {})))
    assert table[0].startswith("**`prepare-a`**: 2.00x as fast (*ours*, against *theirs*); 1.8 thr")
    assert table[2:] == [
        "| step | share | in times of the peer |",
        "| --- | --- | --- |",
        "| compress | 100% | 0.90x |",
        "| all threads | 100% | 0.90x |",
    ]


def test_latencies_stand_beside_the_waiting_for_the_gil() -> None:
    """Their own time is no sum of steps; who holds the GIL is told instead."""
    ours = Account({GIL: 90, "get": 9, "metrics": 1}, 100, ())
    held = Account({"clean-up step": 3, "get": 1}, 0, ())
    taken = {
        "ours": Distribution([0.0, 0.5, 0.99], [1e-6, 4e-6, 1e-3], 1000),
        "theirs": Distribution([0.0, 0.5, 0.99], [1e-6, 2e-6, 4e-6], 1000),
    }
    table = list(lines(Profile(BAR, 250.0, Samples(ours, None, held, None), taken)))
    assert table == [
        "**`prepare-a`**: 250x (*ours*, against *theirs*); 100 samples.",
        "",
        "| step | share | share of the rest |",
        "| --- | --- | --- |",
        "| waiting for the GIL | 90% |  |",
        "| get | 9% | 90% |",
        "| metrics | 1% | 10% |",
        "",
        "| latency, in times of the peer's p50 | bbcache | peer |",
        "| --- | --- | --- |",
        "| p50 | 2.00x | 1.00x |",
        "| p90 | 500x | 2.00x |",
        "| p99 | 500x | 2.00x |",
        "| p99.9 | 500x | 2.00x |",
        "",
        "| who holds the GIL, at what | share |",
        "| --- | --- |",
        "| clean-up step | 75% |",
        "| get | 25% |",
    ]


def test_where_nobody_waits_for_the_gil_one_column_does() -> None:
    """Such as of a service in a process of its own: there is no round to compare with."""
    ours = Account({"page service": 70, "kernel: send": 30}, 0, ())
    assert list(lines(Profile(BAR, 4.0, samples(ours), {})))[2:] == [
        "| step | share |",
        "| --- | --- |",
        "| page service | 70% |",
        "| kernel: send | 30% |",
    ]


def test_what_is_small_on_both_sides_is_one_row() -> None:
    """No share is lost, and a step that the peer alone has is kept."""
    rows = merged({"a": 0.97, "b": 0.015, "c": 0.015}, {"a": 0.5, "d": 0.49, "b": 0.01})
    assert [row[0] for row in rows] == ["a", "d", "2 more, each below 2%"]
    assert sum(row[1] for row in rows) == pytest.approx(1.0)
    assert sum(row[2] for row in rows) == pytest.approx(1.0)


def test_a_quantile_is_one_of_those_that_were_kept() -> None:
    """The first that is not below the one asked for, else the greatest."""
    distribution = Distribution([0.0, 0.5, 0.9], [1.0, 2.0, 3.0], 100)
    assert [quantile_of(distribution, each) for each in (0.0, 0.5, 0.7, 0.99)] == [1, 2, 3, 3]


def test_calls_stand_by_their_number() -> None:
    """Those that come less than every other round are left out."""
    assert list(call_lines({"fsync": 1.0, "futex": 1500.0, "mmap": 0.2})) == [
        "     1,500.0  futex",
        "         1.0  fsync",
    ]


PAGE = """\
# A
<!-- profile: a -->
old
<!-- end of profile -->
B
<!-- profile: b -->
<!-- end of profile -->
"""


def test_a_profile_takes_the_place_of_the_old_one() -> None:
    """And touches nothing else of the page, however often."""
    page = put_into(put_into(PAGE, "a", "older\n"), "a", "new\\1\n")
    assert page == PAGE.replace("old\n", "new\\1\n")
    assert marked_bars(page) == ["a", "b"]


def test_a_page_without_a_place_is_refused() -> None:
    """By name, with what to write into it."""
    with pytest.raises(ConfigError, match=r"no place for the profile of c\nhint: Put `<!-- prof"):
        put_into(PAGE, "c", "new\n")


def test_functions_stand_by_their_share() -> None:
    """Small ones are left out."""
    assert list(function_lines({"f (a.py)": 0.7, "g (b.py)": 0.019})) == ["   70%  f (a.py)"]


def test_a_page_names_the_picture_of_a_bar() -> None:
    """Of this bar, and of no other with a longer name."""
    page = "![x](images/profile-start.svg) ![y](images/profile-get-p99-builds.svg)"
    assert picture_in(page, "start") == "images/profile-start.svg"
    assert picture_in(page, "get-p99") is None
    assert picture_in(page, "builds") is None
