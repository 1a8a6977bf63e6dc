"""A file without a name, for an archive that the disk of the cache cannot take."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bbcache.storage.files import TempFile

if TYPE_CHECKING:
    from typing import Self

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC
_NAMED_FLAGS: Final = _FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class UnnamedFile(TempFile):
    """A file being written that is gone with its last descriptor; belongs to one build.

    Attributes:
        path: what the file is called in errors and as `name` of what is handed out.
    """

    @classmethod
    def create(cls, directory: str, name: str) -> Self:
        """Make one.

        Args:
            directory: where its bytes are.
            name: a name that no file there has; where the file system has no files
                without a name (O_TMPFILE), the file has it for a moment.

        Raises:
            OSError: it cannot be made.
        """
        path = os.path.join(directory, name)
        with suppress(OSError):
            return cls(path, os.open(directory, _FLAGS | os.O_TMPFILE, 0o600))
        fd = os.open(path, _NAMED_FLAGS, 0o600)
        try:
            os.unlink(path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)
