"""An explanation as a text: the parts that a cache of moments cannot reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bbcache.eviction.habits import Habits, Regularity
from bbcache.explanation import habits_text

HABITS = Habits(
    typical_sleep_s=38 * 60 + 12.0,
    regularity=Regularity.NOT_REGULAR,
    sleeps_seen=41,
    starts_by_hour=(0,) * 24,
    asleep_s=52 * 60 + 59.0,
    horizon_s=40 * 60.0,
    return_share=0.61,
)
HABITS_TEXT = (
    "sleeps 38 min typically, not regular, 41 seen; asleep 52 min; "
    "of its kind 61% return within 40 min"
)
RUNNING = replace(HABITS, asleep_s=None, horizon_s=None, return_share=None)


@pytest.mark.parametrize(
    ("habits", "text"),
    [
        (None, "not known"),
        (
            HABITS,
            HABITS_TEXT,
        ),
        (
            replace(RUNNING, sleeps_seen=255),
            "sleeps 38 min typically, not regular, 255 or more seen; runs now",
        ),
        (replace(RUNNING, sleeps_seen=1), "sleeps 38 min typically, 1 seen; runs now"),
        (
            replace(HABITS, typical_sleep_s=None, sleeps_seen=0, asleep_s=7.0, horizon_s=90_000.0),
            "has not started after a stop yet; asleep 7 s; of its kind 61% return within 1 d 1 h",
        ),
    ],
)
def test_habits_in_words(habits: Habits | None, text: str) -> None:
    """As much as is known, in the words of people."""
    assert habits_text(habits) == text
