"""The tarball of a cleanly shut down data directory, and back.

PostgreSQL starts from such a tarball without recovery. It holds all that the next
start needs and nothing else; sent twice, a directory gives the same bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bbcache.errors import PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import (
    CONTROL_FILE_SIZE_BYTES,
    ClusterState,
    ControlFile,
    open_without_waiting,
)
from bbcache.postgres.pgdata.left_out import LeftOut
from bbcache.postgres.pgdata.names import PG_CONTROL_NAME
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
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

# Signs of a state that a start does not simply go on from.
_REFUSED_FILES = {
    "backup_label": "it is a base backup that has not been recovered",
    "recovery.signal": "it is to be recovered from an archive",
    "standby.signal": "it is a standby",
}


@dataclass(frozen=True, slots=True)
class TarballSummary:
    """What a tarball holds.

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
            or an unrecovered backup, or is no data directory of a known version.
    """
    return _inspect(Path(pgdata_dir))[0]


def check_sendable(pgdata_dir: Path | str) -> ControlFile:
    """Check that the tarball of a data directory can be made, without making it.

    Goes through all of the directory, opens every file and reads the configuration. What
    a tarball goes without is logged as a warning. Thread-safe.

    Returns:
        As `inspect_pgdata`.

    Raises:
        PostgresError: as `inspect_pgdata`; a configuration file is missing or names
            files that do not go along; a link, pipe, socket or device stands where
            PostgreSQL keeps data; something cannot be read, or has too long a name.
    """
    directory = Path(pgdata_dir)
    control, _ = _inspect(directory)
    walk_members(directory, control, MemberCheck()).warn()
    return control


def send_pgdata_tarball(pgdata_dir: Path | str, writer: Writer) -> TarballSummary:
    """Write the uncompressed tar of a cleanly shut down cluster.

    Kept are relations with all their forks (unlogged ones too), transaction status,
    prepared transactions, configuration, statistics, unknown files, and every
    directory, also where it is sent empty. Of pg_wal goes the segment that holds the
    shutdown checkpoint, or the two, with zeros behind the checkpoint, and the history
    of its timeline. Left out are replication slots, temporary relations, server logs,
    and what every start writes itself. Tablespaces and a pg_wal that are links become
    directories, so copies share nothing; those that lie in the directory are sent there
    only. Other links, pipes, sockets, devices and ``lost+found`` are left out with a
    warning, unless they stand where PostgreSQL keeps data. Configuration is made
    portable as `bbcache.postgres.pgdata.settings` says, with a warning for what it loses.

    Members are sorted, owned by user 0, dated 2000-01-01, with modes 0700 and 0600;
    ``global/pg_control`` comes last, so that a tar cut short cannot start.

    Not to be run while anything writes to the directory: that is noticed where a
    file changes or a server starts, and then what has been written is to be thrown
    away. Calls from several threads are independent.

    Args:
        pgdata_dir: the data directory.
        writer: its `write` gets pieces of 1 MiB, the last one shorter, in a buffer
            that is used again.

    Raises:
        PostgresError: as `check_sendable`, or a file changed meanwhile. What `writer`
            raises passes through.
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
    """Hand all that a tarball holds but pg_control to `sink`; return what it goes without.

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
    """Check the directory's state; return its pg_control, and the very bytes of it."""
    _refuse_running(directory)
    for name, reason in _REFUSED_FILES.items():
        if os.path.lexists(directory / name):
            raise PostgresError(f"{directory} cannot be sent: {reason} ({name} is there)")
    path = directory / PG_CONTROL_NAME
    with reading(str(path)), open(path, "rb", opener=open_without_waiting) as file:
        data = file.read(CONTROL_FILE_SIZE_BYTES + 1)
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
        pass  # alive, and somebody else's
    raise PostgresError(
        f"a server with pid {file.pid} is running on {directory}\n"
        f"hint: Stop it; if that process is no PostgreSQL, remove {directory / 'postmaster.pid'}."
    )
