"""Every contest, which of them are wanted, and running them."""

from __future__ import annotations

import fnmatch
import logging
from typing import TYPE_CHECKING, Final

from bbcache.bench import (
    codec_plots,
    crowds,
    peak_memory,
    prepares,
    reads,
    restores,
    service,
    service_crowds,
)
from bbcache.bench.bars import Outcome, Verdict
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.peers import PeerMissingError
from bbcache.bench.rounds import Lineup
from bbcache.errors import safe_str

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from bbcache.bench.scene import Scene

# Restores first: what others remove may slow them down (see `restores.fresh_directories`).
CONTESTS: Final[tuple[Contest, ...]] = (
    *restores.CONTESTS,
    *prepares.CONTESTS,
    *reads.CONTESTS,
    *crowds.CONTESTS,
    *service.CONTESTS,
    *service_crowds.CONTESTS,
    *peak_memory.CONTESTS,
    *codec_plots.CONTESTS,
)

log = logging.getLogger(__name__)


def select(patterns: Sequence[str], contests: Sequence[Contest] = CONTESTS) -> list[Contest]:
    """The contests with bars, or names, that are wanted, each with those bars alone.

    Args:
        patterns: names of bars or of groups: in full; with wildcards, as of the shell; or
            a part of them. None at all means everything.
        contests: what there is.
    """
    names = {each.group for each in contests} | {bar.name for each in contests for bar in each.bars}
    globs = [_glob(pattern, names) for pattern in patterns] or ["*"]
    chosen = []
    for contest in contests:
        bars = tuple(bar for bar in contest.bars if _matches(bar.name, globs))
        if _matches(contest.group, globs):
            chosen.append(contest)
        elif bars:
            chosen.append(contest._replace(bars=bars, is_cut=bars != contest.bars))
    return chosen


def _glob(pattern: str, names: Collection[str]) -> str:
    if pattern in names or any(mark in pattern for mark in "*?["):
        return pattern
    return f"*{pattern}*"


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def run(
    contests: Sequence[Contest], scene: Scene, progress: Callable[[int, Contest], None]
) -> tuple[list[Outcome], Figures]:
    """Run contests, one after the other.

    Args:
        contests: those that are wanted, as of `select`.
        scene: what they share.
        progress: called with a number from 1 and what begins.

    Returns:
        An outcome for every bar, whatever failed, and what the plots show.
    """
    outcomes: list[Outcome] = []
    figures = Figures()
    for number, contest in enumerate(contests, 1):
        progress(number, contest)
        outcomes.extend(_run_one(contest, scene, figures))
    return outcomes, figures


def _run_one(contest: Contest, scene: Scene, figures: Figures) -> Iterator[Outcome]:
    lineup = Lineup(contest.contestants())
    try:
        found = contest.measure(scene, lineup)
        outcomes = contest.judge(lineup)
    except PeerMissingError as error:
        yield from _without_figures(contest, Verdict.MISSING, error, figures)
    except Exception as error:
        log.debug("%s failed", contest.group, exc_info=error)
        yield from _without_figures(contest, Verdict.ERROR, error, figures)
    else:
        figures.extend(found)
        yield from outcomes


def _without_figures(
    contest: Contest, verdict: Verdict, error: BaseException, figures: Figures
) -> Iterator[Outcome]:
    reason = safe_str(error)
    if not contest.bars:
        figures.notes.append(f"{contest.group}: {verdict}: {reason}")
    for bar in contest.bars:
        yield Outcome(bar, contest.group, verdict, reason=reason)
