"""Unpacking a basebackup into a data directory.

The archive is not trusted; `bbcache.postgres.pgdata.tar_reader` says what it may contain.
``global/pg_control``, without which no server starts, is written last, when the
whole archive has been checked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bbcache.arguments import check_passable
from bbcache.errors import ArchiveError, PostgresError, printable
from bbcache.postgres.pgdata.member_writer import MemberWriter, Part
from bbcache.postgres.pgdata.names import PG_CONTROL_NAME
from bbcache.postgres.pgdata.sync import sync_all
from bbcache.postgres.pgdata.tar_reader import (
    ByteSource,
    Member,
    TarLimits,
    TarReader,
    open_stream,
)
from bbcache.postgres.pgdata.tar_writer import DIRECTORY_MODE
from bbcache.postgres.pgdata.write_behind import WriteBehind

_PG_CONTROL_PART_NAME = "global/pg_control.part"
_MAX_PG_CONTROL_BYTES = 8192  # PG_CONTROL_FILE_SIZE
_AUTO_CONF_NAME = "postgresql.auto.conf"
_NO_LOGICAL_REPLICATION = b"""
# This is a copy beside its original: it would take the changes of its subscriptions.
max_logical_replication_workers = 0
"""
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BATCH_SIZE_BYTES = 512 * 1024
_AT_ONCE = 8  # batches: 4 MiB, since a second thread costs more than it saves for few files


@dataclass(frozen=True, slots=True)
class RestoreSummary:
    """The result of a restore.

    Attributes:
        member_count: files and directories.
        size_bytes: size of the uncompressed tar.
    """

    member_count: int
    size_bytes: int


def restore_tarball(
    archive: Path | str | ByteSource,
    dest: Path | str,
    *,
    owner: tuple[int, int] | None = None,
    sync: bool = False,
    without_logical_replication: bool = False,
    limits: TarLimits | None = None,
) -> RestoreSummary:
    """Unpack a basebackup, gzip'd or plain, into a new data directory.

    The whole archive is checked. A gzip file must be one member with the right CRC-32 and
    size, and nothing after it. The tar must have valid headers and an end marker, only files
    and directories inside `dest`, each once, and ``global/pg_control`` last. Directories get
    mode 0700 and files 0600, whatever the tar says. After a failure `dest` is as empty as
    before; after a kill it may contain files, but no pg_control. Long runs of zeros take no
    space, except in WAL segments, whose space is reserved.

    A copy that runs beside its original has the same subscriptions, and each change then goes
    to only one of the two. Restore such a copy with `without_logical_replication`.

    Safe to call from several threads, each with its own archive and `dest`.

    Args:
        archive: its path, or a file open for reading at its start, or any object with a
            `read`. It stays open. Its exceptions pass through, except an `OSError`.
        dest: the directory to create, or an empty one, in an existing directory.
        owner: user id and group id of the new files; only for root. None takes the
            caller's.
        sync: whether to fsync every file before pg_control is written, and pg_control
            before the call returns.
        without_logical_replication: whether the copy starts no workers for subscriptions,
            by a line in its postgresql.auto.conf, which the command line overrides.
            ``ALTER SYSTEM RESET max_logical_replication_workers`` undoes it.
        limits: the limits of the tar; None accepts any size.

    Raises:
        ArchiveError: the archive is damaged, cut short or not a basebackup.
        LimitError: the archive does not fit the limits.
        PostgresError: `dest` is not empty or cannot be created, the archive cannot be
            read, or there is no space for a file.
    """
    check_passable("the data directory", dest, PostgresError)
    if isinstance(archive, Path | str):
        check_passable("the path of the archive", archive, PostgresError)
        with _naming(f"open {archive}"):
            file = open(archive, "rb", buffering=0)  # noqa: SIM115 - closed by the next line
        with file:
            return restore_tarball(
                file,
                dest,
                owner=owner,
                sync=sync,
                without_logical_replication=without_logical_replication,
                limits=limits,
            )
    directory = Path(dest)
    is_new = _make_empty(directory)
    with _naming(f"open {directory}"):
        dest_fd = os.open(directory, _OPEN_DIR)
    try:
        added = _NO_LOGICAL_REPLICATION if without_logical_replication else b""
        return _Restore(directory, dest_fd, owner, added, sync=sync).run(archive, limits)
    except BaseException:
        _remove_all(directory, dest_fd, is_new=is_new)
        raise
    finally:
        os.close(dest_fd)


def _make_empty(directory: Path) -> bool:
    """Create the directory, or check that it is empty; return whether it was created."""
    try:
        directory.mkdir(mode=DIRECTORY_MODE)
        directory.chmod(DIRECTORY_MODE)  # which the umask may have reduced
    except FileExistsError:
        with _naming(f"list {directory}"):
            names = os.listdir(directory)
        if names:
            raise PostgresError(
                f"{directory} is not empty: {min(names)} is there\n"
                "hint: Name a directory that does not exist yet."
            ) from None
        return False
    except OSError as error:
        raise PostgresError(f"cannot create {directory}: {error.strerror}") from error
    return True


def _remove_all(directory: Path, dest_fd: int, *, is_new: bool) -> None:
    """Empty the directory as far as possible, after an error that is reported."""
    with contextlib.suppress(OSError):
        for name in os.listdir(dest_fd):
            shutil.rmtree(name, ignore_errors=True, dir_fd=dest_fd)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=dest_fd)
        if is_new:
            directory.rmdir()


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn an `OSError` into a `PostgresError` that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise PostgresError(f"cannot {what}: {error.strerror}") from error


class _Restore:
    """One restore. Names are relative to `dest_fd`, to which no other user can write.

    The caller's thread reads, decompresses and checks. For a large archive a second thread
    creates and writes the files; for a small one the caller's does.
    """

    def __init__(
        self,
        directory: Path,
        dest_fd: int,
        owner: tuple[int, int] | None,
        added_settings: bytes,
        *,
        sync: bool,
    ) -> None:
        self._dest_fd = dest_fd
        self._added_settings = added_settings
        self._sync = sync
        self._names: list[str] = []
        self._control: bytes | None = None
        self._writer = MemberWriter(directory, dest_fd, owner)

    def run(self, archive: ByteSource, limits: TarLimits | None) -> RestoreSummary:
        tar = TarReader(_named_errors(open_stream(archive)), limits)
        with contextlib.closing(self._writer):
            self._writer.settle_directory()
            with WriteBehind(self._writer.write, _AT_ONCE) as behind:
                self._unpack(tar, behind.put)
                behind.finish()
            self._writer.end_file()
            if self._control is None:
                raise ArchiveError(f"the tar does not end with {PG_CONTROL_NAME}")
            self._finish(self._control)
        return RestoreSummary(len(self._names), tar.size_bytes)

    def _unpack(self, tar: TarReader, put: Callable[[list[Part]], None]) -> None:
        """Pass on the contents of the tar, in batches of a number of bytes."""
        batch: list[Part] = []
        batch_start_bytes = 0
        for part in self._parts(tar):
            batch.append(part)
            if tar.size_bytes - batch_start_bytes >= _BATCH_SIZE_BYTES:
                put(batch)
                batch, batch_start_bytes = [], tar.size_bytes
        put(batch)

    def _parts(self, tar: TarReader) -> Iterator[Part]:
        """Everything to create except pg_control, which is kept."""
        while (member := tar.next_member()) is not None:
            if self._control is not None:
                raise ArchiveError(
                    f"{printable(member.name)} is in the tar after {PG_CONTROL_NAME}"
                )
            if member.name == PG_CONTROL_NAME:
                self._control = _control_bytes(member, tar)
            else:
                yield member
                yield from tar.body()
            self._names.append(member.name)

    def _finish(self, control: bytes) -> None:
        """Write pg_control, whole or not at all."""
        names = self._names[:-1]
        if self._added_settings:
            self._writer.append(_AUTO_CONF_NAME, self._added_settings)
            names = [_AUTO_CONF_NAME, *names]
        if self._sync:
            sync_all(names, self._fsync)
        part = Member(_PG_CONTROL_PART_NAME, is_directory=False, size_bytes=len(control))
        self._writer.write([part, memoryview(control)])
        self._writer.end_file()
        if self._sync:
            self._fsync(_PG_CONTROL_PART_NAME)
        with self._writer.naming(PG_CONTROL_NAME, 0):
            fds = {"src_dir_fd": self._dest_fd, "dst_dir_fd": self._dest_fd}
            os.rename(_PG_CONTROL_PART_NAME, PG_CONTROL_NAME, **fds)
        if self._sync:
            self._fsync("global", ".", "..")

    def _fsync(self, *names: str) -> None:
        for name in names:
            with self._writer.naming(name, 0):
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dest_fd)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)


def _control_bytes(member: Member, tar: TarReader) -> bytes:
    if member.is_directory or member.size_bytes != _MAX_PG_CONTROL_BYTES:
        raise ArchiveError(
            f"{PG_CONTROL_NAME} in the tar is not a file of {_MAX_PG_CONTROL_BYTES} bytes"
        )
    return b"".join(tar.body())


def _named_errors(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces; an error of reading becomes a `PostgresError`."""
    while True:
        with _naming("read the archive"):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece
