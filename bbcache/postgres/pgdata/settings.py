"""Making the configuration of a data directory portable.

A restored copy runs in another directory, often on another machine and beside its
original. Settings that cannot work there are commented out:

- settings that tie a server to its place or machine (`bbcache.postgres.pgdata.tied_settings`);
- settings that name a file outside of the data directory, or a file that is not sent;
- includes of files that are outside of the data directory, or missing;
- ``ssl``, if the copy has no certificate, or no key that it can read without help.

An absolute path that leads into the data directory becomes a relative one. The files
that hba_file and ident_file name inside it become pg_hba.conf and pg_ident.conf, since
PostgreSQL resolves their relative names in its working directory.

All other bytes stay as they are. Syntax: guc-file.l.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final, NamedTuple

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.access_files import AccessFiles
from bbcache.postgres.pgdata.config_files import included_files, read_config
from bbcache.postgres.pgdata.paths import PgdataPaths
from bbcache.postgres.pgdata.tied_settings import is_tied, names_file

_PRIVATE: Final = 0o600
_MARK: Final = b"# not portable: "
_MOVED_MARK: Final = b"  # made relative: "
_ACCESS_FILES: Final = {"hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
_SESSION_LIBRARIES: Final = "session_preload_libraries"
_LIBRARIES: Final = frozenset({"shared_preload_libraries", _SESSION_LIBRARIES})
_PLUGINS: Final = "$libdir/plugins/"
_INCLUDES: Final = frozenset({"include", "include_if_exists", "include_dir"})
_FALSE: Final = frozenset({"off", "false", "no", "0", "of", "f", "fa", "fal", "fals", "n"})
# The files that a server with ssl on reads at its start, with the defaults.
_SSL_FILES: Final = {
    "ssl_cert_file": "server.crt",
    "ssl_key_file": "server.key",
    "ssl_ca_file": "",
    "ssl_crl_file": "",
}
_SETTING: Final = re.compile(
    rb"[ \t\r]*(?P<name>[A-Za-z_\x80-\xff][\w$.\x80-\xff]*)[ \t\r]*=?[ \t\r]*"
    rb"(?:'(?P<quoted>(?:[^'\\]|\\.|'')*)'|(?P<bare>[^\s#']+))?"
)
_ESCAPE: Final = re.compile(rb"''|\\([0-7]{1,3}|.)")
_ESCAPED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class _Setting(NamedTuple):
    file: str
    line_number: int
    name: str
    value: str


class PortableConfig:
    """The configuration files of a data directory, as its tarball has them.

    Reads them in its constructor. Not thread-safe.

    Args:
        pgdata_dir: the data directory.

    Attributes:
        contents: the content of each file by its path relative to the directory.
        log_dir: the directory of the server's own logs, relative to the directory.
        left_out: each setting that is commented out, with its file and line.

    Raises:
        PostgresError: postgresql.conf or the access file is missing, a link or cannot
            be read; an access file names a file that is not sent.
    """

    def __init__(self, pgdata_dir: Path) -> None:
        check_passable("the data directory", pgdata_dir, PostgresError)
        self._pgdata_dir = pgdata_dir
        self._paths = PgdataPaths(pgdata_dir)
        self._effective: dict[str, str] = {}
        self._access_files: dict[str, str] = {}
        self.contents: dict[str, bytes] = {}
        self.left_out: list[str] = []
        self._add("postgresql.conf")
        if self._paths.is_file("postgresql.auto.conf"):
            self._add("postgresql.auto.conf")
        self._leave_out_broken_ssl()
        self._add_access_files()
        self.log_dir = posixpath.normpath(self._effective.get("log_directory") or "log")

    @property
    def preloaded_libraries(self) -> str:
        """The libraries that a server or a session of the copy loads, as one list."""
        effective = self._effective
        lists = [effective.get("shared_preload_libraries"), effective.get(_SESSION_LIBRARIES)]
        # A plain user may only name libraries of one directory, without that directory.
        for name in effective.get("local_preload_libraries", "").split(","):
            plain = name.strip().strip('"')
            lists.append(f'"{_PLUGINS}{plain.removeprefix(_PLUGINS)}"' if plain else "")
        return ",".join(filter(None, lists))

    def _add(self, file: str) -> None:
        """Add the configuration file `file` and the files that it includes."""
        if file in self.contents:
            return
        self.contents[file] = b""  # marked as seen, so that a circle of includes ends
        lines = read_config(self._pgdata_dir / file).split(b"\n")
        for index, line in enumerate(lines):
            match = _SETTING.match(line)
            if match is None:
                continue
            name = os.fsdecode(match["name"]).lower()
            setting = _Setting(file, index + 1, name, _value(match))
            value = self._portable_value(setting)
            if value is None:
                lines[index] = _MARK + line
                self._note(setting)
            elif value != setting.value:
                lines[index] = _line(match["name"], value) + _MOVED_MARK + line
            if value is not None:
                self._effective[name] = value
        self.contents[file] = b"\n".join(lines)

    def _note(self, setting: _Setting) -> None:
        self.left_out.append(f"{setting.name} ({setting.file} line {setting.line_number})")

    def _portable_value(self, setting: _Setting) -> str | None:
        """Return the value of a setting in the copy; None if it is commented out."""
        name, value = setting.name, setting.value
        if name in _INCLUDES:
            return self._included(setting)
        if name in _ACCESS_FILES and value.startswith("/"):
            self._note_access_file(name, value)
        if is_tied(name, value):
            return None
        if names_file(name):
            return self._moved_file(name, value)
        if name in _LIBRARIES:
            return ",".join(map(self._moved_library, value.split(",")))
        return value

    def _note_access_file(self, name: str, value: str) -> None:
        inside = self._paths.inside(value)
        if inside is not None and self._paths.is_file(inside):
            self._access_files[_ACCESS_FILES[name]] = inside

    def _moved_file(self, name: str, value: str) -> str | None:
        """Return the relative form of a path inside the directory; None for a path outside."""
        path = value.removeprefix("FILE:") if name == "krb_server_keyfile" else value
        if not (path.startswith("/") or _leads_out(path)):
            return value
        return self._paths.inside(path)

    def _moved_library(self, element: str) -> str:
        path = element.strip().strip('"')
        inside = self._paths.inside(path) if path.startswith("/") else None
        # PostgreSQL looks for a name without a slash among its installed libraries.
        return f'"{inside}"' if inside is not None and "/" in inside else element

    def _included(self, setting: _Setting) -> str | None:
        """Add an included file; return its name in the copy, or None."""
        directory = posixpath.dirname(setting.file)
        joined = posixpath.join(directory, setting.value)
        target = self._paths.inside(joined)
        if target is None:
            return None
        if setting.name == "include_dir":
            if not self._paths.is_directory(target):
                return None
            for file in included_files(self._pgdata_dir, target):
                if self._paths.is_file(file):
                    self._add(file)
        elif self._paths.is_file(target):
            self._add(target)
        elif setting.name == "include" or os.path.lexists(self._pgdata_dir / target):
            return None
        is_unchanged = posixpath.normpath(joined) == target
        return setting.value if is_unchanged else posixpath.relpath(target, directory or ".")

    def _leave_out_broken_ssl(self) -> None:
        """Comment ssl out everywhere if it is on and the copy cannot start with it."""
        is_on = self._effective.get("ssl", "off").lower() not in _FALSE
        if not is_on or self._has_ssl_files():
            return
        for file, content in self.contents.items():
            lines = content.split(b"\n")
            for index, line in enumerate(lines):
                match = _SETTING.match(line)
                if match is not None and match["name"].lower() == b"ssl":
                    lines[index] = _MARK + line
                    self._note(_Setting(file, index + 1, "ssl", ""))
            self.contents[file] = b"\n".join(lines)

    def _has_ssl_files(self) -> bool:
        files = {name: self._effective.get(name, own) for name, own in _SSL_FILES.items()}
        wanted = (file for name, file in files.items() if file or _SSL_FILES[name])
        if not all(map(self._paths.is_file, wanted)):
            return False
        # The passphrase of an encrypted key comes from a program of the machine.
        return b"ENCRYPTED" not in read_config(self._pgdata_dir / files["ssl_key_file"])

    def _add_access_files(self) -> None:
        access = AccessFiles(self._pgdata_dir, self._paths, self.contents)
        access.add("pg_hba.conf", self._access_files.get("pg_hba.conf"))
        ident = self._access_files.get("pg_ident.conf", "pg_ident.conf")
        if self._paths.is_file(ident):
            access.add("pg_ident.conf", ident)


def make_portable(pgdata_dir: Path) -> None:
    """Write the portable configuration into a data directory on which no server runs.

    A server then starts there although a setting stops it otherwise. Not thread-safe.

    Raises:
        OSError: a file cannot be written.
        PostgresError: as `PortableConfig`.
    """
    part = pgdata_dir / "postgresql.auto.conf.tmp"  # which no tarball has
    for file, content in PortableConfig(pgdata_dir).contents.items():
        path = pgdata_dir / file
        if os.path.lexists(path) and read_config(path) == content:
            continue
        part.unlink(missing_ok=True)
        part.write_bytes(content)
        part.chmod(_PRIVATE)
        status = pgdata_dir.stat()
        os.chown(part, status.st_uid, status.st_gid)
        part.replace(path)


def _leads_out(path: str) -> bool:
    normal = posixpath.normpath(path)
    return normal.startswith("../") or normal == ".."


def _line(name: bytes, value: str) -> bytes:
    escaped = os.fsencode(value).replace(b"\\", b"\\\\").replace(b"'", b"''")
    return b"%b = '%b'" % (name, escaped)


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
