"""The environment variables that change what a connection string means.

A URL names the host, the port, the user and the database. Drivers take the rest from the
environment: with PGHOSTADDR or PGSERVICE, a test would reach another server or none. A URL
cannot overrule them, because the parameters that do so are unknown to other drivers, and no
parameter overrules a PGSERVICE that is not defined.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Of libpq (libpq-envars in PostgreSQL's manual) and asyncpg. PGHOST, PGPORT, PGUSER, PGDATABASE,
# PGPASSWORD and PGPASSFILE stay: each connection string overrules them.
_STEERING: Final = re.compile(
    r"PG(HOSTADDR|SERVICE|OPTIONS|REQUIRE\w+|TARGETSESSIONATTRS|LOADBALANCEHOSTS"
    r"|SSL\w+|GSS\w+|KRBSRVNAME|CHANNELBINDING|(MIN|MAX)PROTOCOLVERSION"
    r"|CLIENTENCODING|TZ|DATESTYLE|GEQO)"
)


def steering_variables() -> list[str]:
    """Return the names of those that are set, sorted."""
    return sorted(filter(_STEERING.fullmatch, os.environ))


def remove_steering_variables() -> dict[str, str]:
    """Remove them from the environment of this process; return them."""
    removed = {name: os.environ.pop(name, None) for name in steering_variables()}
    return {name: value for name, value in removed.items() if value is not None}


@contextmanager
def without_steering_variables() -> Iterator[None]:
    """Set them again after the block: a test may have a use for those that it has set."""
    removed = remove_steering_variables()
    try:
        yield
    finally:
        os.environ.update(removed)
