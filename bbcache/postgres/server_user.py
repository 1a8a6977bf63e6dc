"""The operating system user that PostgreSQL's programs run as.

PostgreSQL refuses to run as root. Where this process is root, its programs run
as `postgres` if that user exists, else as `nobody`; a plain user runs them as
itself. No user is created and no mode of a directory that is not ours is changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bbcache.errors import PostgresError
from bbcache.postgres.default_signals import has_default_signals, with_default_signals

_CANDIDATES = ("postgres", "nobody")
# Programs are steered by arguments alone: a caller's PGHOST, PGDATA or PGOPTIONS
# would send them elsewhere.
_STEERING_PREFIX = "PG"


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
            f"no {wanted} in the user database, and PostgreSQL runs under a named user only\n"
            "hint: Add that user, or run as one that has a name."
        )

    def subprocess_kwargs(self, argv: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
        """Arguments for `subprocess` that start a program as this user.

        The program has default signal dispositions and an empty signal mask. Its working
        directory is ``/`` since PostgreSQL's programs fail in one that they cannot enter;
        its environment has no ``PG*`` variables and speaks English.

        Args:
            argv: the absolute path of the program, and its arguments.
        """
        env = {k: v for k, v in os.environ.items() if not k.startswith(_STEERING_PREFIX)}
        env["LC_ALL"] = "C"
        kwargs: dict[str, Any] = {"args": argv, "cwd": "/", "env": env}
        if self.is_dropped:
            env.update(HOME=self.home_dir, USER=self.name, LOGNAME=self.name)
        if not has_default_signals():
            ids = (self.uid, self.gid) if self.is_dropped else None
            kwargs.update(args=with_default_signals(argv, ids))
        elif self.is_dropped:
            kwargs.update(user=self.uid, group=self.gid, extra_groups=[])
        return kwargs

    def blocking_dir(self, path: Path) -> Path | None:
        """The topmost directory above `path` that this user cannot pass through.

        Judged by mode bits, so an access control list that grants more is not seen.
        Always None for the user of this process.
        """
        if not self.is_dropped:
            return None
        parents = [parent for parent in reversed(path.resolve().parents) if parent.exists()]
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
        """Make this user the owner of `directory` and all in it; links are not followed.

        Does nothing for the user of this process.

        Raises:
            PostgresError: a file there has another owner and a second hard link, so
                it may be a file of the system's.
        """
        if not self.is_dropped:
            return
        self._own(str(directory), str(directory), None)
        for parent, directories, files, dir_fd in os.fwalk(directory):
            for name in (*directories, *files):
                self._own(f"{parent}/{name}", name, dir_fd)

    def _own(self, path: str, name: str, dir_fd: int | None) -> None:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if status.st_uid == self.uid:
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            raise PostgresError(
                f"{path} has {status.st_nlink} hard links, so it is not given to user {self.name}\n"
                "hint: Copy the data directory instead of linking its files."
            )
        os.chown(name, self.uid, self.gid, dir_fd=dir_fd, follow_symlinks=False)
