"""A finished archive that is kept open for the callers that waited for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from bbcache.errors import StoreError
from bbcache.storage.files import BasebackupFile

if TYPE_CHECKING:
    from bbcache.outcomes import Source
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.index import Entry

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC


class SharedFile:
    """One open archive, of which each caller gets a file with its own offset.

    The archive may have another name by now, or none: it is opened again by its descriptor.
    Thread-safe, but `close` comes after the last `open_file`.

    Args:
        path: the kernel's link to the finished temporary file.
        entry: key, LSN and size of the archive.
        name: the `name` of the callers' files.
        reservation: the room of an unpublished archive; None for a published one.

    Raises:
        OSError: the archive cannot be opened.
    """

    def __init__(
        self, path: str, entry: Entry, *, name: str, reservation: Reservation | None = None
    ) -> None:
        self.entry = entry
        self._reservation = reservation
        self._name = name
        self._holder = object()  # not `self`, which must be collected when it is dropped
        self._fd = -1
        self._fd = os.open(path, _FLAGS)
        if reservation is not None:
            reservation.hold(self._holder)

    def fileno(self) -> int:
        """The descriptor; its offset is neither used nor moved."""
        return self._fd

    def open_file(self, source: Source) -> BasebackupFile:
        """Open the archive at offset 0; the caller closes it.

        Raises:
            StoreError: it cannot be opened.
        """
        kind = BasebackupFile if self._reservation is None else _UnpublishedFile
        try:
            file = kind.open_whatever(f"/proc/self/fd/{self._fd}", _FLAGS)
        except OSError as error:
            raise StoreError(
                f"cannot open the finished archive {self._name} again: {error.strerror}\n"
                "hint: It takes /proc, and a free descriptor (ulimit -n).",
                errno=error.errno,
            ) from error
        try:
            file.name, file.lsn, file.size_bytes = self._name, self.entry.lsn, self.entry.size_bytes
            file.source = source
            if isinstance(file, _UnpublishedFile) and self._reservation is not None:
                file.keep(self._reservation)
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Close the descriptor; harmless twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:  # noqa: SIM105 - an interrupt may come after each call: this must be the first
                os.close(fd)
            except OSError:  # the kernel frees the descriptor all the same
                pass
        if self._reservation is not None:
            self._reservation.let_go(self._holder)

    def __del__(self) -> None:
        self.close()  # if the last caller was interrupted before it could


class _UnpublishedFile(BasebackupFile):
    """A file whose bytes count as unpublished until it is closed."""

    is_unpublished = True
    _kept: tuple[Reservation, object] | None = None

    def keep(self, reservation: Reservation) -> None:
        """Count the bytes of `reservation` until this file is closed."""
        holder = object()  # not `self`, which must be collected when it is dropped
        self._kept = reservation, holder
        reservation.hold(holder)

    def close(self) -> None:
        """Give the room back and close the file, also when the file is dropped."""
        if self._kept is not None:
            reservation, holder = self._kept
            reservation.let_go(holder)
        super().close()
