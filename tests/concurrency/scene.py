"""Forced interleavings: stop one action at a named step, and see what another does.

A `Scene` is a cache that is watched from outside: at the host's callbacks, at its calls of
the operating system, and where its threads take a lock. These are the steps of an action,
and a `StepGate` stops the first thread that comes to one of them. A step is named by the
callback or the call, or by the how-manieth lock after that: ``os.rename``, ``os.rename + 1``.
A test finds the steps of an action by running it once, so that no change of the code moves
them. No thread is stopped while it has a lock that guards memory alone.
"""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from concurrency.gates import StepGate
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Harness,
    Worker,
    fail_with,
    noise,
    samples_of,
)
from support.helpers import wait_until
from support.ledger import total_bytes
from support.locks import watched_locks
from support.threads import is_waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from support.locks import WatchedLock

    from bbcache import Lsn, Tier
    from bbcache.host import TarballWriter

TAR_BYTES: Final = 600
RESULTS: Final = ("ok", "skip", "error")
_CALLBACKS: Final = {
    "manager": ("list", "get_attached_tenant_shard"),
    "tenant": ("list_timelines", "get_timeline"),
    "timeline": ("get_last_record_lsn", "wait_lsn", "send_basebackup_tarball"),
}
_CALLS: Final = (
    "open",
    "pread",
    "pwrite",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "scandir",
    "listdir",
)


@functools.cache
def _maker_of_the_file_lock() -> str:
    """The module whose lock is held where a file gets its name, found by looking."""
    held: list[str] = []
    rename = os.rename

    def look(*args: Any) -> None:
        held.extend(lock.maker for lock in locks if lock.is_mine)
        rename(*args)

    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", look)
        with watched_locks() as locks, Harness(Path(parent) / "cache") as harness:
            harness.prepared()
    (maker,) = held
    return maker


class Scene:
    """A cache with one timeline, whose steps are watched.

    Each build has other bytes, even at one LSN, so that none passes for another.

    Attributes:
        harness: the cache.
        timeline: its timeline, with the tip at `LSN_A`.
        threads: those of the cache that is watched.
        trace: the steps that were passed since `begin`, in order.
        sent: the tarballs that the host has written, by LSN.
        got: LSN and tarball of every hit.
        most_bytes: the most that counted against the limit at any step.
        is_closing: whether a close has been asked for.
    """

    def __init__(
        self,
        data_dir: Path,
        tar_bytes: int = TAR_BYTES,
        stored: Tier | None = None,
        **settings: Any,
    ) -> None:
        self.harness = Harness(
            data_dir, **{"verify_reads": "always", "prepare_concurrency": 2, **settings}
        )
        self.harness.tier = stored
        self.timeline = self.harness.timeline(LSN_A)
        self.timeline.on_send = self._send
        self._tar_bytes = tar_bytes
        self.trace: list[str] = []
        self.sent: dict[Lsn, list[bytes]] = {}
        self.got: list[tuple[Lsn, bytes]] = []
        self.most_bytes = 0
        self.is_closing = False
        self._asked: Counter[bool] = Counter()  # whether a close had begun, or not
        self._is_watched = False
        self._patches = pytest.MonkeyPatch()
        self._passes: Counter[str] = Counter()
        self._lock = threading.Lock()  # guards trace, most_bytes and _passes
        self._thread = threading.local()  # the last step that is no lock, and the locks since
        self._gate: StepGate | None = None
        self._file_lock_maker = _maker_of_the_file_lock()
        with watched_locks(self._pass_by_lock) as self.locks:
            self.harness.open()
        self.threads = list(self.harness.threads)

    def close(self) -> None:
        """Close every cache that was opened."""
        self._patches.undo()
        self.harness.__exit__(None, None, None)

    @property
    def tip(self) -> Lsn:
        """The LSN that is worth preparing."""
        return self.timeline.get_last_record_lsn()

    @property
    def is_in_change(self) -> bool:
        """Whether a thread is in the middle of a change of files."""
        return any(lock.is_held for lock in self.locks if self._orders_files(lock))

    def begin(self, state: str) -> None:
        """Bring the timeline into a state, and watch every step from then on."""
        STATES[state](self)
        parts = {
            "manager": self.harness.host,
            "tenant": self.harness.tenant,
            "timeline": self.timeline,
        }
        for part, names in _CALLBACKS.items():
            for name in names:
                self._watch(parts[part], name, f"{part}.{name}")
        for name in _CALLS:
            self._watch(os, name, f"os.{name}")
        self._registry = self.harness.registry
        self._ended_before = self.ended_count
        self._quarantined_before = self._quarantined_count
        self._is_watched = True

    @property
    def steps(self) -> list[str]:
        """The steps that were passed, each once, in order."""
        return list(dict.fromkeys(self.trace))

    def restart(self) -> None:
        """Forget the steps that were passed."""
        self.trace.clear()
        self._passes.clear()
        self._thread = threading.local()

    def stop_at(self, step: str) -> StepGate:
        """Stop the next thread that comes to `step`."""
        self._gate = StepGate(step)
        return self._gate

    def comes(self, gate: StepGate, worker: Worker) -> bool:
        """Whether a thread has been stopped; False where the action has ended without that."""
        wait_until(lambda: gate.has_stopped or (not worker.is_alive() and self._is_quiet()))
        with self._lock:
            is_met = self._gate is None
            self._gate = None  # so that it does not stop the other action instead
        if is_met:
            gate.wait()
        return is_met

    @property
    def ended_count(self) -> int:
        """How many prepares have ended."""
        return sum(prepare_results(self._registry).values())

    def ask(self, lsn: Lsn) -> None:
        """Ask for a prepare."""
        self.harness.send(self.timeline, lsn)
        with self._lock:
            self._asked[self.is_closing] += self._is_watched

    def check_counts(self) -> None:
        """Every prepare and rebuild that was asked for while watched has ended, and counts once.

        A prepare that was asked for beside a close may have been refused instead.
        """
        rebuilds = self._quarantined_count - self._quarantined_before
        ended = self.ended_count - self._ended_before - rebuilds
        assert self._asked[False] <= ended <= self._asked.total()

    def run_beside(self, gate: StepGate, action: Callable[[Scene], None]) -> Worker:
        """Run an action to its end, or to where it must wait for the thread that was stopped.

        That is at a lock, and, where a thread of the pool is stopped: in the queue, since a
        timeline has one prepare at a time, and in a close. A second close waits for the first.
        """
        was_closing = self.is_closing
        queued = "pageserver_basebackup_cache_prepare_queue_size"

        def must_wait() -> bool:
            return (
                any(lock.waiting for lock in self.locks)
                or ((gate.is_in_pool or was_closing) and is_waiting(worker, "close"))
                or (gate.is_in_pool and samples_of(self._registry, queued)[queued] > 0)
            )

        worker = Worker(action, self)
        wait_until(lambda: not worker.is_alive() or must_wait())
        return worker

    @property
    def is_file_lock_wanted(self) -> bool:
        """Whether a thread waits for the lock that orders changes of files."""
        return any(lock.waiting for lock in self.locks if self._orders_files(lock))

    @property
    def _quarantined_count(self) -> int:
        name = "bbcache_quarantined_total"
        return int(samples_of(self._registry, name)[name])

    def _is_quiet(self) -> bool:
        return self.is_closing or self.harness.cache.wait_idle(0)

    def _orders_files(self, lock: WatchedLock) -> bool:
        return lock.maker == self._file_lock_maker

    def _watch(self, owner: object, name: str, step: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        def passed(*args: object, **kwargs: object) -> object:
            frame = inspect.currentframe()
            caller = frame.f_back if frame is not None else None
            if caller is not None and caller.f_globals["__name__"].startswith("bbcache."):
                self.pass_by(step)
            return original(*args, **kwargs)

        self._patches.setattr(owner, name, passed)

    def _pass_by_lock(self, lock: WatchedLock) -> None:
        if not self._is_watched or not lock.maker.startswith("bbcache."):
            return
        if not _is_of_interest() or getattr(self._thread, "is_looking", False):
            return
        if threading.current_thread() in self.threads and not hasattr(self._thread, "step"):
            return  # a worker without work, which looks for some now and then
        if any(each.is_mine and not self._orders_files(each) for each in self.locks):
            return  # in the middle of one change of memory
        self._thread.locks = getattr(self._thread, "locks", 0) + 1
        step = getattr(self._thread, "step", "start")
        self._stop_at(f"{step} + {self._thread.locks}")

    def pass_by(self, step: str) -> None:
        """Pass a step, and stop there if a gate says so."""
        if self._is_watched and _is_of_interest():
            with self._lock:
                self._passes[step] += 1
                number = self._passes[step]
            self._thread.is_looking = True  # at what takes a lock, which is no step
            self.most_bytes = max(self.most_bytes, total_bytes(self.harness.engine.index))
            self._thread.is_looking = False
            self._thread.step = step if number == 1 else f"{step} {number}"
            self._thread.locks = 0
            self._stop_at(self._thread.step)

    def _stop_at(self, step: str) -> None:
        with self._lock:
            self.trace.append(step)
            gate = self._gate if self._gate is not None and self._gate.step == step else None
            if gate is not None:
                self._gate = None
        if gate is not None:
            gate.stop()

    def _send(self, writer: TarballWriter, lsn: Lsn) -> None:
        sent = self.sent.setdefault(lsn, [])
        tar = noise(self._tar_bytes, int(lsn) + len(sent))
        sent.append(tar)
        half = len(tar) // 2
        writer.write(tar[:half])
        self.pass_by("host: half of the tarball")
        writer.write(tar[half:])


def _is_of_interest() -> bool:
    """Whether this thread runs an action, or is one of a cache: not the test that looks on."""
    return threading.current_thread() is not threading.main_thread()


def prepare(scene: Scene) -> None:
    """Prepare the timeline at its tip, and wait for the end of that."""
    before = scene.ended_count
    scene.ask(scene.tip)
    wait_until(lambda: scene.ended_count > before or scene.is_closing)


def refresh(scene: Scene) -> None:
    """Let the timeline go on to `LSN_B`, and prepare it there."""
    scene.timeline.advance(LSN_B)
    prepare(scene)


def get(scene: Scene) -> None:
    """Ask for the old LSN and for the tip; each file must have the bytes that were sealed."""
    for lsn in sorted({LSN_A, scene.tip}):
        tar = scene.harness.get(scene.timeline, lsn)
        if tar is not None:
            assert tar in scene.sent[lsn], "bytes that no prepare has sealed"
            scene.got.append((lsn, tar))


def clean_up(scene: Scene) -> None:
    """Run a clean-up step."""
    scene.harness.cache.run_cleanup()


def close(scene: Scene, timeout_s: float | None = DEADLINE_S) -> None:
    """Close the cache."""
    scene.is_closing = True
    scene.harness.cache.close(timeout_s)


def _empty(_scene: Scene) -> None:
    pass


def _held(scene: Scene) -> None:
    scene.harness.prepare(scene.timeline, LSN_A)


def _outgrown(scene: Scene) -> None:
    _held(scene)
    scene.timeline.advance(LSN_B)


def _damaged(scene: Scene) -> None:
    _held(scene)
    flip_bit(scene.harness.path(scene.timeline))


def _damaged_and_outgrown(scene: Scene) -> None:
    _damaged(scene)
    scene.timeline.advance(LSN_B)


def _vanished(scene: Scene) -> None:
    _held(scene)
    scene.harness.path(scene.timeline).unlink()


def _pending_unlinks(scene: Scene) -> None:
    _held(scene)
    timelines = scene.harness.tenant.timelines
    del timelines[scene.timeline.timeline_id]
    with pytest.MonkeyPatch.context() as patch:
        fail_with(patch, os, "unlink", PermissionError(13, "not permitted"))
        scene.harness.cache.run_cleanup()
    timelines[scene.timeline.timeline_id] = scene.timeline
    assert scene.harness.value("bbcache_unlink_failures_total") == 1


ACTIONS: Final = {
    "prepare": prepare,
    "refresh": refresh,
    "get": get,
    "clean-up": clean_up,
    "close": close,
}
STATES: Final = {
    "empty": _empty,
    "held": _held,
    "outgrown": _outgrown,
    "damaged": _damaged,
    "damaged and outgrown": _damaged_and_outgrown,
    "vanished": _vanished,
    "pending unlink": _pending_unlinks,
}


def prepare_results(registry: CollectorRegistry) -> dict[str, int]:
    """How many prepares ended ok, as a skip, and in an error."""
    name = "pageserver_basebackup_cache_prepare_total"
    values = samples_of(registry, name)
    return {result: int(values.get(f"{name}{{result={result}}}", 0)) for result in RESULTS}


def flip_bit(path: Path, offset: int = -20) -> None:
    """Damage the file of an entry by one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def files_in(data_dir: Path) -> dict[str, bytes]:
    """Names and bytes of all regular files below a cache directory, the lock file aside."""
    return {
        os.path.relpath(path, data_dir): path.read_bytes()
        for path in data_dir.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@contextmanager
def naming(step: str) -> Iterator[None]:
    """Add the step at which a thread was stopped to what goes wrong."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"stopped at: {step}")
        raise


def steps_of(make_scene: Callable[..., Scene], state: str, action: str) -> list[str]:
    """The steps of an action in a state, found by running it."""
    scene = make_scene(state)
    Worker(ACTIONS[action], scene).result()
    if action != "close":
        scene.harness.wait_idle()
    return scene.steps
