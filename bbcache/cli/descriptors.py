"""How many clients the descriptors of this process are enough for."""

from __future__ import annotations

import logging
import resource
from typing import Final, NamedTuple

_PER_CLIENT: Final = 2  # its socket, and the archive that it gets
_BESIDES: Final = 256  # the cache's own, libraries

log = logging.getLogger(__name__)


class ClientLimits(NamedTuple):
    """How many clients there may be at once.

    Attributes:
        connections: that are logged in to the page service.
        pending_logins: that are not logged in yet.
        requests: over HTTP.
    """

    connections: int
    pending_logins: int
    requests: int

    @property
    def descriptors(self) -> int:
        """How many descriptors so many clients take."""
        return _PER_CLIENT * self.connections + self.pending_logins + self.requests


def fit_clients(wanted: ClientLimits) -> ClientLimits:
    """Raise this process's own limit of descriptors as far as clients need and it may.

    Returns:
        How many clients that is enough for. Where that is fewer than wanted, a warning is
        logged.
    """
    needed = wanted.descriptors + _BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    left = soft - min(_BESIDES, soft // 2)
    pending_logins, requests = (
        min(wanted.pending_logins, left // 4),
        min(wanted.requests, left // 8),
    )
    connections = (left - pending_logins - requests) // _PER_CLIENT
    fitting = ClientLimits(
        *(max(1, each) for each in (min(wanted.connections, connections), pending_logins, requests))
    )
    log.warning(
        "%d clients need %d descriptors, but there are %d (ulimit -Hn): %d clients are served\n"
        "hint: Raise the limit (systemd: LimitNOFILE), or lower --max-connections.",
        wanted.connections,
        needed,
        soft,
        fitting.connections,
    )
    return fitting
