"""Making pg_hba.conf, pg_ident.conf and the files that they name portable."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.config_files import included_files, read_config
from bbcache.postgres.pgdata.paths import PgdataPaths

# A file named in an access file: a list of names (@file), or since PostgreSQL 16 an
# include at the start of a line (hba.c).
_NAMED_FILE: Final = re.compile(
    rb"(?P<before>(?<![^\s,])@|^[ \t]*include(?P<kind>_if_exists|_dir)?[ \t]+)"
    rb"""(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s",]+))"""
)
_BEFORE_COMMENT: Final = re.compile(rb'(?:"[^"]*(?:"|$)|[^#"])*')


class AccessFiles:
    """The access files of a data directory, as its tarball has them. Not thread-safe.

    Every line is kept, because a dropped line may be one that rejects clients. Names of
    files inside the data directory become relative; others are refused.

    Args:
        pgdata_dir: the data directory.
        paths: its names.
        contents: gets the content of each file by its path relative to the directory.
    """

    def __init__(self, pgdata_dir: Path, paths: PgdataPaths, contents: dict[str, bytes]) -> None:
        self._pgdata_dir = pgdata_dir
        self._paths = paths
        self._contents = contents

    def add(self, file: str, source: str | None = None) -> None:
        """Add a file, and the files that it names.

        Args:
            file: its path in the copy, relative to the data directory.
            source: its path now; None for the same path.

        Raises:
            PostgresError: it cannot be read, or names a file that is not sent.
        """
        if file in self._contents:
            return
        source = source or file
        content = read_config(self._pgdata_dir / source)
        self._contents[file] = content  # marked as seen, so that a circle of includes ends
        lines = content.split(b"\n")
        for index, line in enumerate(lines):
            match = _BEFORE_COMMENT.match(line)
            end = len(line) if match is None else match.end()

            def moved(match: re.Match[bytes], number: int = index + 1) -> bytes:
                return self._moved(match, number, file, source)

            lines[index] = _NAMED_FILE.sub(moved, line[:end]) + line[end:]
        self._contents[file] = b"\n".join(lines)

    def _moved(self, match: re.Match[bytes], number: int, file: str, source: str) -> bytes:
        """Add the file that `match` names; return its name in the copy."""
        raw: bytes = match["bare"] if match["quoted"] is None else match["quoted"]
        named = os.fsdecode(raw)
        joined = posixpath.join(posixpath.dirname(source), named)
        target = self._paths.inside(joined)
        if target is None or not self._add_named(target, match["kind"]):
            where = "is not in the data directory" if target is None else "is not there"
            raise PostgresError(
                f"{source} line {number} names {named!r}, which {where}\n"
                "hint: Put that file into the data directory, or remove the line."
            )
        if posixpath.normpath(joined) == target and source == file:
            return match[0]
        relative = posixpath.relpath(target, posixpath.dirname(file) or ".")
        return match["before"] + b'"' + os.fsencode(relative) + b'"'

    def _add_named(self, target: str, kind: bytes | None) -> bool:
        """Add a named file or directory; return whether it exists."""
        if kind == b"_dir":
            for file in included_files(self._pgdata_dir, target):
                self.add(file)
            return self._paths.is_directory(target)
        if os.path.lexists(self._pgdata_dir / target):
            self.add(target)
            return True
        return kind == b"_if_exists"
