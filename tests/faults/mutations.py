"""Caches that break a promise on purpose, so that the harness can show that it finds out.

Each is a change to the cache's own code, done in a fork before its life begins.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from bbcache.errors import StoreError
from bbcache.prepare.builder import Builder
from bbcache.storage import catalog
from bbcache.storage.catalog import Catalog
from bbcache.storage.dirlock import DirectoryLock
from bbcache.storage.files import Store, TempFile
from bbcache.storage.index import Entry, Index
from bbcache.storage.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.prepare.job import Job


def _replace(owner: object, name: str, function: object) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, function)


def _drop_sync() -> None:
    _replace(TempFile, "sync", lambda _: None)


def _drop_patch() -> None:
    _replace(TempFile, "patch", lambda *_: None)


def _drop_close() -> None:
    _replace(TempFile, "close", lambda _: None)


def _sync_before_patch() -> None:
    sync, patch = TempFile.sync, TempFile.patch

    def sync_and_patch(temp: TempFile, data: bytes) -> None:
        sync(temp)
        patch(temp, data)

    _replace(TempFile, "patch", sync_and_patch)
    _drop_sync()


def _sync_after_rename() -> None:
    rename = Store.rename_temp

    def rename_and_sync(store: Store, temp: TempFile, key: bytes, lsn: int) -> None:
        rename(store, temp, key, lsn)
        fd = os.open(store.path_of(key, lsn), os.O_RDWR)
        os.fsync(fd)
        os.close(fd)

    _replace(Store, "rename_temp", rename_and_sync)
    _drop_sync()


def _write_after(name: str) -> None:
    step = getattr(TempFile, name)

    def then_write(temp: TempFile, *args: bytes) -> None:
        step(temp, *args)
        fd = os.open(temp.path, os.O_RDWR)
        last = os.fstat(fd).st_size - 1
        os.lseek(fd, last, os.SEEK_SET)
        byte = os.pread(fd, 1, last)
        os.write(fd, byte)
        os.close(fd)

    _replace(TempFile, name, then_write)


def _reuse_temp() -> None:
    """Create without O_EXCL."""
    real_open = os.open

    def open_any(path: str, flags: int, *args: int) -> int:
        is_temp = "/tmp/" in str(path)  # noqa: S108 - the cache's own folder of that name
        return real_open(path, flags & ~os.O_EXCL if is_temp else flags, *args)

    _replace(os, "open", open_any)


def _raise_from_get() -> None:
    def failed(_reader: Reader, _entry: object, error: Exception) -> None:
        raise error

    _replace(Reader, "_failed", failed)


def _fail_with_the_disk() -> None:
    def fail(_builder: Builder, job: Job, _timeline: object) -> None:
        # A new error: after that of the job, callers would ask again.
        raise StoreError(str(job.disk_failure))

    _replace(Builder, "_build_aside", fail)


def _count_too_many() -> None:
    load = Index.load

    def load_and_miscount(index: Index, entries: dict[bytes, Entry]) -> None:
        load(index, entries)
        index.accounting.entry_count += 1

    _replace(Index, "load", load_and_miscount)


# Steps of a publish dropped or moved: for `sync_order`.
ORDER: Final[dict[str, Callable[[], None]]] = {
    "no fsync": _drop_sync,
    "no patch": _drop_patch,
    "no close": _drop_close,
    "fsync before the patch": _sync_before_patch,
    "fsync after the rename": _sync_after_rename,
    "a write after the patch": lambda: _write_after("patch"),
    "a write after the fsync": lambda: _write_after("sync"),
    "a temporary file that may be somebody's": _reuse_temp,
}
# What a life, or the start after it, must notice.
PROMISES: Final[dict[str, Callable[[], None]]] = {
    "serves what it has not checked": lambda: _replace(Reader, "_check", lambda *_: None),
    "raises from get": _raise_from_get,
    "hangs": lambda: _replace(Catalog, "publish", lambda *_: threading.Event().wait()),
    "crashes": lambda: _replace(Catalog, "upkeep", lambda _: os.kill(os.getpid(), signal.SIGSEGV)),
    "leaves temporary files": lambda: _replace(Store, "sweep_tmp", lambda _: {}),
    "leaves replaced files": lambda: _replace(Catalog, "_remove_locked", lambda *_: None),
    "says gone what is there": lambda: _replace(catalog, "try_unlink", lambda _: None),
    "counts too many": _count_too_many,
    "keeps its lock": lambda: _replace(DirectoryLock, "release", lambda _: None),
}
# What a life must notice when the disk fails.
UNDER_FAULTS: Final[dict[str, Callable[[], None]]] = {"does not fall back": _fail_with_the_disk}
ALL: Final = {**ORDER, **PROMISES, **UNDER_FAULTS}
