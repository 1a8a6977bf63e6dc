"""One bar under the profiler: its two sides, run as the benchmark runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.bench.bars import Sense
from bbcache.bench.rounds import Lineup
from bbcache.bench.suite import run
from bbcache.errors import ConfigError
from benchmarks.profiling.accounts import Account, account, holders
from benchmarks.profiling.sampler import ProfilerError, count_calls, sample
from benchmarks.profiling.steps import GIL, HAND_OVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bbcache.bench.bars import Bar
    from bbcache.bench.contest import Contest
    from bbcache.bench.latency import Distribution
    from bbcache.bench.rounds import Pace
    from bbcache.bench.scene import Scene
    from benchmarks.profiling.stacks import Stack

_GIL_MATTERS: Final = 0.2
_HALF: Final = 0.5
_CALLS: Final = 500_000  # more than fit
_LATENCY_S: Final = 2.0


class Plan(NamedTuple):
    """How a bar is sampled.

    Attributes:
        py_spy: the path of the profiler.
        duration_s: whole seconds for each side.
        rate_hz: samples a second.
    """

    py_spy: str
    duration_s: int
    rate_hz: int


class Samples(NamedTuple):
    """What the profilers have seen.

    Attributes:
        ours: where bbcache's time goes.
        peers: the same of the peer, where it is Python in this process.
        holders: who holds the GIL, where waiting for it matters.
        calls: system calls a round, by name; None where they were not counted.
    """

    ours: Account
    peers: Account | None
    holders: Account | None
    calls: Mapping[str, float] | None


class Profile(NamedTuple):
    """What was found out about a bar.

    Attributes:
        bar: the bar.
        cost_ratio: how many times what the peer costs bbcache costs, without a profiler.
        samples: what the profilers have seen.
        latencies: of single calls, by what was called; empty where none were taken.
    """

    bar: Bar
    cost_ratio: float
    samples: Samples
    latencies: Mapping[str, Distribution]


class _Stage(Lineup):
    """Contestants that run under the profiler, one after the other. For one thread.

    Args:
        bar: it has the two.
        plan: how they are sampled.
        is_counting: whether the system calls of a round are of interest.

    Attributes:
        seen: what it has seen; None before the race, and where a side has failed.
    """

    def __init__(self, bar: Bar, plan: Plan, *, is_counting: bool) -> None:
        super().__init__({bar.what, bar.against})
        self.seen: Samples | None = None
        self._bar = bar
        self._plan = plan
        self._is_counting = is_counting

    def race(self, pace: Pace) -> None:  # noqa: ARG002 - the plan says how long
        """Warm both sides up, then sample each."""
        what, against = self._bar.what, self._bar.against
        for name in (what, against):
            self._run(name)
        if self.failed:
            return
        ours = account(self._sampled(what, "--native", "--idle"))
        peers = calls = None
        if ours.timed_count:
            peers = account(self._sampled(against, "--native", "--idle"))
        if ours.timed_count and self._is_counting:
            calls = count_calls(lambda: self._run(what), self._plan.duration_s / 2)
        if peers is not None and peers.steps.get(HAND_OVER, 0) > _HALF * peers.total:
            peers = None  # it works in processes of its own
        self.seen = Samples(ours, peers, self._holders(ours), calls)

    def _holders(self, ours: Account) -> Account | None:
        if ours.steps.get(GIL, 0) < _GIL_MATTERS * ours.total:
            return None
        return holders(self._sampled(self._bar.what, "--gil"))

    def _sampled(self, name: str, *options: str) -> list[Stack]:
        _, duration_s, rate_hz = self._plan
        how = ["--subprocesses", "--rate", str(rate_hz), *options]
        return sample(self._plan.py_spy, lambda: self._run(name), duration_s, how)


def profile(contest: Contest, bar: Bar, scene: Scene, plan: Plan) -> Profile:
    """Measure a bar as the benchmark does, then run it once more under the profiler.

    Args:
        contest: the one that has the bar.
        bar: the bar.
        scene: its counts say how long is measured.
        plan: how it is sampled.

    Raises:
        ConfigError: the bar compares no times.
        ProfilerError: one of its sides cannot run, or there was nothing to be seen.
    """
    if bar.unit != "x":
        raise ConfigError(
            f"{bar.name} compares {bar.unit}, and a profile is one of time\n"
            "hint: `bbcache bench --list` names the bars that are ratios."
        )
    cut = contest._replace(bars=(bar,), is_cut=True)
    (outcome,), figures = run([cut], scene, lambda *_: None)
    if outcome.value is None:
        raise ProfilerError(f"{bar.name} cannot be measured: {outcome.reason}")
    stage = _Stage(bar, plan, is_counting=not figures.distributions)
    counts = scene.counts
    # Longer rounds of single calls: less of the samples then lies between two rounds.
    scene.counts = counts._replace(calls=_CALLS, latency_s=_LATENCY_S)
    try:
        contest.measure(scene, stage)
    finally:
        scene.counts = counts
    if stage.seen is None or not stage.seen.ours.total:
        reasons = [*stage.missing.values(), *stage.failed.values()]
        raise ProfilerError(f"{bar.name} was not seen at work: {' '.join(reasons)}".strip(": "))
    cost = outcome.value if bar.sense is Sense.AT_MOST else 1 / outcome.value
    return Profile(bar, cost, stage.seen, figures.distributions)
