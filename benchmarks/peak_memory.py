"""The peak of memory of one full prepare, in a process of its own.

``python -m benchmarks.peak_memory PGDATA DIR`` prints the resident bytes of the
idle process, and their peak until the prepare was published (VmHWM, proc(5)).
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.pipeline import Pipeline

_MIB: Final = 1 << 20
_KIB: Final = 1 << 10
_TIMEOUT_S: Final = 120.0


def growth_mib(pgdata_dir: Path, data_dir: Path) -> float:
    """Return how far the memory of a process rises for one prepare, in MiB."""
    command = [sys.executable, "-m", __name__, str(pgdata_dir), str(data_dir)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
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
    print(json.dumps({"idle_bytes": idle_bytes, "peak_bytes": peak_bytes}))  # noqa: T201 - for `growth_mib`


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
