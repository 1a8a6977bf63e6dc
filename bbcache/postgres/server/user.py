"""The operating system user that PostgreSQL's programs run as.

PostgreSQL refuses to run as root. If this process is root, its programs run
as `postgres` if that user exists, else as `nobody`; a plain user runs them as
itself. No user is created, and no mode of a foreign directory is changed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.postgres.server.default_signals import has_default_signals, with_default_signals

_CANDIDATES = ("postgres", "nobody")
# Programs get arguments only: the caller's PGHOST, PGDATA or PGOPTIONS must not change
# what they work on.
_STEERING_PREFIX = "PG"
_LEVELS_LOOKED_AT = 2  # `global` and its files, `base` and its directories


@dataclass(frozen=True, slots=True)
class ServerUser:
    """A user to run PostgreSQL's programs as. Immutable, so thread-safe.

    Attributes:
        name: its name in the user database (PostgreSQL needs one).
        uid: its user id.
        gid: its primary group id.
        home_dir: its home directory, which need not exist.
        is_dropped: whether this process is root and drops its privileges to it.
    """

    name: str
    uid: int
    gid: int
    home_dir: str
    is_dropped: bool

    @classmethod
    def current(cls) -> Self:
        """The user for this process: itself, or for root `postgres`, else `nobody`.

        Raises:
            PostgresError: no such user, or this process' uid has no name.
        """
        is_root = os.geteuid() == 0
        names: tuple[str | int, ...] = _CANDIDATES if is_root else (os.geteuid(),)
        for name in names:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name) if isinstance(name, str) else pwd.getpwuid(name)
                return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, is_root)
        wanted = " or ".join(f"user {name}" for name in names)
        raise PostgresError(
            f"no {wanted} in the user database, but PostgreSQL runs only under a named user\n"
            "hint: Add that user, or run as a user that has a name."
        )

    def subprocess_kwargs(self, argv: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
        """Arguments for `subprocess` that start a program as this user.

        The program has default signal dispositions and an empty signal mask. Its working
        directory is ``/`` since PostgreSQL's programs fail in one that they cannot enter;
        its environment has no ``PG*`` variables and speaks English.

        Root's privileges are dropped by a program that executes the one wanted. `subprocess` would
        drop them in a copy of this process, which takes 10 ms for each 100 MB of its memory.

        Args:
            argv: the absolute path of the program, and its arguments.

        Raises:
            PostgresError: an argument has a NUL.
        """
        for argument in argv:
            check_passable(f"an argument of {os.path.basename(argv[0])}", argument, PostgresError)
        env = {k: v for k, v in os.environ.items() if not k.startswith(_STEERING_PREFIX)}
        env["LC_ALL"] = "C"
        kwargs: dict[str, Any] = {"args": argv, "cwd": "/", "env": env}
        if self.is_dropped:
            env.update(HOME=self.home_dir, USER=self.name, LOGNAME=self.name)
        ids = (self.uid, self.gid) if self.is_dropped else None
        setpriv = _find_setpriv()
        if not has_default_signals() or (ids and setpriv is None):
            kwargs.update(args=with_default_signals(argv, ids))
        elif ids:
            drop = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--"]
            kwargs.update(args=[setpriv, *drop, *argv])
        return kwargs

    def blocking_dir(self, path: Path) -> Path | None:
        """The topmost directory above `path` that this user cannot enter.

        By mode bits only; access control lists are not seen.
        Always None for the user of this process.
        """
        if not self.is_dropped:
            return None
        # Unlike Path.resolve, realpath does not raise for a loop of links.
        real_path = Path(os.path.realpath(path))
        parents = [parent for parent in reversed(real_path.parents) if parent.exists()]
        return next((parent for parent in parents if not self._may_pass(parent)), None)

    def _may_pass(self, directory: Path) -> bool:
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def require_reachable(self, path: Path, what: str) -> None:
        """Raise `PostgresError` naming the directory that keeps this user from `path`."""
        blocking = self.blocking_dir(path)
        if blocking is not None:
            raise PostgresError(
                f"{what} {path} cannot be reached by user {self.name}, which PostgreSQL runs as "
                f"here: directory {blocking} is closed to it\n"
                f"hint: Use a place outside {blocking}, let others pass with "
                f"`chmod o+x {blocking}`, or run as a plain user."
            )

    def own_tree(self, directory: Path) -> None:
        """Make this user the owner of `directory` and all in it.

        Links in it are not followed; `directory` itself may be one. The owner of a directory is
        changed after that of its files. So the files of a directory that the user already owns
        are skipped, except directly in `directory` and one level below, which spares a large
        cluster a walk at each start. A file that root puts deeper stays root's: the server
        fails when it opens it, at the start or in a query, and `find_closed` names it.

        Does nothing for the user of this process.

        Raises:
            PostgresError: a file cannot be given to the user, and the user cannot read it; or it
                has another owner and a second hard link, so it may be the system's.
        """
        if not self.is_dropped:
            return
        top = os.path.realpath(directory)
        self._own_directory(top, top, None, _LEVELS_LOOKED_AT)

    def _own_directory(self, path: str, name: str, parent_fd: int | None, levels: int) -> None:
        """Own a directory; if it is owned already, still check a number of levels in it.

        By descriptors, because the user could put a link in the place of a directory.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = os.open(name, flags, dir_fd=parent_fd)
        try:
            status = os.fstat(fd)
            if status.st_uid == self.uid and levels <= 0:
                return
            with os.scandir(fd) as entries:
                for entry in entries:
                    entry_path = f"{path}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        self._own_directory(entry_path, entry.name, fd, levels - 1)
                    else:
                        self._own(entry_path, entry.name, fd)
            if status.st_uid != self.uid:
                self._own(path, name, parent_fd)
        finally:
            os.close(fd)

    def _own(self, path: str, name: str, dir_fd: int | None) -> None:
        """Make this user the owner of one file, directory or link.

        A file whose owner cannot be changed, such as configuration on a read-only mount, is
        accepted if the user can read it.
        """
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if status.st_uid == self.uid:
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            raise PostgresError(
                f"{path} has {status.st_nlink} hard links, so it is not given to user {self.name}\n"
                "hint: Copy the data directory instead of linking its files."
            )
        try:
            os.chown(name, self.uid, self.gid, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if not self._may_read(status):
                raise PostgresError(
                    f"{path} cannot be given to user {self.name}, which PostgreSQL runs as here: "
                    f"{error.strerror}\nhint: Let that user read it, or give it to that user."
                ) from error

    def permission_hint(self, directory: Path, log_text: str) -> str:
        """Name the file of a data directory that is closed to a server that was refused permission.

        Args:
            directory: the data directory.
            log_text: the log of the server; it names the file that it opened, which may
                be deep below the directory with the wrong mode.

        Returns:
            A hint on a line of its own, or an empty text.
        """
        is_refused = os.strerror(errno.EACCES) in log_text
        closed = self.find_closed(directory) if is_refused else None
        return f"\nhint: Let user {self.name} read and write {closed}." if closed else ""

    def find_closed(self, directory: Path) -> str | None:
        """Find a file of a data directory that this user cannot use; describe it.

        Checks the mode and owner of all files, so call it only after a server has failed.
        Unreadable files come before read-only ones.

        Returns:
            The path, its mode and its owner; None if the user can use every file.
        """
        closed = None
        for path, status in _files_of_server(directory):
            if not self._may_read(status):
                return _describe(path, status)
            if closed is None and status.st_uid == self.uid and not status.st_mode & stat.S_IWUSR:
                closed = _describe(path, status)
        return closed

    def _may_read(self, status: os.stat_result) -> bool:
        if stat.S_ISLNK(status.st_mode):
            return True
        wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
        if status.st_uid == self.uid:
            wanted <<= 6
        elif status.st_gid == self.gid:
            wanted <<= 3
        return status.st_mode & wanted == wanted


@functools.cache
def _find_setpriv() -> str | None:
    """The path of setpriv(1) of util-linux; None where it is missing, or that of BusyBox."""
    path = shutil.which("setpriv", path=os.defpath)
    is_full = path is not None and Path(path).resolve().name == "setpriv"
    return path if is_full else None


def _files_of_server(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield files and directories, each after its directory; follow links as PostgreSQL does."""
    waiting = [os.path.realpath(directory)]
    for path in waiting:  # it grows meanwhile
        with contextlib.suppress(OSError):  # closed, which was yielded, or just removed
            status = os.stat(path)
            if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                continue
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                follows = os.path.basename(path) == "pg_tblspc"
                with os.scandir(path) as entries:
                    waiting += [
                        entry.path
                        for entry in entries
                        if follows or entry.name == "pg_wal" or not entry.is_symlink()
                    ]


def _describe(path: str, status: os.stat_result) -> str:
    owner = str(status.st_uid)
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(status.st_uid).pw_name
    return f"{path} (mode {stat.S_IMODE(status.st_mode):04o}, owner {owner})"
