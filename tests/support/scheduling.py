"""How xdist shares the tests out among its workers.

Each file goes to one worker, as with ``--dist loadfile``, but the fault tests go to one worker
together: they share a bed, which is made once in each worker that needs it.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

_TOGETHER = "tests/faults"


class BedScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """One worker for each file, and one for all files that share the fault bed."""

    def _split_scope(self, nodeid: str) -> str:
        is_on_the_bed = nodeid.startswith(f"{_TOGETHER}/")
        return _TOGETHER if is_on_the_bed else nodeid.partition("::")[0]
