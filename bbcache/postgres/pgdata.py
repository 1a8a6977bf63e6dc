"""The tarball of a cleanly shut down data directory, and back.

PostgreSQL starts from such a tarball without recovery. It holds all that the next
start needs and nothing else; sent twice, a directory gives the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bbcache.errors import PostgresError
from bbcache.postgres.control_file import (
    CONTROL_FILE_SIZE_BYTES,
    ClusterState,
    ControlFile,
    open_without_waiting,
)
from bbcache.postgres.restore import PG_CONTROL_NAME, restore_tarball
from bbcache.postgres.settings import PortableConfig
from bbcache.postgres.tar_writer import MAX_PARTS, TarWriter, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.ids import Lsn

__all__ = ["TarballSummary", "inspect_pgdata", "restore_tarball", "send_pgdata_tarball"]

# Signs of a state that a start does not simply go on from.
_REFUSED_FILES = {
    "backup_label": "it is a base backup that has not been recovered",
    "recovery.signal": "it is to be recovered from an archive",
    "standby.signal": "it is a standby",
}
# What the server writes anew, or removes, at every start (basebackup.c has most).
_DROPPED_FILES = frozenset(
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
_DROPPED_PREFIXES = ("pg_internal.init", "pgsql_tmp")
_DROPPED_TOP_PREFIX = ".s.PGSQL."  # sockets and their locks
# Sent as empty directories. Replication slots are dropped since the WAL they hold
# back is; what is in pg_logical belongs to slots.
_EMPTIED_DIRS = frozenset(
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
_OWN_DIRS = ("base", "global", "pg_")  # never taken for a directory of server logs
_TEMP_RELATION = re.compile(r"t\d+_\d+(_[a-z]+)?(\.\d+)?")
_RELATION_ROOTS = ("base/", "pg_tblspc/")
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_PID_LINE_BYTES = 32
_SHOWN_CHARACTERS = 80  # of a path too long to be shown
_Snapshot: TypeAlias = tuple[int, int, int]


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


def send_pgdata_tarball(pgdata_dir: Path | str, writer: Writer) -> TarballSummary:
    """Write the uncompressed tar of a cleanly shut down cluster.

    Kept are relations with all their forks (unlogged ones too), transaction status,
    prepared transactions, configuration, statistics, unknown files, and every
    directory, also where it is sent empty. Of pg_wal goes the segment that holds the
    shutdown checkpoint, or the two, with zeros behind the checkpoint, and the history
    of its timeline. Left out are
    replication slots, temporary relations, server logs, and what every start makes
    anew. Tablespaces and a pg_wal that are links become directories, so copies share
    nothing. Configuration is made portable as `bbcache.postgres.settings` says.

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
        PostgresError: as `inspect_pgdata`; a setting cannot be moved; a file is a link,
            device or pipe, cannot be read or changed meanwhile. What `writer` raises
            passes through.
    """
    directory = Path(pgdata_dir)
    control, control_bytes = _inspect(directory)
    config = PortableConfig(directory)
    tar = TarWriter(writer)
    _Sending(directory, control, config, tar).send()
    if _inspect(directory)[1] != control_bytes:
        raise PostgresError(f"a server was started on {directory} while it was sent")
    tar.add_bytes(PG_CONTROL_NAME, control_bytes)
    tar.finish()
    return TarballSummary(control.checkpoint_end_lsn, tar.member_count, tar.size_bytes)


def _inspect(directory: Path) -> tuple[ControlFile, bytes]:
    """Check the directory's state; return its pg_control, and the very bytes of it."""
    _refuse_running(directory)
    for name, reason in _REFUSED_FILES.items():
        if os.path.lexists(directory / name):
            raise PostgresError(f"{directory} cannot be sent: {reason} ({name} is there)")
    path = directory / PG_CONTROL_NAME
    with _reading(str(path)), open(path, "rb", opener=open_without_waiting) as file:
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
    path = directory / "postmaster.pid"
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            first_line = file.readline(_MAX_PID_LINE_BYTES).decode("ascii", "replace").rstrip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PostgresError(f"cannot read {path}: {error.strerror}") from error
    if not first_line.lstrip("-").isdigit():
        return  # cut short, so its server never came up
    pid = abs(int(first_line))  # negative for a single-user server
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass  # alive, and somebody else's
    raise PostgresError(
        f"a server with pid {pid} is running on {directory}\n"
        f"hint: Stop it; if that process is no PostgreSQL, remove {path}."
    )


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PostgresError(f"cannot read {name}: {error.strerror}") from error


class _Sending:
    """One walk over a data directory. Paths are relative to it, with slashes."""

    def __init__(
        self, directory: Path, control: ControlFile, config: PortableConfig, tar: TarWriter
    ) -> None:
        self._directory = directory
        self._control = control
        self._config = dict(config.contents)
        self._log_dir = config.log_dir if not config.log_dir.startswith(_OWN_DIRS) else ""
        self._tar = tar

    def send(self) -> None:
        with self._opened(None, str(self._directory), "", follow=True) as root_fd:
            self._send_entries(root_fd, "")
        if self._config:
            raise PostgresError(
                f"{min(self._config)} is included by the configuration, and in a directory that "
                "is not sent\nhint: Move it to the top of the data directory."
            )

    @contextlib.contextmanager
    def _opened(
        self, parent_fd: int | None, name: str, path: str, *, follow: bool = False
    ) -> Iterator[int]:
        flags = _OPEN_DIR if follow else _OPEN_DIR | os.O_NOFOLLOW
        with _reading(path or name):
            fd = os.open(name, flags, dir_fd=parent_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _send_entries(self, dir_fd: int, prefix: str) -> None:
        """Send what is in an open directory; `prefix` ends in a slash or is empty."""
        if prefix.count("/") >= MAX_PARTS:
            raise PostgresError(
                f"a path in {self._directory} has more than {MAX_PARTS} parts: "
                f"{prefix[:_SHOWN_CHARACTERS]}...\nhint: Remove that directory."
            )
        for name, entry in _sorted_entries(dir_fd, prefix):
            path = prefix + name
            if self._is_dropped(path, name):
                continue
            if path in _EMPTIED_DIRS or path == self._log_dir:
                self._tar.add_directory(path)
            elif path == "pg_wal":
                self._send_wal(dir_fd)
            elif path == "pg_tblspc":
                self._send_tablespaces(dir_fd)
            elif path in self._config:
                self._tar.add_bytes(path, self._config.pop(path))
            elif entry.is_dir(follow_symlinks=False):
                self._tar.add_directory(path)
                with self._opened(dir_fd, name, path) as fd:
                    self._send_entries(fd, f"{path}/")
            elif entry.is_file(follow_symlinks=False):
                self._send_file(dir_fd, name, path)
            else:
                raise self._special_file(path, is_link=entry.is_symlink())

    def _is_dropped(self, path: str, name: str) -> bool:
        if path == name:
            return name in _DROPPED_FILES or name.startswith(
                (_DROPPED_TOP_PREFIX, *_DROPPED_PREFIXES)
            )
        if path == PG_CONTROL_NAME or name.startswith(_DROPPED_PREFIXES):
            return True
        return path.startswith(_RELATION_ROOTS) and bool(_TEMP_RELATION.fullmatch(name))

    def _special_file(self, path: str, *, is_link: bool) -> PostgresError:
        kind = "a symbolic link" if is_link else "a socket, pipe or device"
        return PostgresError(
            f"{self._directory / path} is {kind}, which cannot be sent\n"
            "hint: Put a file in its place, or remove it."
        )

    def _send_file(self, dir_fd: int, name: str, path: str, used_bytes: int | None = None) -> None:
        with _reading(path):
            fd = os.open(name, _OPEN_FILE, dir_fd=dir_fd)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise self._special_file(path, is_link=False)
            self._tar.add_file(path, fd, before.st_size, used_bytes=used_bytes)
            if _snapshot(os.fstat(fd)) != _snapshot(before):
                raise PostgresError(
                    f"{path} was written to while it was read\n"
                    "hint: Nothing may write to a data directory that is being sent."
                )
        finally:
            os.close(fd)

    def _send_wal(self, root_fd: int) -> None:
        """Send pg_wal, which may be a link, with the segments of the last checkpoint."""
        self._tar.add_directory("pg_wal")
        with self._opened(root_fd, "pg_wal", "pg_wal", follow=True) as fd:
            segments = dict(self._needed_segments())
            # The segment in which a timeline began has pages of its parent, which are
            # accepted only with the history of the timeline.
            history_name = f"{self._control.tli:08X}.history"
            for name, entry in _sorted_entries(fd, "pg_wal/"):
                path = f"pg_wal/{name}"
                if path in _EMPTIED_DIRS and entry.is_dir():
                    self._tar.add_directory(path)
                elif name in segments:
                    self._send_segment(fd, name, segments.pop(name))
                elif name == history_name:
                    self._send_file(fd, name, path)
        if segments:
            raise PostgresError(
                f"pg_wal/{min(segments)} is missing in {self._directory}: it holds the last "
                "checkpoint, without which no server starts"
            )

    def _needed_segments(self) -> Iterator[tuple[str, int]]:
        """The names of the segments to send, each with its bytes up to the checkpoint's end."""
        control = self._control
        size_bytes = control.wal_segment_size_bytes
        first = control.checkpoint_lsn // size_bytes
        last = (control.checkpoint_end_lsn - 1) // size_bytes
        per_log = 2**32 // size_bytes
        for number in range(first, last + 1):
            end = min(control.checkpoint_end_lsn - number * size_bytes, size_bytes)
            yield f"{control.tli:08X}{number // per_log:08X}{number % per_log:08X}", end

    def _send_segment(self, dir_fd: int, name: str, used_bytes: int) -> None:
        """Send a segment; what is behind the last record may be left from earlier use."""
        path = f"pg_wal/{name}"
        size_bytes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_size
        if size_bytes != self._control.wal_segment_size_bytes:
            raise PostgresError(
                f"{path} in {self._directory} has {size_bytes} bytes, not the "
                f"{self._control.wal_segment_size_bytes} of a segment"
            )
        self._send_file(dir_fd, name, path, used_bytes)

    def _send_tablespaces(self, root_fd: int) -> None:
        """Send pg_tblspc with real directories, of this version, in place of its links."""
        self._tar.add_directory("pg_tblspc")
        with self._opened(root_fd, "pg_tblspc", "pg_tblspc") as tblspc_fd:
            for oid, _ in _sorted_entries(tblspc_fd, "pg_tblspc/"):
                if oid.isdigit():
                    self._send_tablespace(tblspc_fd, oid)

    def _send_tablespace(self, tblspc_fd: int, oid: str) -> None:
        """Send the part that is this cluster's of a place that other versions may use too."""
        control = self._control
        name = f"PG_{control.major_version}_{control.catalog_version_no}"
        path = f"pg_tblspc/{oid}"
        self._tar.add_directory(path)
        with self._opened(tblspc_fd, oid, path, follow=True) as fd:
            if name in os.listdir(fd):
                self._tar.add_directory(f"{path}/{name}")
                with self._opened(fd, name, f"{path}/{name}") as version_fd:
                    self._send_entries(version_fd, f"{path}/{name}/")


def _sorted_entries(dir_fd: int, path: str) -> list[tuple[str, os.DirEntry[str]]]:
    with _reading(path or "the data directory"), os.scandir(dir_fd) as entries:
        return sorted(
            ((entry.name, entry) for entry in entries), key=lambda pair: os.fsencode(pair[0])
        )


def _snapshot(status: os.stat_result) -> _Snapshot:
    """What changes when a file is written to."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
