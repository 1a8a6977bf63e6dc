"""The processes of `test_process`: they fork, exit, are killed or signalled."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Harness,
    noise,
    put,
    run_child,
    samples,
)
from support.locks import watched_locks

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    FillError,
    TenantId,
    TenantShardId,
    TimelineId,
)
from bbcache.archive.writer import ArchiveWriter
from bbcache.storage import catalog as catalog_module
from bbcache.storage import dirlock as dirlock_module
from bbcache.storage.files import Store, TempFile
from bbcache.storage.index import Index
from bbcache.testing import MemoryHost, MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.locks import WatchedLock

    from bbcache import Lsn
    from bbcache.host import TarballWriter


TENANT: Final = TenantId(b"one tenant of 16")


TIMELINE: Final = TimelineId(b"a timeline of it")


def fixed_harness(data_dir: str, **settings: Any) -> tuple[Harness, MemoryTimeline]:
    """A cache, not opened, whose one timeline is the same in every process.

    Its archives are so large that they are written in more than one part.
    """
    harness = Harness(Path(data_dir), **settings)
    harness.host = MemoryHost()
    harness.tenant = harness.host.add_tenant(TenantShardId(TENANT))
    timeline = MemoryTimeline(LSN_A, TIMELINE)
    timeline.tarball = lambda at: noise(200_000, int(at))
    harness.tenant.timelines[TIMELINE] = timeline
    return harness, timeline


def say(text: str) -> None:
    """Tell the test something."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_for_the_test() -> None:
    """Wait until the test writes a line, or has ended."""
    sys.stdin.readline()


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns: there are threads
        return os.fork()


class _HeldLocks:
    """A thread that holds every lock of a cache, so that a fork copies them locked."""

    def __init__(self, locks: list[WatchedLock]) -> None:
        self._locks = locks
        self._let_go = threading.Event()
        self._has_all = threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        assert self._has_all.wait(DEADLINE_S)

    def _hold(self) -> None:
        for lock in self._locks:
            lock.acquire()
        self._has_all.set()
        self._let_go.wait(DEADLINE_S)
        for lock in self._locks:
            lock.release()

    def let_go(self) -> None:
        """Give all of them back."""
        self._let_go.set()
        self._thread.join()


def fork_while_locks_are_held(data_dir: str) -> None:
    """The child uses the cache in every way and exits as any program does."""
    harness, timeline = fixed_harness(data_dir)
    with watched_locks() as locks:
        harness.open()
        harness.prepare(timeline)
    assert {"archive", "prepare", "storage"} <= {lock.maker.split(".")[1] for lock in locks}
    assert harness.get(timeline) == timeline.tarball(LSN_A)
    before = samples(harness.registry)
    held = _HeldLocks(locks)
    pid = _fork()
    if pid == 0:
        _use_in_child(harness, timeline)
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
    held.let_go()
    assert (
        run_child("support.process_children:try_to_open", data_dir) == f"locked by {os.getpid()}\n"
    )
    assert samples(harness.registry) == before
    assert harness.get(timeline) == timeline.tarball(LSN_A)
    timeline.advance(LSN_B)
    harness.prepare(timeline, LSN_B)
    harness.check_accounting()
    harness.cache.close()
    assert run_child("support.process_children:try_to_open", data_dir) == "open\n"


def _use_in_child(harness: Harness, timeline: MemoryTimeline) -> None:
    signal.alarm(20)  # a lock that is wanted ends this process by its signal
    cache = harness.cache
    assert cache.get(TENANT, timeline.timeline_id, LSN_A) is None
    assert cache.entries() == []
    try:
        cache.get_or_prepare(harness.shard_of(timeline), timeline.timeline_id, LSN_A)
    except FillError as error:
        if "forked" not in str(error):
            raise
    else:
        raise AssertionError("a forked child has got an answer")
    assert cache.is_enabled
    harness.send(timeline, LSN_B)
    cache.send_prepare(None, None, None)  # type: ignore[arg-type]
    cache.run_cleanup()
    assert not cache.wait_idle()
    assert not cache.wait_initialized()
    cache.close()
    with cache:
        pass
    del harness.cache, cache
    gc.collect()
    own = Harness(harness.dir.parent / "childs-own")
    with own:  # a child may have a cache of its own
        own.prepared()
        own.check_accounting()


def fork_in_a_callback(data_dir: str, name: str, how: str) -> None:
    """A child is forked in a callback of the host and comes out of it; its parent goes on."""
    harness, timeline = fixed_harness(data_dir, prepare_concurrency=1)
    harness.open()
    harness.prepare(timeline)
    timeline.advance(LSN_B)
    (owner,) = [each for each in (harness.host, harness.tenant, timeline) if hasattr(each, name)]
    original = getattr(owner, name)
    codes: list[int] = []

    def forking(*args: Any) -> Any:
        result = original(*args)  # half of an archive, as far as the child is concerned
        if not codes:
            pid = _fork()
            if pid == 0:
                signal.alarm(20)  # one that does not end, but works for its parent, is ended
                _come_out(how)
                return result
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return result

    put(owner, name, forking)
    harness.prepare(timeline, LSN_B)
    harness.cache.run_cleanup()
    assert codes == [{"exit": 5, "raise": 1, "return": 0}[how]]
    assert harness.counts() == {"ok": 2}
    assert harness.get(timeline, LSN_B) == timeline.tarball(LSN_B)
    harness.check_accounting()
    harness.cache.close()


def _come_out(how: str) -> None:
    if how == "exit":
        sys.exit(5)
    if how == "raise":
        raise LookupError("in a child")


def try_to_open(data_dir: str) -> None:
    """Say whether the directory is free, or who holds it."""
    try:
        harness, _ = fixed_harness(data_dir)
        with harness:
            say("open")
    except DirectoryLockedError as error:
        say(f"locked by {error.pid}")


def open_together(data_dir: str) -> None:
    """Open when told, with others; say how it went and stay until the test ends."""
    harness, _ = fixed_harness(data_dir)
    say("ready")
    wait_for_the_test()
    try:
        harness.open()
    except DirectoryLockedError as error:
        say(f"locked by {error.pid}")
    else:
        say("open")
        with harness.opened:
            wait_for_the_test()


def leave_children_behind(data_dir: str) -> None:
    """Fork, and start a program with all descriptors; both outlive this process."""
    harness, _ = fixed_harness(data_dir)
    harness.open()
    program = subprocess.Popen(["cat"], close_fds=False, stdout=subprocess.DEVNULL)
    pid = _fork()
    if pid == 0:
        wait_for_the_test()
        os._exit(0)
    say(f"{pid} {program.pid}")
    threading.Event().wait()


def hold(data_dir: str) -> None:
    """Hold the directory until killed."""
    harness, timeline = fixed_harness(data_dir)
    harness.open()
    harness.prepare(timeline)
    say("open")
    threading.Event().wait()


def _write_slowly(writer: TarballWriter, _lsn: Lsn) -> None:
    while True:
        writer.write(noise(1000))
        threading.Event().wait(0.001)


def exit_without_close(data_dir: str, doing: str, how: str) -> None:
    """End while a prepare is under way, and nobody has closed the cache."""
    harness, _ = fixed_harness(data_dir, prepare_concurrency=2, cleanup_period=0.001)
    cache = BasebackupCache.spawn(
        harness.dir, BasebackupCacheConfig(**harness.settings), harness.host
    )
    shard_id = harness.tenant.tenant_shard_id
    cache.send_prepare(shard_id, TIMELINE, LSN_A)
    assert cache.wait_idle(DEADLINE_S)
    busy = threading.Event()
    other = harness.tenant.add_timeline(LSN_A)

    def wait(lsn: Lsn, timeout: float) -> None:
        busy.set()
        MemoryTimeline(LSN_A).wait_lsn(lsn, timeout)

    def write(writer: TarballWriter, lsn: Lsn) -> None:
        busy.set()
        _write_slowly(writer, lsn)

    if doing == "wait":
        other.on_wait = wait
    other.on_send = write
    cache.send_prepare(shard_id, other.timeline_id, LSN_B if doing == "wait" else LSN_A)
    assert busy.wait(DEADLINE_S)
    _end(how)


def _end(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    elif how == "raise":
        raise LookupError("the end")
    elif how == "interrupt":
        signal.raise_signal(signal.SIGINT)
    elif how == "terminate":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        signal.raise_signal(signal.SIGTERM)


def exit_while_the_start_fails(data_dir: str) -> None:
    """End while the directory cannot be listed."""

    def fail(_store: Store) -> NoReturn:
        raise OSError("cannot be listed")

    put(Store, "scan", fail)
    harness, _ = fixed_harness(data_dir)
    harness.open(wait=False)
    sys.exit(3)


def exit_after_dropping(data_dir: str) -> None:
    """End while a dropped cache closes in the background."""
    warnings.simplefilter("ignore", ResourceWarning)
    harness, timeline = fixed_harness(data_dir)
    harness.open()
    timeline.on_send = _write_slowly
    harness.send(timeline)
    harness.opened.pop_all()
    del harness.cache
    gc.collect()


def _die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _die_around(owner: Any, name: str, when: str, number: int = 1) -> Callable[[], None]:
    """Patch a function to kill this process before or after its call of this number."""

    def patch() -> None:
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def dying(*args: Any, **kwargs: Any) -> Any:
            is_it = next(calls) == number
            if is_it and when == "before":
                _die()
            result = original(*args, **kwargs)
            if is_it:
                _die()
            return result

        setattr(owner, name, dying)

    return patch


DEATHS: Final = {
    f"{when}_{name}{number}": _die_around(owner, name, when, number)
    for owner, name, number in (
        (Store, "create_temp", 1),
        (TempFile, "append", 1),
        (TempFile, "append", 2),
        (ArchiveWriter, "write", 1),
        (TempFile, "patch", 1),
        (TempFile, "sync", 1),
        (Store, "rename_temp", 1),
        (Index, "commit", 1),
        (catalog_module, "try_unlink", 1),
    )
    for when in ("before", "after")
}


def die_in_a_refresh(data_dir: str, death: str) -> None:
    """Publish one basebackup, then be killed at one step of its refresh."""
    harness, timeline = fixed_harness(data_dir)
    harness.open()
    harness.prepare(timeline)
    timeline.advance(LSN_B)
    DEATHS[death]()
    harness.prepare(timeline, LSN_B)
    raise AssertionError("still alive")


LATER_DEATHS: Final = {
    f"{when}_{name}": _die_around(owner, name, when)
    for owner, name in (
        (dirlock_module, "_write_holder"),
        (Store, "make_directories"),
        (Store, "sweep_tmp"),
        (Store, "scan"),
        (catalog_module, "try_unlink"),
        (Store, "quarantine"),
        (Index, "doom"),
    )
    for when in ("before", "after")
}


def die_at_the_start_or_in_a_read(data_dir: str, death: str) -> None:
    """Be killed in a start that has something to sweep, or when a bad entry is taken out."""
    harness, timeline = fixed_harness(data_dir)
    LATER_DEATHS[death]()
    harness.open()
    timeline.advance(LSN_B + 1)
    harness.get(timeline, LSN_B)
    raise AssertionError("still alive")
