"""The walk over a data directory, which sends the files that a copy needs."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.catalog_rows import read_catalog
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.pgdata.last_checkpoint import has_last_checkpoint
from bbcache.postgres.pgdata.left_out import LeftOut
from bbcache.postgres.pgdata.names import (
    EMPTIED_DIRS,
    history_of,
    holds_data,
    is_dropped,
    is_own_directory,
)
from bbcache.postgres.pgdata.paths import PgdataPaths
from bbcache.postgres.pgdata.settings import PortableConfig
from bbcache.postgres.pgdata.tar_writer import MAX_NAME_BYTES, MAX_PARTS

_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PG_TABLESPACE_OID: Final = 1213
_SHOWN_CHARACTERS: Final = 80  # of a path that is too long to be shown
_LOST_AND_FOUND: Final = "lost+found"  # of a file system that is mounted there
_KINDS: Final = {
    stat.S_IFLNK: "symbolic links",
    stat.S_IFIFO: "named pipes",
    stat.S_IFSOCK: "sockets",
    stat.S_IFBLK: "devices",
    stat.S_IFCHR: "devices",
}
_Snapshot: TypeAlias = tuple[int, int, int]
_Inode: TypeAlias = tuple[int, int]


class MemberSink(Protocol):
    """A receiver of members, such as a `TarWriter`."""

    def add_directory(self, name: str) -> None:
        """Take a directory."""
        ...

    def add_bytes(self, name: str, content: bytes) -> None:
        """Take a file with this content."""
        ...

    def add_file(
        self, name: str, fd: int, size_bytes: int, *, used_bytes: int | None = None
    ) -> None:
        """Take a file from a descriptor."""
        ...


class MemberCheck:
    """Receives members and drops them, for a walk that only checks the directory."""

    def add_directory(self, name: str) -> None:
        """Take a directory."""

    def add_bytes(self, name: str, content: bytes) -> None:
        """Take a file."""

    def add_file(
        self, name: str, fd: int, size_bytes: int, *, used_bytes: int | None = None
    ) -> None:
        """Take a file."""


class PgdataWalk:
    """One walk over a data directory. Not thread-safe.

    Paths are relative to the directory, with slashes. Links are followed at pg_wal and
    at pg_tblspc/* only.

    Args:
        directory: the data directory.
        control: its pg_control.
        config: its configuration files.
        sink: receives every member except pg_control.
        left_out: gets the names that are left out, except those that always are.
    """

    def __init__(
        self,
        directory: Path,
        control: ControlFile,
        config: PortableConfig,
        sink: MemberSink,
        left_out: LeftOut,
    ) -> None:
        self._directory = directory
        self._shown_place = str(directory)  # joined with the name of each file
        self._control = control
        self._config = dict(config.contents)
        self._log_dir = "" if is_own_directory(config.log_dir) else config.log_dir
        self._sink = sink
        self._left_out = left_out
        self._version_dir = f"PG_{control.major_version}_{control.catalog_version_no}"
        self._paths = PgdataPaths(directory)
        self._root_fd = -1
        self._linked: frozenset[_Inode] = frozenset()

    def send(self) -> None:
        """Walk the directory.

        Raises:
            PostgresError: a file cannot be sent, cannot be read, or was written to.
        """
        with self._opened(None, str(self._directory), "", follow=True) as root_fd:
            self._root_fd = root_fd
            self._linked = frozenset(self._linked_directories(root_fd))
            self._send_entries(root_fd, "")
            self._send_moved_files(root_fd)
        if self._config:
            raise PostgresError(
                f"{min(self._config)} is included by the configuration, and in a directory that "
                "is not sent\nhint: Move it to the top of the data directory."
            )

    def _send_moved_files(self, root_fd: int) -> None:
        """Send the access files that only the copy has at the top."""
        names = _names(root_fd, ".")
        for file in [file for file in self._config if "/" not in file and file not in names]:
            self._sink.add_bytes(file, self._config.pop(file))

    def _linked_directories(self, root_fd: int) -> Iterator[_Inode]:
        """Yield what pg_wal and pg_tblspc lead to; inside the directory it is sent there only."""
        oids = self._tablespaces(_names(root_fd, "pg_tblspc"))
        tablespaces = [f"{self._place_of(f'pg_tblspc/{oid}')}/{self._version_dir}" for oid in oids]
        for path in (self._place_of("pg_wal"), *tablespaces):
            with contextlib.suppress(OSError):
                yield _inode(os.stat(path, dir_fd=root_fd))

    def _place_of(self, path: str) -> str:
        """Return the path of the target of a link, if it is in this directory.

        The absolute links of a directory that was moved lead elsewhere, or nowhere.
        """
        try:
            target = os.readlink(path, dir_fd=self._root_fd)
        except OSError:
            return path  # not a link, or missing, which is found later
        return (self._paths.inside(target) if target.startswith("/") else None) or path

    @contextlib.contextmanager
    def _opened(
        self, parent_fd: int | None, name: str, path: str, *, follow: bool = False
    ) -> Iterator[int]:
        flags = _OPEN_DIR if follow else _OPEN_DIR | os.O_NOFOLLOW
        with self._reading(path):
            fd = os.open(name, flags, dir_fd=parent_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _send_entries(self, dir_fd: int, prefix: str) -> None:
        """Send the entries of an open directory; `prefix` ends in a slash or is empty."""
        if prefix.count("/") >= MAX_PARTS:
            raise self._too_deep(prefix, f"has more than {MAX_PARTS} parts")
        for name, entry in self._sorted_entries(dir_fd, prefix):
            path = prefix + name
            if is_dropped(path, name):
                continue
            if len(os.fsencode(path)) > MAX_NAME_BYTES:
                raise self._too_deep(path, f"has more than {MAX_NAME_BYTES} bytes")
            if path in EMPTIED_DIRS or path == self._log_dir:
                self._sink.add_directory(path)
            elif path == "pg_wal":
                self._send_wal(dir_fd)
            elif path == "pg_tblspc":
                self._send_tablespaces(dir_fd)
            else:
                self._send_entry(dir_fd, name, path, entry)

    def _send_entry(self, dir_fd: int, name: str, path: str, entry: os.DirEntry[str]) -> None:
        if path in self._config:
            self._sink.add_bytes(path, self._config.pop(path))
        elif entry.is_dir(follow_symlinks=False):
            self._send_directory(dir_fd, name, path)
        elif entry.is_file(follow_symlinks=False):
            self._send_file(dir_fd, name, path)
        else:
            self._leave_out(dir_fd, name, path)

    def _send_directory(self, dir_fd: int, name: str, path: str) -> None:
        if name == _LOST_AND_FOUND:
            self._left_out.add("directories of file systems", path)
            return
        with self._opened(dir_fd, name, path) as fd:
            if _inode(os.fstat(fd)) not in self._linked:
                self._sink.add_directory(path)
                self._send_entries(fd, f"{path}/")

    def _leave_out(self, dir_fd: int, name: str, path: str) -> None:
        """Leave out a name that is not a file or directory, unless PostgreSQL keeps data there."""
        with self._reading(path):
            mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        kind = _KINDS.get(stat.S_IFMT(mode), "special files")
        if holds_data(path, name):
            raise PostgresError(
                f"{self._directory / path} is a {kind.removesuffix('s')}, which cannot be sent, "
                "and PostgreSQL keeps data under that name\n"
                "hint: Replace it with the files that it stands for."
            )
        self._left_out.add(kind, path)

    def _too_deep(self, path: str, what: str) -> PostgresError:
        return PostgresError(
            f"a path in {self._directory} {what}: {path[:_SHOWN_CHARACTERS]}...\n"
            "hint: Remove that directory."
        )

    def _send_file(self, dir_fd: int, name: str, path: str, used_bytes: int | None = None) -> None:
        with self._reading(path):
            fd = os.open(name, _OPEN_FILE, dir_fd=dir_fd)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise PostgresError(f"{self._directory / path} is not a regular file")
            self._sink.add_file(path, fd, before.st_size, used_bytes=used_bytes)
            if _snapshot(os.fstat(fd)) != _snapshot(before):
                raise self._changed(path)
        finally:
            os.close(fd)

    def _sorted_entries(self, dir_fd: int, path: str) -> list[tuple[str, os.DirEntry[str]]]:
        with self._reading(path), os.scandir(dir_fd) as entries:
            return sorted(
                ((entry.name, entry) for entry in entries), key=lambda pair: os.fsencode(pair[0])
            )

    def _reading(self, path: str) -> contextlib.AbstractContextManager[None]:
        place = self._shown_place
        return reading(f"{place}/{path}" if path else place)

    def _changed(self, path: str) -> PostgresError:
        return PostgresError(
            f"{self._directory / path} was written to while it was read\n"
            "hint: Nothing may write to a data directory that is being sent."
        )

    def _send_wal(self, root_fd: int) -> None:
        """Send pg_wal, which may be a link, with the segments of the last checkpoint."""
        self._sink.add_directory("pg_wal")
        with self._opened(root_fd, self._place_of("pg_wal"), "pg_wal", follow=True) as fd:
            segments = dict(self._needed_segments())
            history_name = history_of(self._control.tli)
            for name, entry in self._sorted_entries(fd, "pg_wal/"):
                path = f"pg_wal/{name}"
                if path in EMPTIED_DIRS and entry.is_dir():
                    self._sink.add_directory(path)
                elif name in segments:
                    self._send_segment(fd, name, segments.pop(name))
                elif name == history_name:
                    self._send_file(fd, name, path)
            if segments:
                raise PostgresError(
                    f"pg_wal/{min(segments)} is missing in {self._directory}: it holds the last "
                    "checkpoint, without which no server starts"
                )
            self._check_last_checkpoint(fd)

    def _check_last_checkpoint(self, wal_fd: int) -> None:
        with self._reading("pg_wal"):
            is_there = has_last_checkpoint(wal_fd, self._control, dict(self._needed_segments()))
        if not is_there:
            raise PostgresError(
                f"{self._directory / 'pg_wal'} does not have the last checkpoint, at "
                f"{self._control.checkpoint_lsn}, without which no server starts\n"
                "hint: If its files were removed while a server ran, pg_resetwal makes new ones."
            )

    def _needed_segments(self) -> Iterator[tuple[str, int]]:
        """The segments to send, each with the number of bytes up to the checkpoint's end."""
        control = self._control
        size_bytes = control.wal_segment_size_bytes
        first = control.checkpoint_lsn // size_bytes
        last = (control.checkpoint_end_lsn - 1) // size_bytes
        per_log = 2**32 // size_bytes
        for number in range(first, last + 1):
            end = min(control.checkpoint_end_lsn - number * size_bytes, size_bytes)
            yield f"{control.tli:08X}{number // per_log:08X}{number % per_log:08X}", end

    def _send_segment(self, dir_fd: int, name: str, used_bytes: int) -> None:
        """Send a segment, with zeros after the last record, where old WAL may be."""
        path = f"pg_wal/{name}"
        size_bytes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_size
        if size_bytes != self._control.wal_segment_size_bytes:
            raise PostgresError(
                f"{path} in {self._directory} has {size_bytes} bytes, not the "
                f"{self._control.wal_segment_size_bytes} of a segment"
            )
        self._send_file(dir_fd, name, path, used_bytes)

    def _tablespaces(self, names: list[str]) -> list[str]:
        """Return the names in pg_tblspc that may be tablespaces of the catalog.

        Dropped and rolled-back tablespaces may be among them: a row does not always tell.
        """
        numbers = [name for name in names if name.isdecimal()]
        if not numbers:
            return []
        oids = {str(row.oid) for row in read_catalog(self._directory, _PG_TABLESPACE_OID)}
        return [name for name in numbers if name in oids]

    def _send_tablespaces(self, root_fd: int) -> None:
        """Send pg_tblspc with directories, of this version, in place of its links."""
        self._sink.add_directory("pg_tblspc")
        with self._opened(root_fd, "pg_tblspc", "pg_tblspc") as tblspc_fd:
            names = [name for name, _ in self._sorted_entries(tblspc_fd, "pg_tblspc/")]
        oids = self._tablespaces(names)
        for oid in oids:
            self._send_tablespace(root_fd, oid)
        for name in names:
            if name.isdecimal() and name not in oids:
                self._left_out.add("links that belong to no tablespace", self._shown_link(name))

    def _send_tablespace(self, root_fd: int, oid: str) -> None:
        """Send this cluster's part of a tablespace, which other versions may use as well."""
        name = self._version_dir
        path, shown = f"pg_tblspc/{oid}", self._shown_link(oid)
        self._sink.add_directory(path)
        with self._opened(root_fd, self._place_of(path), shown, follow=True) as fd:
            if name not in os.listdir(fd):
                raise PostgresError(
                    f"the tablespace {self._directory / shown} has no {name}, where its data is\n"
                    "hint: Is its file system mounted?"
                )
            self._sink.add_directory(f"{path}/{name}")
            with self._opened(fd, name, f"{path}/{name}") as version_fd:
                self._send_entries(version_fd, f"{path}/{name}/")

    def _shown_link(self, oid: str) -> str:
        """Return a name in pg_tblspc, with its target if it is a link."""
        path = f"pg_tblspc/{oid}"
        try:
            return f"{path} -> {os.readlink(path, dir_fd=self._root_fd)}"
        except OSError:
            return path


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn an `OSError` into a `PostgresError` that names the file."""
    try:
        yield
    except OSError as error:
        raise PostgresError(f"cannot read {name}: {error.strerror}") from error


def _names(root_fd: int, path: str) -> list[str]:
    """Return the names in a directory; none if it cannot be listed."""
    try:
        fd = os.open(path, _OPEN_DIR | os.O_NOFOLLOW, dir_fd=root_fd)
    except OSError:
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _snapshot(status: os.stat_result) -> _Snapshot:
    """The fields of a stat that change when a file is written to."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
