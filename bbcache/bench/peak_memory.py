"""The peak of memory of one full prepare, in a process of its own.

``python -m bbcache.bench.peak_memory PGDATA DIR`` prints the resident bytes of the
idle process, and the most it had until the prepare was published (VmHWM, proc(5)).
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene

_MIB: Final = 1 << 20
_KIB: Final = 1 << 10
_TIMEOUT_S: Final = 120.0
_PREPARE: Final = "bbcache, peak of a full prepare at ten times the scale, over the idle process"


def _measure(scene: Scene, lineup: Lineup) -> Figures:
    def enter() -> Callable[[], float]:
        pgdata_dir = scene.grown_pgdata_dir
        return lambda: measure_growth_mib(scene, pgdata_dir)

    lineup.add(_PREPARE, enter)
    lineup.race(scene.counts.memory_pace)
    return Figures()


def measure_growth_mib(scene: Scene, pgdata_dir: Path) -> float:
    """How far the memory of a process rises for one prepare, in MiB."""
    with scene.scratch() as directory:
        command = [sys.executable, "-m", __name__, str(pgdata_dir), str(directory / "cache")]
        done = subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)  # noqa: S603 - this very module
    said: dict[str, int] = json.loads(done.stdout)
    return (said["peak_bytes"] - said["idle_bytes"]) / _MIB


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(f"/proc/self/status has no {name}")
    return int(match[1]) * _KIB


def main(pgdata_dir: Path, data_dir: Path) -> None:
    """Prepare once, and print the memory before and at most."""
    with Pipeline(data_dir) as pipeline:
        timeline = pipeline.add_pgdata_timeline(pgdata_dir)
        gc.collect()
        idle_bytes = _status_bytes("VmRSS")
        pipeline.prepare(timeline)
        peak_bytes = _status_bytes("VmHWM")
        (entry,) = pipeline.cache.entries()
    print(  # noqa: T201 - for the process that has started this one
        json.dumps(
            {
                "idle_bytes": idle_bytes,
                "peak_bytes": peak_bytes,
                "archive_bytes": entry.size_bytes,
            }
        )
    )


CONTESTS: Final = (
    Contest(
        "memory of a prepare",
        (Bar("memory-prepare", _PREPARE, "", Sense.AT_MOST, 24, "MiB"),),
        _measure,
    ),
)

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
