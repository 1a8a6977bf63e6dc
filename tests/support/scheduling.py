"""How xdist shares the tests out among its workers.

Each file goes to one worker, as with ``--dist loadfile``, but the fault tests go to one worker
together: they share a bed, which is made once in each worker that needs it. Files that take long
begin first, so that no worker is left alone with one of them at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

_TOGETHER: Final = "tests/faults"
_LEAST_PENDING: Final = 2
# The longest first. Others follow by their number of tests, as xdist has it.
LONG: Final = (
    _TOGETHER,
    "tests/cli/test_demo.py",
    "tests/testing/postgres/test_pytest.py",
    "tests/concurrency/test_interleavings.py",
    "tests/cli/test_serve.py",
    "tests/test_lifecycle.py",
    "tests/testing/postgres/test_servers.py",
    "tests/pageserver/test_adoption.py",
    "tests/pageserver/test_broken.py",
    "tests/test_interrupts.py",
    "tests/eviction/test_return_rate.py",
    "tests/pageserver/test_obstacles.py",
    "tests/benchmarks/test_suite.py",
    "tests/fetch/test_disk_faults.py",
    "tests/cli/test_serve_operations.py",
    "tests/cli/test_serve_start_signals.py",
    "tests/cli/test_output.py",
    "tests/testing/postgres/test_places.py",
    "tests/testing/postgres/test_killed_workers.py",
    "tests/concurrency/test_state_machine.py",
    "tests/pageserver/test_takeover_live.py",
    "tests/test_public_api.py",
    "tests/pageserver/test_compute_kills.py",
    "tests/page_service/test_service_soak.py",
    "tests/support/test_signals.py",
)


class BedScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """One worker for each file, and one for all files that share the fault harness."""

    def _split_scope(self, nodeid: str) -> str:
        is_on_the_bed = nodeid.startswith(f"{_TOGETHER}/")
        return _TOGETHER if is_on_the_bed else nodeid.partition("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = next((scope for scope in LONG if scope in self.workqueue), None)
        if first is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        """Give a worker two tests at least: it runs one when it knows the next, or that it is last.

        xdist gives a worker that takes the place of a lost one a single unit.
        """
        super()._reschedule(node)
        if not node.shutting_down and self._pending_of(self.assigned_work[node]) < _LEAST_PENDING:
            self._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Put back what a lost worker has not done, but not the files that it has."""
        work = self.assigned_work[node]
        for scope in [scope for scope, tests in work.items() if all(tests.values())]:
            del work[scope]
        lost_test: str | None = super().remove_node(node)
        return lost_test
