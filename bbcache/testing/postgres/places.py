"""Where snapshots are kept, and where servers run."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bbcache.errors import ConfigError
from bbcache.postgres.server.user import ServerUser
from bbcache.testing.postgres.errors import NoRoomError
from bbcache.testing.postgres.options import PostgresOptions

CACHE_ENV_NAME: Final = "BBCACHE_TESTING_DIR"
_SHM_DIR: Final = "/dev/shm"  # noqa: S108 - a directory of this user's own is made there
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_ROOM_FACTOR: Final = 4
ROOM_HINT: Final = (
    "Free space, or name another directory in bbcache_pg_run_dir; in Docker, "
    "`--shm-size=1g` makes /dev/shm larger."
)


@dataclass(frozen=True, slots=True)
class Place:
    """A directory for servers' data directories.

    Attributes:
        directory: this user's own, mode 0700, or 0711 where the servers' user has to pass.
        parent: what it was made in.
        is_memory: whether it is on tmpfs.
    """

    directory: Path
    parent: Path
    is_memory: bool

    @property
    def free_bytes(self) -> int:
        """How much is free there."""
        return _free_bytes(self.directory)


def cache_directory(options: PostgresOptions) -> Path:
    """Return the directory of snapshots, which need not exist.

    Raises:
        ConfigError: no directory is named, and the user has no home directory.
    """
    named = options.cache_dir or os.environ.get(CACHE_ENV_NAME)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    parent = caches if os.path.isabs(caches) else "~/.cache"
    path = Path(named or f"{parent}/bbcache/testing")
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            f"snapshots cannot be kept in {path}: that user has no home directory\n"
            f"hint: Name another directory in {CACHE_ENV_NAME} or bbcache_pg_cache_dir."
        ) from None


def run_place(options: PostgresOptions, restored_bytes: int) -> Place:
    """Return the best place for servers, and make its directory.

    That is `run_dir` of the options. Without it, it is the first of /dev/shm,
    ``$XDG_RUNTIME_DIR`` and the temporary directory that is safely owned, that the servers'
    user can reach, and that has four times the restored size free; the temporary directory needs
    the restored size only.

    Args:
        options: for `run_dir`.
        restored_bytes: the size of a data directory.

    Raises:
        NoRoomError: no place will do; says why of each.
    """
    reasons = []
    for parent, wanted_bytes in _candidates(options, restored_bytes):
        path = parent / f"bbcache-testing-{os.geteuid()}"
        reason = _fault(parent, wanted_bytes) or _make(path)
        if reason is None:
            return Place(path, parent, _file_system(path) in _MEMORY)
        reasons.append(f"{parent} {reason}")
    raise NoRoomError(
        f"no place for a server of {_mb(restored_bytes)}: {'; '.join(reasons)}\nhint: {ROOM_HINT}"
    )


def describe_room(options: PostgresOptions) -> str:
    """Say how much is free in each place."""
    return ", ".join(
        f"{parent} {_mb(_free_bytes(parent))}"
        for parent, _ in _candidates(options, 0)
        if parent.is_dir()
    )


def existing_places(options: PostgresOptions) -> list[Place]:
    """Return all places of this user that may hold something."""
    found = []
    for parent, _ in _candidates(options, 0):
        path = parent / f"bbcache-testing-{os.geteuid()}"
        if path.is_dir() and path.stat().st_uid == os.geteuid():
            found.append(Place(path, parent, _file_system(path) in _MEMORY))
    return found


def _candidates(options: PostgresOptions, restored_bytes: int) -> Iterator[tuple[Path, int]]:
    if options.run_dir:
        yield Path(options.run_dir).expanduser().absolute(), restored_bytes
        return
    seen = set()
    for name in (_SHM_DIR, os.environ.get("XDG_RUNTIME_DIR", "")):
        if name and name not in seen:
            seen.add(name)
            yield Path(name), _ROOM_FACTOR * restored_bytes
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - as above
        if name not in seen:
            seen.add(name)
            yield Path(name), restored_bytes


def _fault(parent: Path, wanted_bytes: int) -> str | None:
    """Why servers cannot run in a directory; None if they can."""
    try:
        status = parent.stat()
        free_bytes = _free_bytes(parent)
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if status.st_uid not in (0, os.geteuid()) or (is_shared and not status.st_mode & stat.S_ISVTX):
        return "is not safely owned: others may rename what is in it"
    blocking = ServerUser.current().blocking_dir(parent / "name")
    if blocking is not None:
        return f"is closed to user {ServerUser.current().name} by {blocking}"
    if free_bytes < wanted_bytes:
        return f"has {_mb(free_bytes)} free, less than {_mb(wanted_bytes)}"
    return None


def _make(path: Path) -> str | None:
    """Make this user's directory; return why that cannot be."""
    mode = 0o711 if ServerUser.current().is_dropped else 0o700
    try:
        path.mkdir(mode=mode, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return f"has a {path.name} that is not this user's directory"
        if stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)
    except OSError as error:
        return f"cannot be written to: {error.strerror}"
    return None


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _file_system(path: Path) -> str:
    """Return the type of the file system that a path is on; empty if that is not known."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:  # proc(5)
                fields, _, rest = line.partition(" - ")
                if fields.split()[2] == number:
                    return rest.split()[0]
    except OSError:
        pass
    return ""


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
