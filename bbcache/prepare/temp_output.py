"""Writing an archive into its temporary file: one that is built, or one that is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.archive.incoming import IncomingArchive
from bbcache.errors import ArchiveError
from bbcache.storage.disk_errors import disk_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.archive.format import Seal
    from bbcache.host import Buffer
    from bbcache.prepare.build_space import BuildSpace
    from bbcache.prepare.request import Request
    from bbcache.storage.files import TempFile

_WRITE_SIZE_BYTES: Final = 1 << 16


class TempOutput:
    """Writes an archive into its temporary file, at least 64 KiB at a time."""

    def __init__(self, temp: TempFile, room: BuildSpace) -> None:
        self._temp = temp
        self._room = room
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def take(self, data: bytes) -> None:
        """Take room for a piece, and keep it or write all that is kept.

        Raises:
            LimitError: there is no room.
            StoreError: the write failed.
        """
        self._room.grow(len(data))
        self._kept.append(data)
        self._kept_bytes += len(data)
        if self._kept_bytes >= _WRITE_SIZE_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is kept; raises `StoreError` if that fails."""
        kept, self._kept = self._kept, []
        self._kept_bytes = 0
        with disk_step("write", self._temp.path):
            self._temp.append(b"".join(kept))


class FetchedArchive:
    """Takes an archive from the second tier; see `bbcache.second_tier.ArchiveSink`.

    The file is created with the first byte, so an archive that is not there costs no file.

    Args:
        request: names the archive.
        create: creates the file.
        room: the room of the archive.
        check_open: raises `ClosingError` once the cache closes.

    Attributes:
        temp: the file; None before the first byte.
    """

    def __init__(
        self,
        request: Request,
        create: Callable[[], TempFile],
        room: BuildSpace,
        check_open: Callable[[], None],
    ) -> None:
        self.temp: TempFile | None = None
        self._incoming = IncomingArchive(request.key, request.lsn)
        self._create = create
        self._room = room
        self._check_open = check_open
        self._output: TempOutput | None = None

    def write(self, data: Buffer, /) -> int:
        """Take a piece."""
        self._check_open()
        piece = bytes(data)
        if self._output is None:
            self.temp = self._create()
            self._output = TempOutput(self.temp, self._room)
        self._incoming.add(piece)
        self._output.take(piece)
        return len(piece)

    def check(self) -> None:
        """Compare the archive with its seal."""
        self._incoming.finish()

    def finish(self) -> tuple[Seal, TempFile]:
        """Write the rest; returns the seal and the file.

        Raises:
            ArchiveError: the archive is bad.
            StoreError: the write failed.
        """
        seal = self._incoming.finish()
        if self._output is None or self.temp is None:
            raise ArchiveError("the second tier has written nothing")
        self._output.write()
        return seal, self.temp
