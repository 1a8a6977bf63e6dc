"""The tarball of a cleanly shut down data directory, and back.

PostgreSQL starts from such a tarball without recovery. It has everything that the next
start needs, and nothing else. A directory gives the same bytes each time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import (
    CONTROL_FILE_SIZE_BYTES,
    ClusterState,
    ControlFile,
)
from bbcache.postgres.pgdata.left_out import LeftOut
from bbcache.postgres.pgdata.names import PG_CONTROL_NAME
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.pgdata.regular_file import read_regular
from bbcache.postgres.pgdata.restore import restore_tarball
from bbcache.postgres.pgdata.settings import PortableConfig
from bbcache.postgres.pgdata.tar_writer import TarWriter, Writer
from bbcache.postgres.pgdata.walk import MemberCheck, MemberSink, PgdataWalk, reading

__all__ = [
    "TarballSummary",
    "check_sendable",
    "inspect_pgdata",
    "restore_tarball",
    "send_pgdata_tarball",
]

# Signs of a state from which a server does not simply start.
_REFUSED_FILES = {
    "backup_label": "it is a base backup that has not been recovered",
    "recovery.signal": "it is configured to recover from an archive",
    "standby.signal": "it is a standby",
}


@dataclass(frozen=True, slots=True)
class TarballSummary:
    """The content of a tarball.

    Attributes:
        lsn: the canonical end of the shutdown checkpoint it starts from.
        member_count: files and directories.
        size_bytes: size of the uncompressed tar.
    """

    lsn: Lsn
    member_count: int
    size_bytes: int


def inspect_pgdata(pgdata_dir: Path | str) -> ControlFile:
    """Check that a data directory can be sent: a primary's, cleanly shut down.

    Thread-safe.

    Returns:
        Its pg_control; `checkpoint_end_lsn` is the LSN of its basebackup.

    Raises:
        PostgresError: a server runs on it, it was not shut down cleanly, is a standby
            or an unrecovered backup, or is not a data directory of a known version.
    """
    return _inspect(Path(pgdata_dir))[0]


def check_sendable(pgdata_dir: Path | str) -> ControlFile:
    """Check that the tarball of a data directory can be made, without making it.

    Walks the directory, opens every file and reads the configuration. Files and settings that
    a tarball leaves out are logged as warnings. Thread-safe.

    Returns:
        As `inspect_pgdata`.

    Raises:
        PostgresError: as `inspect_pgdata`; a configuration file is missing or names
            files that are not sent; a link, pipe, socket or device stands where
            PostgreSQL keeps data; a file cannot be read, or has too long a name.
    """
    directory = Path(pgdata_dir)
    control, _ = _inspect(directory)
    walk_members(directory, control, MemberCheck()).warn()
    return control


def send_pgdata_tarball(pgdata_dir: Path | str, writer: Writer) -> TarballSummary:
    """Write the uncompressed tar of a cleanly shut down cluster.

    The tarball has relations with all their forks (unlogged ones too), transaction status,
    prepared transactions, configuration, statistics, unknown files, and every
    directory, some of them empty. Of pg_wal it has the one or two segments with the
    shutdown checkpoint, with zeros after the checkpoint, and the history
    of its timeline. It leaves out replication slots, temporary relations, server logs,
    and files that every start writes. A pg_wal or a tablespace that is a link becomes a
    directory, so copies share nothing; one that lies in the directory is sent there
    only. Other links, pipes, sockets, devices and ``lost+found`` are left out with a
    warning, unless they stand where PostgreSQL keeps data. The configuration is made
    portable by `bbcache.postgres.pgdata.settings`, with a warning for each lost setting.

    Members are sorted, owned by user 0, dated 2000-01-01, with modes 0700 and 0600;
    ``global/pg_control`` comes last, so that a tar cut short cannot start.

    Nothing may write to the directory meanwhile. A file that changes, or a server that
    starts, is an error, and the bytes written so far are useless.
    Calls from several threads are independent.

    Args:
        pgdata_dir: the data directory.
        writer: its `write` gets pieces of 1 MiB, the last one shorter, in a buffer
            that is used again.

    Raises:
        PostgresError: as `check_sendable`, or a file changed meanwhile. Exceptions of
            `writer` pass through.
    """
    directory = Path(pgdata_dir)
    control, control_bytes = _inspect(directory)
    tar = TarWriter(writer, directory)
    walk_members(directory, control, tar).warn()
    if _inspect(directory)[1] != control_bytes:
        raise PostgresError(f"a server was started on {directory} while it was sent")
    tar.add_bytes(PG_CONTROL_NAME, control_bytes)
    tar.finish()
    return TarballSummary(control.checkpoint_end_lsn, tar.member_count, tar.size_bytes)


def walk_members(directory: Path, control: ControlFile, sink: MemberSink) -> LeftOut:
    """Pass every member but pg_control to `sink`; return the names that are left out.

    Raises:
        PostgresError: as `send_pgdata_tarball`.
    """
    left_out = LeftOut(directory)
    config = PortableConfig(directory)
    for setting in config.left_out:
        left_out.add("settings tied to this place or machine", setting)
    PgdataWalk(directory, control, config, sink, left_out).send()
    return left_out


def _inspect(directory: Path) -> tuple[ControlFile, bytes]:
    """Check the directory's state; return its pg_control, parsed and as bytes."""
    check_passable("the data directory", directory, PostgresError)
    _refuse_running(directory)
    for name, reason in _REFUSED_FILES.items():
        if os.path.lexists(directory / name):
            raise PostgresError(f"{directory} cannot be sent: {reason} ({name} is there)")
    path = directory / PG_CONTROL_NAME
    with reading(str(path)):
        data = read_regular(path, CONTROL_FILE_SIZE_BYTES + 1)
    control = ControlFile.parse(data, str(path))
    if control.state is not ClusterState.SHUT_DOWN:
        is_standby = control.state is ClusterState.SHUT_DOWN_IN_RECOVERY
        hint = "Send its primary." if is_standby else "Start it, and stop it with mode fast."
        raise PostgresError(
            f"{directory} was not shut down cleanly: its state is "
            f"{control.state.name.lower().replace('_', ' ')}\nhint: {hint}"
        )
    return control, data


def _refuse_running(directory: Path) -> None:
    """Raise if postmaster.pid names a process that is alive."""
    file = PostmasterFile.read(directory)
    if file is None:
        return
    try:
        os.kill(file.pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass  # alive, of another user
    raise PostgresError(
        f"a server with pid {file.pid} is running on {directory}\n"
        f"hint: Stop it; if that process is not PostgreSQL, remove {directory / 'postmaster.pid'}."
    )
