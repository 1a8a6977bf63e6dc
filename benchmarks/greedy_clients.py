"""Clients of a page service that pipeline without end, in a process of their own.

``python -m benchmarks.greedy_clients PORT COUNT KIND`` opens connections, prints a line when
the server has accepted all, and sends messages of KIND (``sync`` or ``parse``) as fast as the
server takes them until the end of stdin, reading all answers.
"""

from __future__ import annotations

import select
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from benchmarks.exchanges import connect, page_server

if TYPE_CHECKING:
    import socket

_PARSE: Final = b"\0x\0\0\0"
MESSAGES: Final = {
    "sync": b"S\0\0\0\4",
    "parse": b"P" + struct.pack("!I", len(_PARSE) + 4) + _PARSE,
}
_AT_ONCE: Final = 2000


def main(port: int, count: int, kind: str) -> None:
    """Send until stdin ends."""
    server = page_server(port, ())
    sockets = [connect(server) for _ in range(count)]
    data = MESSAGES[kind] * _AT_ONCE
    left = dict.fromkeys(sockets, data)
    print(len(sockets), flush=True)  # noqa: T201 - for `child`
    for sock in sockets:
        sock.settimeout(0)
    while True:
        readable, writable, _ = select.select([sys.stdin, *sockets], sockets, [])
        if sys.stdin in readable:
            return
        for sock in sockets:
            if sock in readable:
                _drain(sock)
        for sock in writable:
            with suppress(BlockingIOError):
                left[sock] = left[sock][sock.send(left[sock]) :] or data


def _drain(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while len(sock.recv(1 << 16)) == 1 << 16:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
