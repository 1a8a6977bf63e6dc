"""The ring of outcomes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from support.helpers import KEY, LSN, make_keys, run_threads

from bbcache import history as history_module
from bbcache.history import MOST_OUTCOMES, History
from bbcache.outcomes import ReadResult, RemovalReason, SkipReason


def test_outcomes_of_one_timeline_newest_first() -> None:
    """Time, kind, result, LSN and text of each; others are left out."""
    clock = itertools.count(1000)
    history = History(lambda: float(next(clock)))
    history.add(KEY, LSN, SkipReason.FULL, "no room\nhint: none")
    history.add(make_keys(1)[0], LSN, ReadResult.MISS)
    history.add(KEY, LSN + 1, RemovalReason.NEWCOMER)
    evicted, full = history.of(KEY, 10)
    assert (evicted.what, evicted.result, evicted.lsn) == ("removal", "newcomer", LSN + 1)
    assert (full.what, full.result, full.lsn) == ("prepare", "full", LSN)
    assert full.text == f"{SkipReason.FULL.text}: no room"
    assert full.at == datetime.fromtimestamp(1001, UTC)
    assert history.since() == datetime.fromtimestamp(1000, UTC)
    assert history.of(KEY, 1) == (evicted,)


def test_the_ring_has_a_fixed_size() -> None:
    """The oldest outcomes go first, and the explanation knows from when on it is whole."""
    clock = itertools.count(0)
    history = History(lambda: float(next(clock)))
    for number in range(MOST_OUTCOMES + 5):
        history.add(KEY, number, ReadResult.MISS, "x" * 10_000)
    kept = history.of(KEY, MOST_OUTCOMES + 5)
    assert len(kept) == MOST_OUTCOMES
    assert kept[-1].lsn == 5
    assert history.since() == kept[-1].at
    assert len(kept[0].text) < 500


def test_records_and_readers_at_once() -> None:
    """Neither waits for the other, nor meets a ring that changes under its hands."""
    history = History()

    def record() -> None:
        for number in range(5000):
            history.add(KEY, number, ReadResult.MISS)

    def read() -> None:
        for _ in range(30):
            lsns = [each.lsn for each in history.of(KEY, MOST_OUTCOMES)]
            assert len(lsns) <= MOST_OUTCOMES
            history.since()

    run_threads([record, record, read, read])
    assert len(history.of(KEY, MOST_OUTCOMES)) == MOST_OUTCOMES


@pytest.mark.parametrize("kind", list(history_module._WHAT))
def test_every_kind_of_outcome_has_a_name(kind: type[ReadResult]) -> None:
    """What an outcome is of, is known for each of its kinds."""
    history = History()
    for outcome in kind:
        history.add(KEY, LSN, outcome)
    assert {each.result for each in history.of(KEY, 100)} == {each.value for each in kind}
