"""Clients of a page service that are idle or slow, in a process of their own.

``python -m benchmarks.slow_clients PORT IDLE SLOW`` opens connections, prints a line
when the server has accepted all, and keeps them until the end of stdin. IDLE of them
send nothing; SLOW of them send an endless query, a byte a second each, and connect
again when the server closes them.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections import deque
from typing import Final

from benchmarks.exchanges import connect, page_server
from benchmarks.service_process import allow_many_descriptors

_QUERY_SIZE_BYTES: Final = 30_000
_QUERY: Final = b"Q" + struct.pack("!I", _QUERY_SIZE_BYTES) + bytes(_QUERY_SIZE_BYTES)
_SECOND_S: Final = 1.0


class SlowClient:
    """A client that sends a query byte by byte.

    Args:
        port: of the page service.
    """

    def __init__(self, port: int) -> None:
        self._server = page_server(port, ())
        self._sock = connect(self._server)
        self._at = 0

    def send_byte(self) -> None:
        """Send one byte, over a new connection where the server has closed the last one."""
        try:
            self._sock.send(_QUERY[self._at : self._at + 1], socket.MSG_NOSIGNAL)
        except ConnectionError:
            self._sock.close()
            self._sock = connect(self._server)
            self._at = 0
        else:
            self._at += 1


def main(port: int, idle_count: int, slow_count: int) -> None:
    """Keep the connections until stdin ends."""
    allow_many_descriptors()
    server = page_server(port, ())
    idle = [connect(server) for _ in range(idle_count)]
    slow = deque(SlowClient(port) for _ in range(slow_count))
    print(len(idle), len(slow), flush=True)  # noqa: T201 - for `child`
    pause_s = _SECOND_S / slow_count if slow_count else None
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        slow[0].send_byte()
        slow.rotate()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
