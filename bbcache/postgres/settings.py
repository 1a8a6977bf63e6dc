"""Making a data directory's configuration fit to start somewhere else.

A restored copy runs in another directory, often on another machine and beside its
original. Settings that tie a server to its place are commented out, and those
that would leave a file behind are refused by name:

===========================  =========================================================
setting                      what happens
===========================  =========================================================
external_pid_file,           commented out: two servers would share the file or socket
unix_socket_directories,
stats_temp_directory,
log_directory (outside)
archive_mode,                commented out: a copy would archive its own history over
archive_command,             that of the original, under the same file names
archive_library
synchronous_standby_names    commented out: a copy has no standbys, so commits would hang
listen_addresses             commented out where it names an address of this machine
data_directory, hba_file,    commented out where they name this very data directory and
ident_file                   its own files; refused otherwise
ssl_* files                  refused where absolute or outside and ssl is on
include, include_dir,        kept where they lead to files inside the data directory
include_if_exists, @file     (which get the same treatment), also from file to file;
                             refused otherwise
===========================  =========================================================

Everything else is left as it is, byte for byte. Syntax: guc-file.l.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from bbcache.errors import PostgresError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_CONFIG_BYTES = 16 * 1024 * 1024
_MARK = b"# not portable: "
_TIED_TO_PLACE = frozenset(
    {
        "archive_command",
        "archive_library",
        "archive_mode",
        "external_pid_file",
        "stats_temp_directory",
        "synchronous_standby_names",
        "unix_socket_directories",
    }
)
_PORTABLE_ADDRESSES = frozenset({"", "*", "0.0.0.0", "127.0.0.1", "::", "::1", "localhost"})  # noqa: S104
_OWN_FILES = {"data_directory": "", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
_INCLUDES = frozenset({"include", "include_if_exists", "include_dir"})
_FALSE = frozenset({"off", "false", "no", "0", "of", "f", "fa", "fal", "fals", "n"})
_SETTING = re.compile(
    rb"[ \t\r]*(?P<name>[A-Za-z_\x80-\xff][\w$.\x80-\xff]*)[ \t\r]*=?[ \t\r]*"
    rb"(?:'(?P<quoted>(?:[^'\\]|\\.|'')*)'|(?P<bare>[^\s#']+))?"
)
_ESCAPE = re.compile(rb"''|\\([0-7]{1,3}|.)")
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
# A file named in pg_hba.conf or pg_ident.conf: a list of users (@file), or since
# PostgreSQL 16 an include at the start of a line (hba.c).
_HBA_FILE = re.compile(
    rb"""(?:(?<![^\s,])@|^[ \t]*include(?P<kind>_if_exists|_dir)?[ \t]+)"?(?P<path>[^\s",]+)"""
)
_HBA_COMMENT = re.compile(rb'("[^"]*")|#.*')


class _Setting(NamedTuple):
    file: str
    line_number: int
    name: str
    value: str

    def refusal(self, hint: str) -> PostgresError:
        return PostgresError(
            f"{self.file} line {self.line_number} sets {self.name} to {self.value!r}, which does "
            f"not go with the data directory\nhint: {hint}"
        )


class PortableConfig:
    """The configuration files of a data directory, as they go into its tarball.

    Reads them once, when made. Not thread-safe.

    Args:
        pgdata_dir: the data directory.

    Attributes:
        contents: the content of each file by its path relative to the directory.
        log_dir: the directory of the server's own logs, relative to the directory.

    Raises:
        PostgresError: a file is missing, is a link or cannot be read, or a setting
            is refused.
    """

    def __init__(self, pgdata_dir: Path) -> None:
        self._pgdata_dir = pgdata_dir
        self._effective: dict[str, _Setting] = {}
        self.contents: dict[str, bytes] = {}
        self._add("postgresql.conf")
        if os.path.lexists(pgdata_dir / "postgresql.auto.conf"):
            self._add("postgresql.auto.conf")
        self._add_access_files()
        self._refuse_ssl_files_elsewhere()
        self.log_dir = self._log_dir()

    def _add(self, file: str) -> None:
        """Take in the configuration file `file` and those that it includes."""
        if file in self.contents:
            return
        self.contents[file] = b""  # met: an include back to it ends here
        lines = self._read(file).split(b"\n")
        for index, line in enumerate(lines):
            match = _SETTING.match(line)
            if match is None:
                continue
            name = os.fsdecode(match["name"]).lower()
            setting = _Setting(file, index + 1, name, _value(match))
            if setting.name in _INCLUDES:
                self._add_included(setting)
                continue
            self._effective[setting.name] = setting
            if self._is_tied_to_place(setting):
                lines[index] = _MARK + line
        self.contents[file] = b"\n".join(lines)

    def _read(self, file: str) -> bytes:
        path = self._pgdata_dir / file
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise PostgresError(
                f"{path} is not a readable file of the data directory: {error.strerror}\n"
                "hint: Configuration kept elsewhere, as Debian keeps it in /etc/postgresql, must "
                "be copied into the data directory."
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise PostgresError(f"{path} is no regular file, and cannot be configuration")
            with open(fd, "rb", closefd=False) as config:
                content = config.read(_MAX_CONFIG_BYTES + 1)
        finally:
            os.close(fd)
        if len(content) > _MAX_CONFIG_BYTES:
            raise PostgresError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
        return content

    def _is_tied_to_place(self, setting: _Setting) -> bool:
        name, value = setting.name, setting.value
        if name in _TIED_TO_PLACE:
            return True
        if name == "log_directory":
            return _leads_out(value)
        if name == "listen_addresses":
            return not _PORTABLE_ADDRESSES.issuperset(part.strip() for part in value.split(","))
        if name in _OWN_FILES:
            own = self._pgdata_dir / _OWN_FILES[name]
            if not value.startswith("/") or os.path.realpath(value) != os.path.realpath(own):
                raise setting.refusal(f"Remove the setting, and keep the file at {own}.")
            return True
        return False

    def _add_included(self, setting: _Setting) -> None:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(setting.file), setting.value))
        if _leads_out(target):
            raise setting.refusal("Move what it includes into the data directory.")
        if setting.name == "include_dir":
            for file in self._files_in(target):
                self._add(file)
        elif setting.name == "include" or os.path.lexists(self._pgdata_dir / target):
            self._add(target)

    def _files_in(self, directory: str) -> Iterator[str]:
        """What ``include_dir`` reads, in its order; nothing where it would fail."""
        try:
            names = sorted(os.listdir(self._pgdata_dir / directory))
        except OSError:
            return
        for name in names:
            if name.endswith(".conf") and not name.startswith("."):
                yield posixpath.normpath(posixpath.join(directory, name))

    def _add_access_files(self) -> None:
        self._add_access_file("pg_hba.conf")
        if os.path.lexists(self._pgdata_dir / "pg_ident.conf"):
            self._add_access_file("pg_ident.conf")

    def _add_access_file(self, file: str) -> None:
        """Take in an access file, or a list of names, and those that it names."""
        if file in self.contents:
            return
        self.contents[file] = content = self._read(file)
        for number, line in enumerate(content.split(b"\n"), 1):
            for match in _HBA_FILE.finditer(_HBA_COMMENT.sub(rb"\1", line)):
                named = os.fsdecode(match["path"])
                target = posixpath.normpath(posixpath.join(posixpath.dirname(file), named))
                if _leads_out(target):
                    raise _Setting(file, number, "a list of names", named).refusal(
                        "Move that file into the data directory."
                    )
                is_dir = match["kind"] == b"_dir"
                for each in self._files_in(target) if is_dir else (target,):
                    if os.path.lexists(self._pgdata_dir / each):
                        self._add_access_file(each)

    def _log_dir(self) -> str:
        setting = self._effective.get("log_directory")
        is_inside = setting is not None and not _leads_out(setting.value)
        return posixpath.normpath(setting.value) if setting and is_inside else "log"

    def _refuse_ssl_files_elsewhere(self) -> None:
        ssl = self._effective.get("ssl")
        if ssl is None or ssl.value.lower() in _FALSE:
            return
        for name, setting in self._effective.items():
            is_file = name.startswith("ssl_") and name.endswith(("_file", "_dir"))
            if is_file and _leads_out(setting.value):
                raise setting.refusal(
                    "Copy the file into the data directory and name it there, or set ssl = off."
                )


def _leads_out(path: str) -> bool:
    """Whether a path in the configuration leads out of the data directory."""
    normal = posixpath.normpath(path)
    return normal.startswith(("/", "../")) or normal == ".."


def _value(match: re.Match[bytes]) -> str:
    quoted = match["quoted"]
    if quoted is None:
        return os.fsdecode(match["bare"] or b"")
    return os.fsdecode(_ESCAPE.sub(_unescape, quoted))


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped: bytes | None = match[1]
    if escaped is None:
        return b"'"
    if escaped[:1].isdigit() and escaped[:1] < b"8":
        return bytes([int(escaped, 8) & 0xFF])
    return _ESCAPED.get(escaped, escaped)
