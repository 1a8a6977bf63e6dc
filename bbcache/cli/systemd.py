"""What systemd gives a service, and what it is told: sockets, and states by sd_notify(3).

Both are a few lines of an interface that is promised to stay, so no library is needed.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from bbcache.errors import ConfigError

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_HTTP: Final = "http"  # the FileDescriptorName of sockets for HTTP


def inherited_listeners() -> tuple[list[int], list[int]]:
    """Take the descriptors that systemd listens on for this process; see sd_listen_fds(3).

    Returns:
        Those for the page service, and those for HTTP, which are named ``http``.

    Raises:
        ConfigError: the variables are not what systemd sets.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return [], []
    if not count.isdecimal():
        raise ConfigError(f"LISTEN_FDS is {count!r}, but must be a number")
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    named = list(zip(fds, names + [""] * len(fds), strict=False))
    http = [fd for fd, name in named if name == _HTTP]
    return [fd for fd, name in named if name != _HTTP], http


def notify(*states: str) -> None:
    """Tell systemd a state of the service; without systemd nothing happens.

    Args:
        states: such as ``READY=1`` or ``STATUS=...``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    address = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(0)
            sock.sendto("\n".join(states).encode(), address)
    except OSError:
        pass  # systemd finds out by itself, and the service goes on


def notify_reloading() -> None:
    """Tell systemd that a reload has begun; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
