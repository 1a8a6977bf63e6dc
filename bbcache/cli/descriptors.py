"""How many files a process may have open."""

from __future__ import annotations

import logging
import resource
from typing import Final

_A_CLIENT: Final = 2  # its socket, and the archive that it gets
_BESIDES: Final = 256  # the cache's own, HTTP, libraries

log = logging.getLogger(__name__)


def allow_descriptors(client_count: int) -> None:
    """Raise this process's own limit as far as so many clients need and it may.

    Where it may not go that far, a warning is logged: clients beyond it wait to be
    accepted, and archives cannot be opened.

    Args:
        client_count: clients at once.
    """
    wanted = _A_CLIENT * client_count + _BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "%d clients need %d descriptors, but there are %d (ulimit -Hn)\n"
            "hint: Raise the limit (systemd: LimitNOFILE), or lower --max-connections.",
            client_count,
            wanted,
            allowed,
        )
