"""Reading the configuration files of a data directory."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.regular_file import read_regular

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
        content = read_regular(path, _MAX_CONFIG_BYTES + 1)
    except OSError as error:
        is_elsewhere = error.errno in (errno.ENOENT, errno.ELOOP)
        raise PostgresError(
            f"{path} is not a readable file of the data directory: {error.strerror}"
            + (_ELSEWHERE_HINT if is_elsewhere else "")
        ) from error
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
