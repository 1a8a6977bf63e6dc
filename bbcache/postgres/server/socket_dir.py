"""A directory for a server's socket, which has a short and plain path."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.paths import read_options
from bbcache.postgres.server.guard import Guard, make_directory
from bbcache.postgres.server.user import ServerUser

# sun_path holds 107 bytes and the name in it is `.s.PGSQL.5432`, with a `.lock` beside it.
_MAX_SIZE_BYTES: Final = 85
_PREFIX: Final = "bbcache-"
_LEFT_DIRS: Final = re.compile(rf'"(/[^",\n]*/{_PREFIX}[0-9a-f]{{12}})"')


def make_socket_dir(user: ServerUser, guard: Guard | None = None) -> Path:
    """Make a private directory: mode 0700, the server's user its owner.

    It is in the system's temporary directory, or else in ``/tmp``.

    Args:
        user: the user that the server runs as.
        guard: what removes the directory, and ends the server that has it in its command
            line, when this process is killed; None for nothing.

    Raises:
        PostgresError: neither is suitable.
    """
    reasons = []
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - a random name is safe there
        fault = _fault(parent, user)
        if fault is None:
            try:
                path = make_directory(parent, _PREFIX, guard)
                user.own_tree(path)
            except OSError as error:
                fault = f"cannot be written to: {error.strerror}"
            else:
                return path
        reasons.append(f"{parent} {fault}")
    raise PostgresError(
        f"no directory for the server's socket: {', '.join(reasons)}\n"
        "hint: Set TMPDIR to a short directory that every user may pass through."
    )


def remove_left_socket_dirs(pgdata_dir: Path) -> None:
    """Remove what `make_socket_dir` has made for a server that has ended, if it can be removed.

    Its ``postmaster.opts`` has the names. A directory of another name, which a user has chosen,
    stays, and so does one with other files.
    """
    for name in _LEFT_DIRS.findall(os.fsdecode(read_options(pgdata_dir))):
        with contextlib.suppress(OSError):
            for path in Path(name).glob(".s.PGSQL.*"):
                path.unlink()
            Path(name).rmdir()


def _fault(parent: str, user: ServerUser) -> str | None:
    """Why a socket's directory cannot be in `parent`; None if it can."""
    if len(os.fsencode(parent)) > _MAX_SIZE_BYTES - len("/bbcache-0123456789ab"):
        return "is too long"
    # A comma ends a host for libpq, and drivers need a host that is text.
    if "," in parent or not parent.isprintable():
        return "has a comma or an unprintable character in its name"
    if user.blocking_dir(Path(parent, "name")) is not None:
        return f"is closed to user {user.name}"
    return None


def quote_directory(path: Path) -> str:
    """Quote a path as an element of ``unix_socket_directories``."""
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'
