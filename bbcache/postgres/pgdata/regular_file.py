"""Reading a file of a data directory, in whose place a user may have put anything."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return at most the first `max_bytes` of a regular file, and never wait for a writer.

    Thread-safe.

    Raises:
        OSError: it cannot be read, or is a link, a directory or another special file; the
            error names it.
    """
    name = os.fspath(path)
    try:
        fd = os.open(name, _OPEN)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(name):
            raise OSError(errno.ELOOP, "it is a symbolic link", name) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", name)
        with open(fd, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(fd)
