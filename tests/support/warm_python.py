"""A process that has its imports behind it, of which every start of a function is a fork.

To start Python and import the package takes most of the processor time of many tests that need a
process of their own. A fork of a warm process is such a process: it has its own streams and
signals, it runs its main thread to the end, and the interpreter exits as it always does. Tests of
imports, of command lines and of inherited signals start Python itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_ORDER_BYTES: Final = 1 << 20
_ALL_FDS: Final = 1 << 20
_FD_COUNT: Final = 4  # the three standard streams, and where the status is written


class WarmChild:
    """A process that runs a function; much like `subprocess.Popen`, with text streams.

    Attributes:
        pid: its process id.
        stdin: what it reads.
        stdout: what it prints.
        stderr: what it complains of.
        returncode: its exit status, minus the signal's number where a signal ended it; None until
            `poll` or `wait` has found its end.
    """

    def __init__(self, pid: int, streams: Sequence[int], status_fd: int) -> None:
        self.pid = pid
        self.stdin = open(streams[0], "w")  # noqa: SIM115 - closed by __exit__
        self.stdout = open(streams[1])  # noqa: SIM115
        self.stderr = open(streams[2])  # noqa: SIM115
        self.returncode: int | None = None
        self._status_fd = status_fd

    def poll(self) -> int | None:
        """The exit status, if the process has ended."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end: the exit status; raises `subprocess.TimeoutExpired`."""
        status = self._look(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return status

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._status_fd], [], [], timeout_s)[0]:
            said = os.read(self._status_fd, 64)
            os.close(self._status_fd)
            assert said, "the warm process has ended"
            self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Give it no more to read, and wait for its end: what it has printed and complained of."""
        self.stdin.close()
        pieces: dict[int, list[bytes]] = {self.stdout.fileno(): [], self.stderr.fileno(): []}
        unread = set(pieces)
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while unread:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            for fd in select.select(list(unread), [], [], left_s)[0]:
                pieces[fd].append(os.read(fd, 1 << 16))
                if not pieces[fd][-1]:
                    unread.discard(fd)
        self.wait(timeout)
        out, err = (b"".join(each).decode() for each in pieces.values())
        return out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        self.wait()


class WarmPython:
    """The warm process, from outside. For one thread; a context manager."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.warm_python", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                # Python looks at its streams when it starts: pipes, as each process gets them.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def start(self, function: str, *args: object, imports: Sequence[str] = ()) -> WarmChild:
        """Run a function, such as ``module:name``, in a process of its own.

        Args:
            function: an exit status that it returns is that of the process.
            args: plain values.
            imports: modules that are imported before, for all processes that are started later.
        """
        pipes = [os.pipe() for _ in range(_FD_COUNT)]
        pipes[0] = pipes[0][::-1]  # of the standard input we have the other end
        ours, theirs = zip(*pipes, strict=True)
        order = {
            "function": function,
            "args": args,
            "imports": list(imports),
            "cwd": os.getcwd(),
            "env": dict(os.environ),
        }
        socket.send_fds(self._socket, [json.dumps(order).encode()], theirs)
        for fd in theirs:
            os.close(fd)
        pid = int(self._socket.recv(64) or b"0")
        assert pid, f"the warm process has ended: {self._process.communicate()[1]}"
        *streams, status_fd = ours
        return WarmChild(pid, streams, status_fd)

    def close(self) -> None:
        """End the warm process; what it has started goes on."""
        self._socket.close()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Order(NamedTuple):
    """A function to call in this process, a fork, and its arguments."""

    function: Callable[..., Any]
    args: list[Any]


def _take_orders(orders: socket.socket) -> _Order | None:
    """Fork for each order; returns what to do in each fork, and None at the end of the tests."""
    while True:
        data, fds, _, _ = socket.recv_fds(orders, _MAX_ORDER_BYTES, _FD_COUNT)
        if not data:
            return None
        _reap()
        order = json.loads(data)
        module, _, name = order["function"].partition(":")
        for each in (module, *order["imports"]):
            importlib.import_module(each)
        gc.freeze()  # a fork that looks for garbage need not copy all of it
        if _fork_watched(fds[-1], orders) == 0:
            orders.close()
            for number, fd in enumerate(fds[:-1]):
                os.dup2(fd, number)
                os.close(fd)
            os.close(fds[-1])
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(order["env"])
            return _Order(getattr(sys.modules[module], name), order["args"])
        for fd in fds:
            os.close(fd)


def _reap() -> None:
    """Forget the watchers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_watched(status_fd: int, orders: socket.socket) -> int:
    """Fork a process, and one that waits for its end and writes its status; 0 in the former."""
    watcher = os.fork()
    if watcher:
        return watcher
    pid = os.fork()
    if pid == 0:
        return 0
    # Its streams are not held open here. It is told of before its status.
    orders.send(str(pid).encode())
    os.closerange(0, status_fd)
    os.closerange(status_fd + 1, _ALL_FDS)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status_fd, str(status).encode())
    os._exit(0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as told:
        taken = _take_orders(told)
    _reap()
    if taken is not None:
        sys.exit(taken.function(*taken.args))
