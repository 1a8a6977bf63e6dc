"""Whether a timeline's next compute node would start."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from bbcache.errors import PostgresError
from bbcache.postgres.cluster import PostgresBinaries
from bbcache.postgres.settings import PortableConfig
from bbcache.postgres.start_check import check_starts


def check_next_start(
    pgdata_dir: Path, place: Path, binaries: PostgresBinaries, settings: Mapping[str, str]
) -> None:
    """Check that the next compute node would start from what the last one has left.

    A server is started to find out, if the configuration is not that of the timeline, from
    which the last compute node has started. The copy for that is made beside `pgdata_dir`,
    under a name that the next start of a pageserver removes.

    Args:
        pgdata_dir: the directory of the last compute node, shut down cleanly.
        place: the timeline's directory.
        binaries: PostgreSQL's programs.
        settings: those of the last compute node's start.

    Raises:
        PostgresError: it would not start.
    """
    if not _has_same_configuration(pgdata_dir, place):
        check_starts(pgdata_dir, binaries, settings, pgdata_dir.with_name(uuid.uuid4().hex))


def _has_same_configuration(one: Path, other: Path) -> bool:
    try:
        return PortableConfig(one).contents == PortableConfig(other).contents
    except PostgresError:
        return False
