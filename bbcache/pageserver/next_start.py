"""The check that a timeline's next compute node can start."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.pgdata.names import history_of, is_dropped
from bbcache.postgres.pgdata.regular_file import read_regular
from bbcache.postgres.pgdata.settings import PortableConfig
from bbcache.postgres.server.cluster import PostgresBinaries
from bbcache.postgres.server.start_check import check_starts

_MAX_HISTORY_BYTES: Final = 1 << 20  # it has a line for each timeline before


def check_next_start(
    pgdata_dir: Path, place: Path, binaries: PostgresBinaries, settings: Mapping[str, str]
) -> None:
    """Check that the next compute node can start from the directory of the last one.

    The check starts a server, unless the directory has the same configuration, version,
    history, directories and names at its top as the timeline, from which the last compute node has
    started: PostgreSQL refuses some names there, such as ``recovery.conf``. The
    copy for that server is beside `pgdata_dir`, under a name that the next start of a
    pageserver removes.

    Args:
        pgdata_dir: the directory of the last compute node, shut down cleanly.
        place: the timeline's directory.
        binaries: PostgreSQL's programs.
        settings: those of the last compute node's start.

    Raises:
        PostgresError: it cannot start, or is of another cluster or older than the timeline.
    """
    _check_follows(ControlFile.read(pgdata_dir), ControlFile.read(place))
    if not (_has_same_configuration(pgdata_dir, place) and _is_complete(pgdata_dir, place)):
        check_starts(pgdata_dir, binaries, settings, pgdata_dir.with_name(uuid.uuid4().hex))


def _check_follows(new: ControlFile, old: ControlFile) -> None:
    """Raise unless a directory can be the timeline's next state."""
    if new.system_identifier != old.system_identifier:
        raise PostgresError(
            f"it belongs to cluster {new.system_identifier}, but the timeline to "
            f"{old.system_identifier}"
        )
    if new.checkpoint_end_lsn < old.checkpoint_end_lsn:
        raise PostgresError(
            f"it ends at {new.checkpoint_end_lsn}, but the timeline is already at "
            f"{old.checkpoint_end_lsn}"
        )


def _has_same_configuration(one: Path, other: Path) -> bool:
    try:
        return PortableConfig(one).contents == PortableConfig(other).contents
    except PostgresError:
        return False


def _is_complete(pgdata_dir: Path, place: Path) -> bool:
    """Whether the directory still has everything that a start needs, and nothing new at its top."""
    try:
        return (
            _version(pgdata_dir) == _version(place)
            and _history(pgdata_dir) == _history(place)
            and _own_names(pgdata_dir) >= _own_names(place)
            and _top_names(pgdata_dir) <= _top_names(place)
        )
    except OSError:
        return False


def _version(pgdata_dir: Path) -> bytes:
    return (pgdata_dir / "PG_VERSION").read_bytes()


def _history(pgdata_dir: Path) -> bytes | None:
    """The history of PostgreSQL's timeline; None for the first one, which has none."""
    name = history_of(ControlFile.read(pgdata_dir).tli)
    return None if name is None else read_regular(pgdata_dir / "pg_wal" / name, _MAX_HISTORY_BYTES)


def _own_names(pgdata_dir: Path) -> set[str]:
    """The names of PostgreSQL's own directories and of their subdirectories, without databases."""
    paths = [*pgdata_dir.glob("pg_*"), *pgdata_dir.glob("pg_*/*")]
    return {str(path.relative_to(pgdata_dir)) for path in paths if path.is_dir()}


def _top_names(pgdata_dir: Path) -> set[str]:
    """The names at the top of the directory that its tarball may have."""
    return {name for name in os.listdir(pgdata_dir) if not is_dropped(name, name)}
