"""A client that has a large archive verified again and again, in a process of its own.

``python -m benchmarks.verifying_client PORT NUMBER`` asks for the archive of the timeline
NUMBER of `make_ids`, hangs up at its first byte, and begins again, until the end of stdin.
"""

from __future__ import annotations

import select
import sys

from benchmarks.entries import make_ids
from benchmarks.exchanges import connect, page_server


def main(port: int, number: int) -> None:
    """Ask until stdin ends."""
    server = page_server(port, make_ids(number + 1))
    print("ready", flush=True)  # noqa: T201 - for `child`
    is_over = False
    while not is_over:
        with connect(server) as sock:
            sock.sendall(server.requests[number])
            is_over = sys.stdin in select.select([sys.stdin, sock], [], [])[0]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
