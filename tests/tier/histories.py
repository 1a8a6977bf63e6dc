"""Random histories of two nodes on one store: attach, stop, start, upload, delete, crash.

The store is a model in memory, or a real bucket, and can hold a node's requests back or break
them off. The nodes are real: a cache with an `ObjectTier` each. A tenant may be attached to both
nodes at once, and the one that it has left may still stop, start and upload.
"""

from __future__ import annotations

import contextlib
import gzip
import random
import shutil
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, Self

from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S

from bbcache import BasebackupCache, BasebackupCacheConfig, Lsn, TenantId, TenantShardId
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTimeline, make_tarball
from bbcache.tier import ObjectTier, TierConfig
from bbcache.tier.bucket import Download
from bbcache.tier.object_format import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import TimelineId
    from bbcache.tier.bucket import Bucket

_STEPS: Final = 14  # of a history


class CrashError(Exception):
    """The node has died in the middle of a request."""


class Store:
    """The objects, and what each node's requests wait for. Thread-safe.

    Attributes:
        objects: the bytes, by name.
        fetch_count: how many objects were read.
        written: the LSNs that were ever written, by timeline.
        wrong: what must not happen, and has.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fetch_count = 0
        self.written: dict[TimelineId, set[Lsn]] = {}
        self.wrong: list[str] = []
        self._lock = threading.Lock()  # guards the three

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        return self.objects.get(name)

    def put(self, name: str, data: bytes, *, overwrite: bool) -> bool:
        """Write an object."""
        address = Address.of_name(name)
        assert address is not None
        with self._lock:
            if not self._put(name, data, overwrite=overwrite):
                return False
            self.written.setdefault(address.timeline_id, set()).add(address.lsn)
            return True

    def delete(self, name: str) -> bool:
        """Remove an object; the newest one of a timeline must stay."""
        address = Address.of_name(name)
        assert address is not None
        with self._lock:
            if address.lsn >= max(self.written.get(address.timeline_id, {Lsn(0)})):
                self.wrong.append(f"{name} was removed, the newest object of its timeline")
            return self._delete(name)

    def _put(self, name: str, data: bytes, *, overwrite: bool) -> bool:
        if name in self.objects and not overwrite:
            return False
        self.objects[name] = data
        return True

    def _delete(self, name: str) -> bool:
        return self.objects.pop(name, None) is not None


class RealStore(Store):
    """The same, but the objects are in a bucket.

    Args:
        bucket: the bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self._bucket = bucket

    def read(self, name: str) -> bytes | None:
        """Read the object."""
        download = self._bucket.get(name)
        return None if download is None else b"".join(download.pieces)

    def _put(self, name: str, data: bytes, *, overwrite: bool) -> bool:
        return self._bucket.put(name, bytearray(data), overwrite=overwrite)

    def _delete(self, name: str) -> bool:
        return self._bucket.delete(name)


class NodeBucket:
    """The store as one node reaches it.

    Attributes:
        is_open: whether requests go through; else they wait.
        crash_before: the request before which the node dies: ``put``, ``delete`` or neither.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_open = threading.Event()
        self.is_open.set()
        self.crash_before = ""
        self.is_dead = False

    def get(self, name: str) -> Download | None:
        """Read an object."""
        data = self._store.read(name)
        if data is None:
            return None
        self._store.fetch_count += 1
        return Download(len(data), iter((data,)))

    def put(self, name: str, data: bytearray, *, overwrite: bool) -> bool:
        """Write an object, maybe late."""
        self._pass("put")
        return self._store.put(name, bytes(data), overwrite=overwrite)

    def delete(self, name: str) -> bool:
        """Remove an object, maybe late."""
        self._pass("delete")
        return self._store.delete(name)

    def list(self, _prefix: str) -> Iterator[tuple[str, int]]:
        """List nothing: a tier lists only to see that it may."""
        return iter(())

    def _pass(self, request: str) -> None:
        assert self.is_open.wait(DEADLINE_S)
        if self.is_dead or self.crash_before == request:
            raise CrashError


class Node:
    """One node: a cache with a tier, and the tenants that are attached there."""

    def __init__(self, directory: Path, store: Store, config: TierConfig) -> None:
        self.host = MemoryHost()
        self._directory = directory
        self._store = store
        self._config = config
        self.open()

    def open(self) -> None:
        """Start."""
        self.bucket = NodeBucket(self._store)
        self.tier = ObjectTier(self._config, CollectorRegistry(), self.bucket)
        settings = BasebackupCacheConfig(cleanup_period=3600.0, tier=self._config)
        self.cache = BasebackupCache.spawn(
            self._directory, settings, self.host, CollectorRegistry(), tier=self.tier
        )
        assert self.cache.wait_initialized(DEADLINE_S)

    def close(self) -> None:
        """Stop, whatever waits."""
        self.bucket.is_open.set()
        self.cache.close(DEADLINE_S)

    def crash(self, *, loses_disk: bool) -> None:
        """Die, with all uploads that wait, and start again."""
        self.bucket.is_dead = True
        self.close()
        if loses_disk:
            shutil.rmtree(self._directory)
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class History:
    """One timeline's life on two nodes.

    Attributes:
        counts: how often each step was made, and what the starts were.
    """

    def __init__(self, nodes: list[Node], store: Store, seed: int, counts: Counter[str]) -> None:
        self.counts = counts
        self._random = random.Random(seed)
        self._nodes = nodes
        self._store = store
        self._shard_id = TenantShardId(TenantId(self._random.randbytes(16)))
        self._timeline = MemoryTimeline(Lsn(0x1000))
        self._id = self._timeline.timeline_id
        self._lsn = Lsn(0x1000)  # the newest state of the timeline
        self._attached: dict[int, MemoryTimeline] = {}
        self._owner = 0

    def play(self) -> None:
        """Make random steps, then let all uploads end, and look at the store."""
        steps: list[tuple[int, Callable[[int], None]]] = [
            *((6, self.stop), (4, self.start), (3, self.attach), (1, self.detach)),
            *((2, self.hold), (2, self.release), (2, self.flush), (1, self.die_in_a_request)),
        ]
        weights, makers = zip(*steps, strict=True)
        self.attach(0)
        for _ in range(_STEPS):
            (make,) = self._random.choices(makers, weights)
            self.counts[make.__name__] += 1
            make(self._random.randrange(len(self._nodes)))
            self.check()
        for index in range(len(self._nodes)):
            self.flush(index)
        self.check()
        for index in range(len(self._nodes)):
            self.detach(index)

    def attach(self, index: int) -> None:
        """Attach the tenant at the timeline's newest state; the other node may not know yet."""
        timeline = MemoryTimeline(self._lsn, self._id)
        timeline.tarball = lambda lsn: make_tarball(self._id, lsn)
        tenant = MemoryTenant(self._shard_id)
        tenant.add(timeline)
        self._nodes[index].host.add(tenant)
        self._attached[index], self._owner = timeline, index
        if self._random.random() < 0.5:
            self._nodes[index].cache.send_warm(self._shard_id, self._id, self._lsn)

    def detach(self, index: int) -> None:
        """Detach the tenant, and drop its entry."""
        if self._attached.pop(index, None) is not None:
            self._nodes[index].host.tenants.pop(self._shard_id)
        self._nodes[index].cache.run_cleanup()

    def stop(self, index: int) -> None:
        """A compute node stops: the owner's timeline moves on, a stale node's does not."""
        timeline = self._attached.get(index)
        if timeline is None:
            return
        if index == self._owner:
            self._lsn += 0x100
            timeline.advance(self._lsn)
        cache = self._nodes[index].cache
        cache.send_prepare(self._shard_id, self._id, timeline.get_last_record_lsn())
        assert cache.wait_idle(DEADLINE_S)

    def start(self, index: int) -> None:
        """A compute node starts at the tip that the node knows, and gets the right bytes."""
        timeline = self._attached.get(index)
        if timeline is None:
            return
        lsn, cache = timeline.get_last_record_lsn(), self._nodes[index].cache
        with cache.get_or_prepare(self._shard_id, self._id, lsn, DEADLINE_S) as file:
            self.counts[f"start: {file.source}"] += 1
            if gzip.decompress(file.read()) != make_tarball(self._id, lsn):
                self._store.wrong.append(f"{self._id} at {lsn} was served with other bytes")

    def hold(self, index: int) -> None:
        """Let the node's uploads and deletions wait."""
        self._nodes[index].bucket.is_open.clear()

    def release(self, index: int) -> None:
        """Let them go through, late."""
        self._nodes[index].bucket.is_open.set()

    def flush(self, index: int) -> None:
        """Let all uploads end."""
        self.release(index)
        assert self._nodes[index].tier.wait_idle(DEADLINE_S)

    def die_in_a_request(self, index: int) -> None:
        """Die before a PUT, or between it and the deletion; sometimes lose the disk, too."""
        node = self._nodes[index]
        node.bucket.crash_before = self._random.choice(["put", "delete"])
        self.stop(index)
        node.bucket.is_open.set()
        assert node.tier.wait_idle(DEADLINE_S)
        node.crash(loses_disk=self._random.random() < 0.5)

    def check(self) -> None:
        """The newest object that was ever written is there."""
        with contextlib.suppress(ValueError):  # nothing was written yet
            newest = max(self._store.written.get(self._id, set()))
            name = Address("1", self._shard_id.tenant_id, self._id, newest).name
            if self._store.read(name) is None:
                self._store.wrong.append(f"{name} is not there")


def play_many(
    directory: Path, key_file: Path, seeds: range, store: Store | None = None
) -> tuple[Counter[str], Store]:
    """Play one history after the other on the same two nodes; returns counts and the store."""
    store, counts = store or Store(), Counter[str]()
    config = TierConfig(
        url="file:///a-model",
        key_files=(str(key_file),),
        fetch_timeout=DEADLINE_S,
        flush_timeout=0.001,
        fetch_concurrency=1,
    )
    with (
        Node(directory / "one", store, config) as one,
        Node(directory / "two", store, config) as two,
    ):
        for seed in seeds:
            History([one, two], store, seed, counts).play()
            counts["histories"] += 1
    return counts, store
