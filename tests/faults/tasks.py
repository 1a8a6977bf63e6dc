"""What a child of the fork server can be told to do."""

from __future__ import annotations

import gc
import traceback
from typing import TYPE_CHECKING, Any, Final

from faults import life, load, restart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TASKS: Final[dict[str, Callable[..., None]]] = {
    "life": life.live,
    "restart": restart.check,
    "load": load.load,
}


def run(
    task: str, data_dir: Path, witness: life.Witness, arguments: dict[str, Any]
) -> dict[str, list[str]]:
    """Run a task in this process; returns what its witness has seen."""
    witness.watch_interpreter()
    try:
        _TASKS[task](data_dir, witness, **arguments)
    except BaseException:  # noqa: BLE001 - of the test harness itself
        witness.problems.append(traceback.format_exc())
    gc.collect()  # whose finalisers may have something to say
    return witness.report()


def exit_code(report: dict[str, list[str]]) -> int:
    """The exit code that tells of a report."""
    if report["wrong"]:
        return life.EXIT_WRONG
    return life.EXIT_PROBLEM if report["problems"] else 0
