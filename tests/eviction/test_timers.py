"""Items by the second in which they are due."""

from __future__ import annotations

from bbcache.eviction.timers import Timers


def test_items_are_due_at_their_second_and_counted() -> None:
    """The count says how many wait, so that the policy knows when to take out idle ones."""
    timers = Timers[str]()
    for due_s, item in ((1.5, "a"), (2.0, "b"), (3.0, "c"), (9.0, "d")):
        timers.add(due_s, item)
    assert timers.count == 4
    assert timers.due(1.9) == []
    assert timers.due(2.0) == ["a", "b"]
    assert timers.count == 2
    timers.trim(lambda item: item == "d")
    assert timers.count == 1
    assert timers.due(10.0) == ["d"]
    assert timers.count == 0
