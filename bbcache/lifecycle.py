"""Fork and exit of the process that has caches.

A forked child has the caches of its parent in memory, but none of their threads, and locks in
any state. It must lock nothing, so each public call reads a plain attribute first.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its exit hook, before ours
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_generation = 0


class Closable(Protocol):
    """An object that is closed at the exit: the engine of a cache."""

    def begin_close(self) -> None:
        """Stop every thread soon, without waiting."""
        ...

    def close(self, timeout: float | None = None) -> None:
        """Close, and wait `timeout` seconds at most."""
        ...


class ThreadOwner(Protocol):
    """A cache or a service, whose threads do not run in a forked child."""

    def close_inherited(self) -> None:
        """Become inert in a forked child, without a lock, a wait or a word to a peer."""
        ...


# By id: another thread may close a cache at the exit, and a WeakSet that changes during an
# iteration raises.
_caches: dict[int, weakref.ref[Closable]] = {}
_thread_owners: weakref.WeakSet[ThreadOwner] = weakref.WeakSet()
_EXIT_TIMEOUT_S = 10.0


def generation() -> int:
    """A number that a fork changes in the child; takes one read of memory."""
    return _generation


def close_at_exit(cache: Closable) -> None:
    """Begin to close `cache` when the interpreter exits, in time for its threads."""
    _caches[id(cache)] = weakref.ref(cache)


def forget(cache: Closable) -> None:
    """Undo `close_at_exit`."""
    _caches.pop(id(cache), None)


def close_in_children(owner: ThreadOwner) -> None:
    """Have each child that is forked from now on close what it has of `owner`.

    Otherwise a connection that the parent closes would stay open to its client as long as the
    child lives, and stay in the parent's epoll.
    """
    _thread_owners.add(owner)


class callback:  # noqa: N801 - callers write it like a function
    """Wrap a call of the host: if the host forks, the child exits when the call returns.

    Otherwise the child would go on with its parent's work and files. Its exit code is that of a
    program which consists of the callback alone.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _generation

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if _generation != self._before:
            _end_child(error)


def _end_child(error: BaseException | None) -> NoReturn:
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    os._exit(code & 0xFF)  # takes no lock and runs no exit hook of the parent


def _open_caches() -> list[Closable]:
    found = [cache() for cache in list(_caches.values())]
    return [cache for cache in found if cache is not None]


def _begin_closes() -> None:
    for cache in _open_caches():
        cache.begin_close()


def _finish_closes() -> None:
    for cache in _open_caches():
        cache.close(_EXIT_TIMEOUT_S)


def _in_forked_child() -> None:
    global _generation  # noqa: PLW0603 - one number a process, changed by a fork alone
    _generation += 1
    _caches.clear()
    for owner in list(_thread_owners):
        owner.close_inherited()
    _thread_owners.clear()


os.register_at_fork(after_in_child=_in_forked_child)
atexit.register(_finish_closes)
# Python joins threads, and an executor its workers, before any atexit handler runs. Only the
# hook that concurrent.futures uses is in time; the last registered one runs first.
_register: Callable[[Callable[[], None]], object] = getattr(
    threading, "_register_atexit", atexit.register
)
_register(_begin_closes)
