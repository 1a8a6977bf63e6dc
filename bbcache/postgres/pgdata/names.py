"""The names in a data directory: dropped, sent empty, or required to be a file."""

from __future__ import annotations

import re
from typing import Final

PG_CONTROL_NAME: Final = "global/pg_control"
# Sent as empty directories. Replication slots are dropped because the WAL that they
# keep is not sent; the files in pg_logical belong to slots.
EMPTIED_DIRS: Final = frozenset(
    {
        "pg_dynshmem",
        "pg_logical/mappings",
        "pg_logical/snapshots",
        "pg_notify",
        "pg_replslot",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
        "pg_wal/archive_status",
        "pg_wal/summaries",
    }
)
# Files that the server writes or removes at every start (basebackup.c has most).
_DROPPED_FILES: Final = frozenset(
    {
        "backup_label.old",
        "backup_manifest",
        "current_logfiles",
        "current_logfiles.tmp",
        "postgresql.auto.conf.tmp",
        "postmaster.opts",
        "postmaster.pid",
        "tablespace_map",
        "tablespace_map.old",
    }
)
_DROPPED_PREFIXES: Final = ("pg_internal.init", "pgsql_tmp")
_DROPPED_TOP_PREFIX: Final = ".s.PGSQL."  # sockets and their locks
_TEMP_RELATION: Final = re.compile(r"t\d+_\d+(_[a-z]+)?(\.\d+)?")
_RELATION_ROOTS: Final = ("base/", "pg_tblspc/")
# Directories and files of PostgreSQL that hold data: at the top, and below it databases,
# relations, their maps, transaction status, prepared transactions and origins.
_TOP_DATA: Final = frozenset(
    {
        "PG_VERSION",
        "base",
        "global",
        "pg_commit_ts",
        "pg_logical",
        "pg_multixact",
        "pg_stat",
        "pg_tblspc",
        "pg_twophase",
        "pg_wal",
        "pg_xact",
    }
)
_DATA: Final = re.compile(
    r"\d+(_(fsm|vm|init))?(\.\d+)?|[0-9A-F]{4,}|PG_VERSION|pg_filenode\.map"
    r"|replorigin_checkpoint|members|offsets"
)
_DATA_ROOTS: Final = (
    "base/",
    "global/",
    "pg_commit_ts/",
    "pg_logical/",
    "pg_multixact/",
    "pg_tblspc/",
    "pg_twophase/",
    "pg_xact/",
)


def history_of(tli: int) -> str | None:
    """Return the name in pg_wal of the history that a start on a timeline reads.

    The segment in which a timeline began has pages of its parent, which are accepted only with
    this file. The first timeline has no parent, and PostgreSQL reads no file for it.
    """
    return f"{tli:08X}.history" if tli > 1 else None


def is_dropped(path: str, name: str) -> bool:
    """Return whether a file or directory is never sent.

    Args:
        path: its path relative to the data directory.
        name: the last part of `path`.
    """
    if path == name:
        return name in _DROPPED_FILES or name.startswith((_DROPPED_TOP_PREFIX, *_DROPPED_PREFIXES))
    if path == PG_CONTROL_NAME or name.startswith(_DROPPED_PREFIXES):
        return True
    return path.startswith(_RELATION_ROOTS) and bool(_TEMP_RELATION.fullmatch(name))


def is_own_directory(path: str) -> bool:
    """Return whether a path is in a directory that PostgreSQL keeps its own files in."""
    top = path.partition("/")[0]
    return top in _TOP_DATA or any(top == name.partition("/")[0] for name in EMPTIED_DIRS)


def holds_data(path: str, name: str) -> bool:
    """Return whether PostgreSQL keeps data under a name, so that it must be a file or directory.

    Args:
        path: the path relative to the data directory.
        name: the last part of `path`.
    """
    if path == name:
        return name in _TOP_DATA
    return path.startswith(_DATA_ROOTS) and bool(_DATA.fullmatch(name))
