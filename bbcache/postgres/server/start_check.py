"""The check that PostgreSQL starts on a copy of a data directory, by starting it.

No list of settings can do that: the reason may be a library that is not installed, more
shared memory than the machine has, too few prepared transactions, or a wrong word in
pg_hba.conf. So a real server is started on a copy without the tables, which a start does not
read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.pgdata.names import PG_CONTROL_NAME
from bbcache.postgres.pgdata.settings import PortableConfig
from bbcache.postgres.pgdata.tar_writer import DIRECTORY_MODE, FILE_MODE
from bbcache.postgres.pgdata.tarball import inspect_pgdata, walk_members
from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster

_TABLES: Final = ("base/", "global/", "pg_tblspc/")
_OWN_PREFIX: Final = "pg_"
_MAX_FOREIGN_BYTES: Final = 64 * 1024 * 1024  # of a file that is not PostgreSQL's
_PIECE_BYTES: Final = 1024 * 1024
_TIMEOUT_S: Final = 120.0
# No client can connect, and nothing runs that reads tables.
_SETTINGS: Final = {
    "listen_addresses": "",
    "autovacuum": "off",
    "fsync": "off",
    "max_logical_replication_workers": "0",
}


def check_starts(
    pgdata_dir: Path,
    binaries: PostgresBinaries,
    settings: Mapping[str, str],
    scratch_dir: Path,
) -> None:
    """Check that PostgreSQL starts on the tarball of a data directory.

    Takes about as long as a start. The directory itself is only read. Safe to call from
    several threads, each with its own `scratch_dir`.

    Args:
        pgdata_dir: a data directory that can be sent.
        binaries: PostgreSQL's programs.
        settings: server settings for the start.
        scratch_dir: the path of the copy, which must not exist and is removed at the end;
            its server's log is beside it.

    Raises:
        PostgresError: the server does not start; the last lines of its log are quoted.
    """
    # Load the libraries of sessions, too: a session that cannot load them ends.
    libraries = PortableConfig(pgdata_dir).preloaded_libraries
    effective = {"shared_preload_libraries": libraries, **settings, **_SETTINGS}
    effective.pop("unix_socket_directories", None)  # a private one instead
    cluster = Cluster(binaries, scratch_dir, settings=effective)
    try:
        scratch_dir.mkdir(DIRECTORY_MODE)
        walk_members(pgdata_dir, inspect_pgdata(pgdata_dir), _Skeleton(scratch_dir))
        control = (pgdata_dir / PG_CONTROL_NAME).read_bytes()
        _write(scratch_dir / PG_CONTROL_NAME, control)
        with cluster:  # no server may be left on a directory that is removed
            cluster.start(timeout_s=_TIMEOUT_S)
            cluster.stop("immediate")
    except PostgresError as error:
        raise PostgresError(
            f"no server would start on a copy of {pgdata_dir}: {error}\n"
            "hint: Correct the configuration in the directory."
        ) from error
    except OSError as error:
        raise PostgresError(
            f"cannot try to start a copy of {pgdata_dir}: {error.strerror}"
        ) from error
    finally:
        with suppress(OSError):
            remove_tree(scratch_dir)
        cluster.log_path.unlink(missing_ok=True)


class _Skeleton:
    """Creates the members of a data directory, without the contents of tables."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add_directory(self, name: str) -> None:
        """Create a directory."""
        (self._directory / name).mkdir(DIRECTORY_MODE)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Create a file with this content."""
        _write(self._directory / name, content)

    def add_file(
        self, name: str, fd: int, size_bytes: int, *, used_bytes: int | None = None
    ) -> None:
        """Copy a file, unless a start does not read it."""
        is_own = name.startswith(_OWN_PREFIX)
        if name.startswith(_TABLES) or (size_bytes > _MAX_FOREIGN_BYTES and not is_own):
            return
        left = size_bytes if used_bytes is None else used_bytes
        with _create(self._directory / name) as file:
            while piece := os.read(fd, min(left, _PIECE_BYTES)):
                file.write(piece)
                left -= len(piece)
            file.truncate(size_bytes)


def _write(path: Path, content: bytes) -> None:
    with _create(path) as file:
        file.write(content)


def _create(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    return open(fd, "wb")
