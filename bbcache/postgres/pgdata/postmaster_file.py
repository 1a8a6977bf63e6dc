"""The file ``postmaster.pid``, in which a server says that it runs and when it is ready.

Facts from PostgreSQL's miscadmin.h and miscinit.c.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple, Self

from bbcache.errors import PostgresError

_NAME: Final = "postmaster.pid"
_MAX_SIZE_BYTES: Final = 64 << 10  # the longest lines are two paths
_PID: Final = re.compile(rb"-?([0-9]{1,10})")
_MAX_PID: Final = (1 << 31) - 1
_READY_STATES: Final = (b"ready", b"standby")
# A line break in the data directory's path moves the start time only: the server counts
# lines from the start of the file when it adds the state.
_START_LINE, _STATE_LINE = 2, 7


class PostmasterFile(NamedTuple):
    """The content of a ``postmaster.pid``. Immutable, so thread-safe.

    Attributes:
        pid: the process that wrote it; the process may be gone, and the pid reused.
        started_at_s: when that server started, in seconds since 1970; None if unknown.
        is_ready: whether the server accepts connections.
    """

    pid: int
    started_at_s: int | None
    is_ready: bool

    @classmethod
    def read(cls, pgdata_dir: str | os.PathLike[str]) -> Self | None:
        """Read the file of a data directory.

        Returns:
            None if there is no file, or an empty one: its server never came up.

        Raises:
            PostgresError: it cannot be read, or names no process.
        """
        path = os.path.join(pgdata_dir, _NAME)
        try:
            with open(path, "rb", opener=_open_without_waiting) as file:
                data = file.read(_MAX_SIZE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PostgresError(f"cannot read {path}: {error.strerror}") from error
        if not data.strip():
            return None
        lines = [line.strip() for line in data.split(b"\n")]
        match = _PID.fullmatch(lines[0])
        pid = int(match[1]) if match else 0  # negative for a single-user server
        if not 0 < pid <= _MAX_PID:
            raise PostgresError(
                f"{path} names no process: {lines[0][:40]!r}\n"
                "hint: Remove it if no server runs on that directory."
            )
        start = _START_LINE + os.fsencode(pgdata_dir).count(b"\n")
        has_start = len(lines) > start and lines[start].isdigit()
        is_ready = len(lines) > _STATE_LINE and lines[_STATE_LINE] in _READY_STATES
        return cls(pid, int(lines[start]) if has_start else None, is_ready)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
