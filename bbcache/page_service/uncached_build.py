"""Building an archive for one client alone, beside the cache."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, Final

from isal import igzip

from bbcache.archive.tar_head import BLOCK_SIZE_BYTES, check_tar_head
from bbcache.host import Buffer, Timeline
from bbcache.ids import Lsn

_LEVEL: Final = 2
_SLICE_S: Final = 0.2


class UncachedBuilder:
    """Builds what is for one client alone, a few at a time. Thread-safe.

    Args:
        most: how many are built at once; the next ones wait.
        build_dir: where the files are; None for the system's temporary directory. They
            have no names there, and are gone when they are closed.
    """

    def __init__(self, most: int, build_dir: str | None) -> None:
        self._places = threading.BoundedSemaphore(most)
        self._build_dir = build_dir

    def build(
        self, timeline: Timeline, lsn: Lsn, check_cancelled: Callable[[], None]
    ) -> tuple[BinaryIO, int]:
        """Build one.

        Args:
            timeline: of what.
            lsn: at which position.
            check_cancelled: called every so often; what it raises ends the build.

        Returns:
            A file of one gzip member, open at its start, and its size in bytes. The
            caller closes it.

        Raises:
            ArchiveError: the host wrote no tar.
            OSError: it cannot be written.
            Exception: the host has raised it.
        """
        while not self._places.acquire(timeout=_SLICE_S):
            check_cancelled()
        try:
            return self._build(timeline, lsn, check_cancelled)
        finally:
            self._places.release()

    def _build(
        self, timeline: Timeline, lsn: Lsn, check_cancelled: Callable[[], None]
    ) -> tuple[BinaryIO, int]:
        file = tempfile.TemporaryFile(dir=self._build_dir)  # noqa: SIM115 - the caller closes it
        try:
            stream: AbstractContextManager[BinaryIO] = igzip.open(file, "wb", compresslevel=_LEVEL)  # type: ignore[no-untyped-call]  # isal has no types for it
            with stream as gzip:
                watched = _Watched(gzip, check_cancelled)
                timeline.send_basebackup_tarball(watched, lsn)
                watched.finish()
            size_bytes = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file, size_bytes


class _Watched:
    """A writer that takes a tar only, and stops where nobody waits for it any more.

    What it has raised once ends the build, whatever the host makes of it.
    """

    def __init__(self, writer: BinaryIO, check_cancelled: Callable[[], None]) -> None:
        self._writer = writer
        self._go_on = check_cancelled
        self._head = b""  # the first block, as far as it is written
        self._failure: BaseException | None = None

    def write(self, data: Buffer, /) -> int:
        if self._failure is not None:
            raise self._failure
        try:
            self._go_on()
            if len(self._head) < BLOCK_SIZE_BYTES:
                self._look_at_head(data)
            return self._writer.write(data)
        except BaseException as error:
            self._failure = error
            raise

    def finish(self) -> None:
        """Raise what ended the build, or what is wrong with a tar of less than a block."""
        if self._failure is not None:
            raise self._failure
        if len(self._head) < BLOCK_SIZE_BYTES:
            check_tar_head(self._head)

    def _look_at_head(self, data: Buffer) -> None:
        self._head = (self._head + memoryview(data).tobytes())[:BLOCK_SIZE_BYTES]
        if len(self._head) == BLOCK_SIZE_BYTES:
            check_tar_head(self._head)
