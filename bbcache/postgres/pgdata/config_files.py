"""Reading the configuration files of a data directory."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError

_MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024

_ELSEWHERE_HINT: Final = (
    "\nhint: Configuration kept elsewhere, as Debian keeps it in /etc/postgresql, must be "
    "copied into the data directory."
)


def read_config(path: Path) -> bytes:
    """Return the content of a configuration file.

    Raises:
        PostgresError: it is missing, a link, not a regular file, larger than 16 MiB, or
            cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason, is_elsewhere = error.strerror, error.errno in (errno.ENOENT, errno.ELOOP)
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link"
        raise PostgresError(
            f"{path} is not a readable file of the data directory: {reason}"
            + (_ELSEWHERE_HINT if is_elsewhere else "")
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PostgresError(f"{path} is not a regular file, so it cannot be configuration")
        with open(fd, "rb", closefd=False) as config:
            content = config.read(_MAX_CONFIG_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > _MAX_CONFIG_BYTES:
        raise PostgresError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
    return content


def included_files(pgdata_dir: Path, directory: str) -> Iterator[str]:
    """Yield the files that ``include_dir`` reads, in its order; nothing if it fails.

    Args:
        pgdata_dir: the data directory.
        directory: the included directory, relative to `pgdata_dir`.

    Yields:
        The path of each file, relative to `pgdata_dir`.
    """
    try:
        names = sorted(os.listdir(pgdata_dir / directory))
    except OSError:
        return
    for name in names:
        if name.endswith(".conf") and not name.startswith("."):
            yield posixpath.normpath(posixpath.join(directory, name))
