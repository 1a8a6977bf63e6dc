"""Forced interleavings: stop one action at a named step, and see what another does.

A `Scene` is a cache whose *seams* are watched: the calls between its parts, the host's
callbacks, and the taking of the catalog's file lock. The seams that an action passes are its
steps, and a `StepGate` stops the first thread that comes to one of them. No step is inside
the index's lock: what is done there is one change of memory.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from concurrency.gates import Step, StepGate, WatchedLock, watch_waits
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Harness, Worker, fail_with, noise
from support.helpers import wait_until

import bbcache.storage.catalog
from bbcache.storage.files import TempFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.prepare.request import Request

TAR_BYTES: Final = 600
RESULTS: Final = ("ok", "skip", "error")
SEAMS: Final = (
    "manager.list tenant.list_timelines",
    "timeline.get_last_record_lsn timeline.wait_lsn timeline.send_basebackup_tarball",
    "queue.put queue.done queue.close",
    "index.find index.by_key index.reserve index.commit index.remove",
    "index.doom index.settle_doomed index.move_to_quarantine",
    "store.create_temp store.open store.rename_temp store.quarantine",
    "temp.patch temp.sync",
    "disk.unlink",
    "reader._check",
    "engine.begin_close engine._join preparer.stop dirlock.release",
)


class Scene:
    """A cache with one timeline, whose steps are watched.

    Each build has other bytes, even at one LSN, so that none passes for another.

    Attributes:
        harness: the cache.
        timeline: its timeline, with the tip at `LSN_A`.
        trace: the steps that were passed since `begin`, in order.
        sent: the tarballs that the host has written, by LSN.
        got: LSN and tarball of every hit.
        most_bytes: the most that counted against the limit at any step.
    """

    def __init__(
        self,
        data_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
        tar_bytes: int = TAR_BYTES,
        **settings: Any,
    ) -> None:
        self.harness = Harness(
            data_dir, **{"verify_reads": "always", "prepare_concurrency": 2, **settings}
        )
        self.monkeypatch = monkeypatch
        self.timeline = self.harness.timeline(LSN_A)
        self.timeline.on_send = self._send
        self._tar_bytes = tar_bytes
        self.trace: list[Step] = []
        self.sent: dict[Lsn, list[bytes]] = {}
        self.got: list[tuple[Lsn, bytes]] = []
        self.most_bytes = 0
        self.engine: Any = None  # of the life of the cache that is watched
        self._settled: list[Request] = []
        self._passes: Counter[str] = Counter()
        self._lock = threading.Lock()  # guards trace, most_bytes and _passes
        self._gate: StepGate | None = None
        self.harness.open()

    def close(self) -> None:
        """Close every cache that was opened."""
        self.harness.__exit__(None, None, None)

    @property
    def tip(self) -> Lsn:
        """The LSN that is worth preparing."""
        return self.timeline._lsn

    def begin(self, state: str) -> None:
        """Bring the timeline into a state, and watch every seam from then on."""
        STATES[state](self)
        self.engine = engine = self.harness.engine
        self.file_lock = WatchedLock(lambda taker: self._pass_by(f"{taker}: file lock"))
        engine._catalog._file_lock = self.file_lock
        for line in SEAMS:
            for seam in line.split():
                self._watch(seam)
        self._waiting_for_close = watch_waits(self.monkeypatch, engine._changed)
        self._registry = self.harness.registry
        self._ended_before = sum(prepare_results(self._registry).values())
        settle = engine._preparer.settle

        def settled(request: Request, count: Callable[[], None]) -> None:
            settle(request, count)
            self._settled.append(request)

        self.monkeypatch.setattr(engine._preparer, "settle", settled)

    def stop_at(self, step: str) -> StepGate:
        """Stop the next thread that comes to `step`."""
        self._gate = StepGate(Step.parse(step))
        return self._gate

    def has_ended(self, lsn: Lsn) -> bool:
        """Whether a prepare that was asked for at `lsn` has ended."""
        return any(each.lsn == lsn and not each.is_rebuild for each in self._settled)

    def check_counts(self) -> None:
        """Every prepare that was queued while watched has ended, and counts once."""
        asked = sum(step.seam == "queue.put" for step in self.trace)
        ended = sum(prepare_results(self._registry).values()) - self._ended_before
        assert ended == asked

    def run_beside(self, gate: StepGate, action: Callable[[Scene], None]) -> Worker:
        """Run an action to its end, or to where it must wait for whom the gate has stopped.

        That is at the file lock, and, where a thread of the pool is stopped: in the queue,
        since a timeline has one prepare at a time, and in the join of a close. A second close
        waits for the first.
        """

        def must_wait() -> bool:
            is_joining = any(step.seam == "engine._join" for step in self.trace)
            is_queued = len(self.engine._queue) > 0
            return (
                bool(self.file_lock.waiting)
                or self._waiting_for_close.is_set()
                or (gate.is_in_pool and (is_joining or is_queued))
            )

        worker = Worker(action, self)
        wait_until(lambda: not worker.is_alive() or must_wait())
        return worker

    def _parts(self) -> Mapping[str, object]:
        engine = self.engine
        return {
            "manager": self.harness.host,
            "tenant": self.harness.tenant,
            "timeline": self.timeline,
            "queue": engine._queue,
            "index": engine.index,
            "store": engine.store,
            "temp": TempFile,
            "disk": bbcache.storage.catalog,
            "reader": engine.reader,
            "engine": engine,
            "preparer": engine._preparer,
            "dirlock": engine._dirlock,
        }

    def _watch(self, seam: str) -> None:
        part, _, name = seam.partition(".")
        owner = self._parts()[part]
        original: Callable[..., object] = getattr(owner, name)

        def passed(*args: object, **kwargs: object) -> object:
            self._pass_by(seam)
            return original(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, passed)

    def _pass_by(self, seam: str) -> None:
        index = self.engine.index
        if index._lock._is_owned():
            return  # in the middle of one change of memory
        with self._lock:
            self._passes[seam] += 1
            step = Step(seam, self._passes[seam])
            self.trace.append(step)
            self.most_bytes = max(self.most_bytes, index.total_size_bytes)
            gate = self._gate if self._gate is not None and self._gate.step == step else None
        if gate is not None:
            gate.stop()

    def _send(self, writer: TarballWriter, lsn: Lsn) -> None:
        sent = self.sent.setdefault(lsn, [])
        tar = noise(self._tar_bytes, int(lsn) + len(sent))
        sent.append(tar)
        half = len(tar) // 2
        writer.write(tar[:half])
        if self.engine is not None:
            self._pass_by("host: half of the tarball")
        writer.write(tar[half:])


def prepare(scene: Scene) -> None:
    """Prepare the timeline at its tip, and wait for the end of that."""
    lsn = scene.tip
    scene.harness.send(scene.timeline, lsn)
    wait_until(lambda: scene.has_ended(lsn) or not scene.engine.is_serving)


def refresh(scene: Scene) -> None:
    """Let the timeline go on to `LSN_B`, and prepare it there."""
    scene.timeline.advance(LSN_B)
    prepare(scene)


def get(scene: Scene) -> None:
    """Ask for the old LSN and for the tip; what comes must be what was sealed."""
    for lsn in sorted({LSN_A, scene.tip}):
        tar = scene.harness.get(scene.timeline, lsn)
        if tar is not None:
            assert tar in scene.sent[lsn], "bytes that no prepare has sealed"
            scene.got.append((lsn, tar))


def clean_up(scene: Scene) -> None:
    """Run a clean-up step."""
    scene.harness.cache.run_cleanup()


def close(scene: Scene) -> None:
    """Close the cache."""
    scene.harness.cache.close(DEADLINE_S)


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
        fail_with(patch, bbcache.storage.catalog, "unlink", PermissionError(13, "not permitted"))
        scene.harness.cache.run_cleanup()
    timelines[scene.timeline.timeline_id] = scene.timeline
    assert scene.harness.engine._catalog._pending_unlinks


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
    values = {result: registry.get_sample_value(name, {"result": result}) for result in RESULTS}
    return {result: int(value or 0) for result, value in values.items()}


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
