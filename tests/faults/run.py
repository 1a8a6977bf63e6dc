"""The long runs, for anyone who wants to be sure; counts on stdout, 1 on any complaint.

python tests/faults/run.py matrix --all         every fault at every call of a life
python tests/faults/run.py matrix --count 5     five shares of it, chosen at random
python tests/faults/run.py powerloss --lives 5 --count 40
python tests/faults/run.py kills --count 1000
python tests/faults/run.py matrix --tier        each of these with a second tier
python tests/faults/run.py matrix --full        each of these with a cache that has to evict
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

TESTS_DIR = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS_DIR), str(TESTS_DIR.parent)]

from faults import kills, matrix, power_loss, shim  # noqa: E402 - found by the lines above
from faults.harness import FaultHarness  # noqa: E402
from faults.life import ALWAYS_FULL, STORIES, WITH_TIER  # noqa: E402


def say(what: object) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def run_matrix(harness: FaultHarness, args: argparse.Namespace, rng: random.Random) -> bool:
    """One line for each way to fail in each story."""
    is_good = True
    for story in args.story or STORIES:
        calls = matrix.fault_free_calls(harness.benches[0], story)
        say(f"a life that is {story} makes {len(calls)} calls below the directory")
        for name in args.column or matrix.COLUMNS:
            column = matrix.COLUMNS[name]
            faults = matrix.whole_column(column, calls)
            if not args.all:
                shares = [matrix.share_of_column(column, calls, rng) for _ in range(args.count)]
                faults = list(dict.fromkeys(fault for share in shares for fault in share))
            summary = matrix.run(harness, faults, story)
            say(f"{story}, {name}: {summary}")
            for result in summary.bad[:5]:
                say(f"COMPLAINT {result}")
            is_good = is_good and not summary.bad
    return is_good


def run_power_loss(harness: FaultHarness, args: argparse.Namespace, rng: random.Random) -> bool:
    """Every image once with each way to verify."""
    counts: Counter[str] = Counter()
    for _ in range(args.lives):
        disk, calls = power_loss.record_life(harness.benches[0])
        images = power_loss.all_images(disk, calls, rng, args.count)
        starts = [(image, verify) for image in images for verify in ("first", "never")]
        counts["images"] += len(images)
        for complaints in harness.each(lambda b, start: power_loss.start_on(b, *start), starts):
            counts["starts"] += 1
            counts["with complaints"] += bool(complaints)
            for complaint in complaints:
                say(f"COMPLAINT {complaint}")
    say(f"{args.lives} lives: {dict(counts)}")
    return not counts["with complaints"]


def run_kills(harness: FaultHarness, args: argparse.Namespace, rng: random.Random) -> bool:
    """A series of kills on each bench."""
    count = -(-(args.count) // len(harness.benches))
    seeds = [rng.randrange(1 << 30) for _ in harness.benches]
    is_good = True
    for tally in harness.each(lambda b, seed: kills.kill_again_and_again(b, count, seed), seeds):
        say(tally)
        for complaint in tally.complaints:
            say(f"COMPLAINT {complaint}")
        is_good = is_good and not tally.complaints
    return is_good


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["matrix", "powerloss", "kills"])
    parser.add_argument("--all", action="store_true", help="the whole matrix")
    parser.add_argument(
        "--count", type=int, help="shares (1), images of a moment (10), kills (1000)"
    )
    parser.add_argument("--story", action="append", choices=STORIES, help="of the lives; all")
    parser.add_argument(
        "--column", action="append", choices=matrix.COLUMNS, help="ways to fail; all"
    )
    parser.add_argument("--lives", type=int, default=1, help="recorded for power losses")
    parser.add_argument("--tier", action="store_true", help="give each cache a second tier")
    parser.add_argument("--full", action="store_true", help="give each cache too few entries")
    parser.add_argument("--jobs", type=int, help="at once; by default as many as there are CPUs")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    args.count = args.count or {"matrix": 1, "powerloss": 10, "kills": 1000}[args.what]
    compiler = shim.find_compiler()
    if compiler is None:
        parser.error("there is no C compiler")
    if args.tier:
        os.environ[WITH_TIER] = "1"
    if args.full:
        os.environ[ALWAYS_FULL] = "1"
    say(f"seed {args.seed}")
    runs = {"matrix": run_matrix, "powerloss": run_power_loss, "kills": run_kills}
    started_s = time.monotonic()
    with FaultHarness(compiler, args.jobs) as harness:
        is_good = runs[args.what](harness, args, random.Random(args.seed))
    say(f"{'all well' if is_good else 'COMPLAINTS'} after {time.monotonic() - started_s:.0f} s")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
