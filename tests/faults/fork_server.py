"""A warm process, started with the shim, of which every life is a fork.

Starting Python, importing the cache and taking it all down again takes ten times as
long as a whole life, of which the fault matrix has thousands. A fork has no threads of
its parent's; it arms the shim, lives, looks for what is left over, and is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

TESTS_DIR: Final = Path(__file__).parent.parent
HANG_S: Final = 60.0  # a life takes a tenth of a second; machines can be busy
_READY: Final = "ready"
_EXIT_BROKEN: Final = 70  # the harness itself has failed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def python_path() -> str:
    """What a child needs to find the tests, and what its parent has found."""
    paths = [str(TESTS_DIR), str(TESTS_DIR.parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


@dataclass(slots=True)
class Outcome:
    """How a fork ended.

    Attributes:
        status: its exit code; minus the signal's number where one ended it.
        is_hung: whether it had to be ended, after `HANG_S` seconds.
        wrong: gets that returned wrong bytes.
        problems: everything else that must not be.
        notes: what may be, and is worth counting.
        said: the end of what it said on stderr.
    """

    status: int
    is_hung: bool
    wrong: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    said: str = ""

    @property
    def is_killed(self) -> bool:
        """Whether it was killed, by the shim or by us."""
        return self.status == -signal.SIGKILL and not self.is_hung

    def complaints(self, *, may_be_killed: bool = False) -> list[str]:
        """Everything that is not as it must be."""
        found = [*(f"WRONG BYTES: {line}" for line in self.wrong), *self.problems]
        if self.is_hung:
            found.append(f"hung:\n{self.said}")
        elif self.status != 0 and not (may_be_killed and self.is_killed) and not found:
            found.append(f"ended with {self.status}:\n{self.said}")
        return found


class ForkServer:
    """The warm process, from outside. For one thread; a context manager.

    Args:
        library: the shim.
    """

    def __init__(self, library: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="bbcache-fork-server-")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "faults.fork_server"],
            env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def run(
        self,
        task: str,
        data_dir: Path,
        *,
        told: Mapping[str, str] | None = None,
        kill_after_s: float | None = None,
        kill_from_work: bool = False,
        mutation: str | None = None,
        hang_s: float = HANG_S,
        **arguments: Any,
    ) -> Outcome:
        """Run a task of `faults.tasks` in a fork.

        Args:
            task: its name.
            data_dir: the directory of its cache.
            told: the shim's settings; none where it is not to look at all.
            kill_after_s: when to kill it; None lets it end by itself.
            kill_from_work: whether that is counted from the moment at which the task
                says that it is at work, and not from its start.
            mutation: of `mutations.ALL`, done to the cache before.
            hang_s: after how many seconds it counts as hung.
            arguments: of the task; plain values.
        """
        for name in ("report", "stderr"):
            (Path(self._scratch.name) / name).unlink(missing_ok=True)
        order = {
            "task": task,
            "data_dir": str(data_dir),
            "told": dict(told or {}),
            "kill_after_s": kill_after_s,
            "kill_from_work": kill_from_work,
            "arguments": arguments,
            "mutation": mutation,
            "hang_s": hang_s,
            "scratch": self._scratch.name,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        ended = self._receive()
        with contextlib.suppress(FileNotFoundError):
            ended |= json.loads((Path(self._scratch.name) / "report").read_text())
        said = (Path(self._scratch.name) / "stderr").read_text(errors="replace")
        return Outcome(**ended, said=said[-4000:])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(HANG_S)
        self._process.stdout.close()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait(HANG_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _watch(pid: int, ready_fd: int, order: dict[str, Any]) -> dict[str, Any]:
    """Wait for a fork's end, which comes by itself, by our hand, or too late."""
    kill_after_s, hang_s = order["kill_after_s"], order["hang_s"]
    pidfd = os.pidfd_open(pid)
    try:
        if kill_after_s is not None:
            select.select([ready_fd], [], [], hang_s)
            select.select([pidfd], [], [], kill_after_s)
            os.kill(pid, signal.SIGKILL)
        is_hung = not select.select([pidfd], [], [], hang_s)[0]
        if is_hung:
            os.kill(pid, signal.SIGABRT)  # faulthandler tells where its threads are
    finally:
        os.close(pidfd)
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "is_hung": is_hung}


def _become(order: dict[str, Any], ready_fd: int) -> int:
    """In the fork: do what was ordered; returns the exit code."""
    from faults import mutations, shim, tasks  # noqa: PLC0415 - imported before, now named
    from faults.life import Witness  # noqa: PLC0415

    scratch = Path(order["scratch"])
    stderr_fd = os.open(scratch / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for fd in (1, 2):
        os.dup2(stderr_fd, fd)
    os.close(stderr_fd)
    faulthandler.enable(sys.__stderr__ or 2)
    if order["told"]:
        shim.arm(order["told"])
    witness = Witness()
    witness.begin_work = lambda: os.write(ready_fd, b".")
    if not order["kill_from_work"]:
        witness.begin_work()
    if order["mutation"]:
        mutations.ALL[order["mutation"]]()
    report = tasks.run(order["task"], Path(order["data_dir"]), witness, order["arguments"])
    (scratch / "new").write_text(json.dumps(report))
    (scratch / "new").rename(scratch / "report")
    return tasks.exit_code(report)


def _end_with(work: Callable[[], int]) -> None:
    """End this process with what `work` returns, and whatever it raises."""
    try:
        os._exit(work())
    finally:
        traceback.print_exc()
        os._exit(_EXIT_BROKEN)


def _send(answer: object) -> None:
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the process that gave the order is gone
        os._exit(_EXIT_BROKEN)


def main() -> int:
    """Take orders from stdin until it ends, each in a fork."""
    import faults.mutations  # noqa: PLC0415
    import faults.tasks  # noqa: F401, PLC0415 - what takes the time
    from faults import fixed_host  # noqa: PLC0415

    fixed_host.warm_up()
    gc.freeze()  # so that a collection in a fork looks at what is its own only
    _send(_READY)
    for line in sys.stdin:
        order = json.loads(line)
        ready_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            _end_with(partial(_become, order, write_fd))
        os.close(write_fd)
        ended = _watch(pid, ready_fd, order)
        os.close(ready_fd)
        _send(ended)
    return 0


if __name__ == "__main__":
    sys.exit(main())
