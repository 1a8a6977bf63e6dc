"""The locks that bbcache makes, known from outside: by watching `threading` as they are made."""

from __future__ import annotations

import inspect
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGES: Final = ("bbcache", "prometheus_client")


class WatchedLock:
    """A lock of `threading` that knows its owner.

    Attributes:
        maker: the module that has made it, such as ``bbcache.storage.index``.
        waiting: how many threads wait for it now.
    """

    def __init__(self, lock: Any, maker: str, before: Callable[[WatchedLock], None]) -> None:
        self.maker = maker
        self.waiting = 0
        self._lock = lock
        self._before = before
        self._owner: int | None = None
        self._depth = 0  # guarded by the lock itself

    @property
    def is_mine(self) -> bool:
        """Whether the current thread has the lock."""
        return self._owner == threading.get_ident()

    @property
    def is_held(self) -> bool:
        """Whether any thread has the lock."""
        return self._owner is not None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT002 - as Lock
        """As the lock's own."""
        if not self.is_mine:
            self._before(self)
        is_taken: bool = self._lock.acquire(blocking=False)
        if not is_taken and blocking:
            self.waiting += 1
            is_taken = self._lock.acquire(timeout=timeout)
            self.waiting -= 1
        if is_taken:
            self._depth += 1
            self._owner = threading.get_ident()
        return is_taken

    def release(self) -> None:
        """As the lock's own."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()

    def locked(self) -> bool:
        """As `threading.Lock.locked`."""
        return self.is_held

    def _is_owned(self) -> bool:  # asked for by threading.Condition
        return self.is_mine

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def watched_locks(
    before: Callable[[WatchedLock], None] = lambda _: None,
) -> Iterator[list[WatchedLock]]:
    """Watch the locks that bbcache, or prometheus_client for it, makes in this block.

    Args:
        before: called with the lock by a thread that does not have it and is about to take it.
    """
    made: list[WatchedLock] = []

    def watch(make: Callable[[], Any]) -> Callable[[], Any]:
        def made_lock() -> Any:
            maker = _caller()
            if not maker.startswith(_PACKAGES):
                return make()
            made.append(WatchedLock(make(), maker, before))
            return made[-1]

        return made_lock

    names = ("Lock", "RLock")
    modules = [threading, *(m for n, m in list(sys.modules.items()) if n.startswith(_PACKAGES[1]))]
    with ExitStack() as patched:
        for module in modules:
            for name in names:
                if hasattr(module, name):
                    make = getattr(module, name)
                    patched.enter_context(mock.patch.object(module, name, watch(make)))
        yield made


def _caller() -> str:
    """The module that wants a lock, also where a class of `threading` makes it."""
    frame = inspect.currentframe()
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name not in {__name__, threading.__name__}:
            return name
        frame = frame.f_back
    return ""
