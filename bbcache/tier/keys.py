"""The keys that sign objects, read from files that may change at any time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_ID_SIZE_BYTES: Final = 4
LEAST_KEY_SIZE_BYTES: Final = 32
_MOST_KEY_SIZE_BYTES: Final = 4096
_LOOK_PAUSE_S: Final = 1.0
_HINT: Final = "\nhint: Make a key with `(umask 077; head -c 32 /dev/urandom > FILE)`."

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """A signing key.

    Attributes:
        id: names the key in objects, and says nothing about it.
        secret: its bytes.
    """

    id: bytes
    secret: bytes

    @classmethod
    def of(cls, secret: bytes) -> Key:
        """Make a key of its bytes."""
        digest = hmac.digest(secret, b"bbcache tier key id", hashlib.sha256)
        return cls(digest[:KEY_ID_SIZE_BYTES], secret)


class KeyRing:
    """The keys in some files: the first one signs, each one verifies. Thread-safe.

    The files are looked at once a second while the ring is used. If one cannot be read, all keys
    from before stay in use, and it is tried again.

    Args:
        paths: the files.

    Raises:
        ConfigError: a file cannot be read, is too short, or can be read by other users.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._lock = threading.Lock()  # guards the rest
        self._problem = ""  # why the files could not be read again; said once
        self._looked_s = time.monotonic()
        self._seen = _stats(self._paths)
        self._keys = [_read(path) for path in self._paths]

    def signing(self) -> Key | None:
        """The key that signs; None if there are no keys."""
        keys = self._current()
        return keys[0] if keys else None

    def find(self, key_id: bytes) -> Key | None:
        """The key with an id; None if it is not one of the ring."""
        return next((key for key in self._current() if key.id == key_id), None)

    def refresh(self) -> None:
        """Read the files again if they have changed; keep the keys while that fails."""
        seen = _stats(self._paths)
        with self._lock:
            if seen == self._seen:
                return
        try:
            keys = [_read(path) for path in self._paths]
        except ConfigError as error:
            with self._lock:
                is_new, self._problem = str(error) != self._problem, str(error)
            if is_new:
                log.error("the keys of the tier from before stay in use: %s", error)  # noqa: TRY400 - no news in the traceback
            return
        with self._lock:
            self._keys, self._seen, self._problem = keys, seen, ""
        log.info("the %d keys of the tier were read again", len(keys))

    def _current(self) -> list[Key]:
        now_s = time.monotonic()
        with self._lock:
            is_due = now_s - self._looked_s >= _LOOK_PAUSE_S
            if is_due:
                self._looked_s = now_s
        if is_due:
            self.refresh()
        with self._lock:
            return self._keys


def _stats(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """The facts about each file by which a change is noticed; empty if it cannot be examined."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append(())
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode))
    return found


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a FIFO without a writer makes nobody wait."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: str) -> Key:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            secret = file.read(_MOST_KEY_SIZE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}{_HINT}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the key {path} is not a regular file{_HINT}")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"the key {path} has mode {mode:04o}: other users may read it\nhint: chmod 600 {path}"
        )
    if not LEAST_KEY_SIZE_BYTES <= len(secret) <= _MOST_KEY_SIZE_BYTES:
        raise ConfigError(
            f"the key {path} has {status.st_size} bytes, but must have from "
            f"{LEAST_KEY_SIZE_BYTES} to {_MOST_KEY_SIZE_BYTES}{_HINT}"
        )
    return Key.of(secret)
