"""What the shim has written down: every call below the directory, in order."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_RECORD: Final = struct.Struct("=IIIiqqiiHHHHI12s")  # struct record in shim.c


class Call(NamedTuple):
    """One call.

    Attributes:
        sequence: its place in the order in which calls began.
        number: its place among those that can fail; 0 when the test itself made it.
        op: its name, the same for all variants of a function.
        path: absolute; of what the descriptor was opened on.
        path2: where a rename goes.
        fd: the descriptor; -1 for a call on a path.
        offset: of a pread or pwrite; flags of open; length of ftruncate.
        result: what it returned.
        error: errno; 0 where it succeeded.
        data: what it has written.
        thread: of its thread, the kernel's id.
        is_injected: whether it met the fault.
    """

    sequence: int
    number: int
    op: str
    path: str
    path2: str
    fd: int
    offset: int
    result: int
    error: int
    data: bytes
    thread: int
    is_injected: bool


def read_log(log: Path) -> list[Call]:
    """All calls of a log, in the order in which they began.

    Where one call had to end before another could begin, this is the order of their
    effects too; if not, the two calls could occur in either order.
    """
    raw = log.read_bytes() if log.exists() else b""
    calls, at = [], 0
    while at < len(raw):
        fields = _RECORD.unpack_from(raw, at)
        size, sequence, number, error, result, offset, fd, thread = fields[:8]
        injected, path_size, path2_size, _, data_size, op = fields[8:]
        ends = [at + _RECORD.size]
        for part_size in (path_size, path2_size, data_size):
            ends.append(ends[-1] + part_size)
        path, path2, data = (raw[a:b] for a, b in itertools.pairwise(ends))
        calls.append(
            Call(
                sequence,
                number,
                op.rstrip(b"\0").decode(),
                path.decode(),
                path2.decode(),
                fd,
                offset,
                result,
                error,
                data,
                thread,
                bool(injected),
            )
        )
        at += size
    return sorted(calls)
