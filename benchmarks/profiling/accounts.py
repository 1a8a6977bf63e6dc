"""Samples added up: how much of a round each step takes."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.profiling.steps import ASLEEP, GIL, HAND_OVER, is_untimed, step_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.profiling.stacks import Stack

_ROUND: Final = "Lineup._run"
_BESIDE: Final = "timed_beside.<locals>.run"
SERVICE: Final = "bbcache.bench.service_process"


class Account(NamedTuple):
    """Where the time of some rounds has gone.

    Attributes:
        steps: samples by step, `HAND_OVER` among them.
        timed_count: samples of the thread that runs the rounds, while the clock ran.
        stacks: those that were counted.
    """

    steps: Mapping[str, int]
    timed_count: int
    stacks: Sequence[Stack]

    @property
    def total(self) -> int:
        """The samples of all steps."""
        return sum(self.steps.values())

    def threads(self) -> float:
        """How many threads were at work at once, on average; at least one."""
        return max(1.0, self.total / self.timed_count) if self.timed_count else 1.0

    def shares(self) -> dict[str, float]:
        """The steps' shares of all, the greatest first; from 0 to 1."""
        ordered = sorted(self.steps.items(), key=lambda item: (-item[1], item[0]))
        return {step: count / self.total for step, count in ordered}


def account(stacks: Iterable[Stack]) -> Account:
    """Add up samples of a bar.

    A round is timed by one thread, and what others do meanwhile counts with it. Where it
    mostly waits for them, its own waits for the GIL do not, since others work then; and
    where none of them is at work, that is a hand-over between threads. Where something else
    is under way beside what is timed, it counts alone. Of a service in a process of its
    own, its threads count and nothing else.

    Args:
        stacks: all that were sampled, of sleeping threads too.
    """
    seen = list(stacks)
    service = [stack for stack in seen if SERVICE in stack.process]
    main = [stack for stack in seen if stack.is_main and stack.has(_ROUND)]
    main = [stack for stack in main if not is_untimed(stack)]
    timed_count = sum(stack.sample_count for stack in main)
    if service:
        return _added(service, 0)
    if any(stack.has(_BESIDE) for stack in main):
        return _added(main, timed_count)
    others = [stack for stack in seen if not stack.is_main and not stack.process]
    if _added(main, 0).total < timed_count / 2:
        main = [stack for stack in main if step_of(stack) != GIL]
    return _added([*main, *others], timed_count)


def _added(stacks: Iterable[Stack], timed_count: int) -> Account:
    steps: Counter[str] = Counter()
    counted = []
    for stack in stacks:
        step = step_of(stack)
        if step != ASLEEP:
            steps[step] += stack.sample_count
            counted.append(stack)
    if timed_count > steps.total():
        steps[HAND_OVER] = timed_count - steps.total()
    return Account(dict(steps), timed_count, counted)


def functions(found: Account) -> dict[str, float]:
    """The functions of bbcache by their shares of the time, the greatest first.

    Each with what it has called outside of bbcache, and without what it has called there.
    """
    counts: Counter[str] = Counter()
    for stack in found.stacks:
        inner = (frame for frame in reversed(stack.frames) if frame.file.startswith("bbcache/"))
        for frame in itertools.islice(inner, 1):
            counts[f"{frame.function} ({frame.file})"] += stack.sample_count
    return {name: count / found.total for name, count in counts.most_common()}


def holders(stacks: Iterable[Stack]) -> Account:
    """Add up samples of whoever held the GIL, all threads of the process that is measured."""
    seen = list(stacks)
    service = [stack for stack in seen if SERVICE in stack.process]
    return _added(service or [stack for stack in seen if not stack.process], 0)
