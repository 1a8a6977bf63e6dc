"""Paths in a configuration: inside or outside of the data directory."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from pathlib import Path
from typing import Final

from bbcache.postgres.pgdata.regular_file import read_regular

_MAX_OPTS_BYTES: Final = 64 * 1024
# postmaster.opts holds the arguments of the last start, each in double quotes.
_DATA_DIR_OPTION: Final = re.compile(rb'"-D(?:" ")?(/[^"]*)"')


class PgdataPaths:
    """The names that a data directory has had. Thread-safe.

    The configuration of a directory that was moved since its server stopped still has the
    former path, which postmaster.opts tells.

    Args:
        pgdata_dir: the data directory.
    """

    def __init__(self, pgdata_dir: Path) -> None:
        self._real = os.path.realpath(pgdata_dir)
        roots = (os.path.abspath(pgdata_dir), self._real, _former_path(pgdata_dir))
        self._roots = tuple(dict.fromkeys(filter(None, roots)))

    def inside(self, path: str) -> str | None:
        """Return where in the data directory a path of the configuration leads.

        Args:
            path: absolute, or relative to the data directory.

        Returns:
            The normal form, relative to the data directory; ``.`` for the directory
            itself; None for a place outside of it.
        """
        for root in self._roots:
            relative = _below(root, posixpath.normpath(posixpath.join(root, path)))
            if relative is not None:
                return relative
        return _below(self._real, os.path.realpath(posixpath.join(self._real, path)))

    def is_file(self, relative: str) -> bool:
        """Return whether a path inside is a regular file that no link leads to."""
        path = posixpath.join(self._real, posixpath.normpath(relative))
        try:
            is_regular = stat.S_ISREG(os.lstat(path).st_mode)
        except (OSError, ValueError):
            return False
        return is_regular and os.path.realpath(path) == path

    def is_directory(self, relative: str) -> bool:
        """Return whether a path inside is a directory that no link leads to."""
        path = posixpath.normpath(posixpath.join(self._real, relative))
        return os.path.isdir(path) and os.path.realpath(path) == path


def _below(root: str, path: str) -> str | None:
    if path == root:
        return "."
    return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None


def read_options(pgdata_dir: Path) -> bytes:
    """Return the command line of the last start, its postmaster.opts; empty if it is unreadable."""
    try:
        return read_regular(pgdata_dir / "postmaster.opts", _MAX_OPTS_BYTES)
    except OSError:
        return b""


def _former_path(pgdata_dir: Path) -> str | None:
    """Return the data directory of the last start."""
    match = _DATA_DIR_OPTION.search(read_options(pgdata_dir))
    return None if match is None else posixpath.normpath(os.fsdecode(match[1]))
