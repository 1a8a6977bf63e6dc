"""What the tests of the whole cache share: a harness around one cache, and gates for races.

Imported by the processes that tests start too, so it does without pytest at run time.
"""

from __future__ import annotations

import functools
import gzip
import os
import random
import re
import stat
import subprocess
import sys
import tarfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from prometheus_client import CollectorRegistry
from support.ledger import total_bytes

from bbcache import BasebackupCache, BasebackupCacheConfig, Lsn, TenantShardId
from bbcache.archive.format import pack_header
from bbcache.archive.writer import ArchiveWriter
from bbcache.storage.index import make_key
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTimeline, make_tarball

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import pytest
    from support.warm_python import WarmChild

    from bbcache import BasebackupFile, Tier
    from bbcache.host import TarballWriter

DEADLINE_S: Final = 60.0
CHILD_DEADLINE_S: Final = 90.0  # a whole process, on a machine that has other things to do
MIB: Final = 1 << 20
LSN_A, LSN_B, LSN_C = Lsn(0x1000), Lsn(0x2000), Lsn(0x3000)
ENTRY_NAME: Final = re.compile(r"basebackup_[0-9a-f]{32}_[0-9a-f]{32}_[0-9A-F]{16}\.tar\.gz")
TESTS_DIR: Final = Path(__file__).parents[1]


class Gate:
    """Stops each thread that passes until it is opened, at the latest when its block ends."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._is_open = threading.Event()

    def __call__(self, *_: object) -> None:
        """Stop here."""
        self._arrived.release()
        assert self._is_open.wait(DEADLINE_S), "the gate was never opened"

    def wait_for(self, count: int = 1) -> None:
        """Wait until `count` more have arrived."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=DEADLINE_S), "nobody came to the gate"

    def has_arrived(self, timeout_s: float) -> bool:
        """Whether one more arrives in `timeout_s` seconds."""
        return self._arrived.acquire(timeout=timeout_s)

    def open(self) -> None:
        """Let everyone pass, now and later."""
        self._is_open.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


def stop_before(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, gate: Callable[[], object]
) -> None:
    """Make a function of the cache's parts stop at `gate` before it does its work."""
    original: Callable[..., object] = getattr(owner, name)

    def stopped(*args: object, **kwargs: object) -> object:
        gate()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopped)


def fail_with(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    error: BaseException,
    times: int = 1 << 30,
) -> None:
    """Make a function of the cache's parts raise `error` the first `times` times."""
    original: Callable[..., object] = getattr(owner, name)
    left = iter(range(times))

    def failing(*args: object, **kwargs: object) -> object:
        if next(left, None) is not None:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def put(owner: object, name: str, function: Callable[..., object]) -> None:
    """Put a function of the test's own in the place of a method, for one object or class."""
    setattr(owner, name, function)


class Worker(threading.Thread):
    """A thread whose result or failure `result` hands over."""

    def __init__(self, target: Callable[..., object], *args: object) -> None:
        super().__init__(name="test-worker", daemon=True)
        self._call = functools.partial(target, *args)
        self._outcome: tuple[object, BaseException | None] = (None, None)
        self.start()

    def run(self) -> None:
        """Call the target."""
        try:
            self._outcome = (self._call(), None)
        except BaseException as error:  # noqa: BLE001 - handed over by result()
            self._outcome = (None, error)

    def result(self) -> object:
        """Wait for the end; raises what the target raised."""
        self.join(DEADLINE_S)
        assert not self.is_alive(), "a thread hangs"
        value, error = self._outcome
        if error is not None:
            raise error
        return value


class Harness:
    """A cache on one directory, and a host in memory with one tenant.

    A context manager: entering opens the cache, leaving closes it.

    Attributes:
        opened: closes every cache that was opened.
        threads: those that the newest cache has started.
        tier: given to the caches that are opened.
    """

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.dir = data_dir
        self.host = MemoryHost()
        self.tenant = self.host.add_tenant()
        self.settings: dict[str, Any] = {
            "cleanup_period": 3600.0,
            "min_free_disk_bytes": 0,  # whatever the machine has
            **settings,
        }
        self.opened = ExitStack()
        self.threads: list[threading.Thread] = []
        self.tier: Tier | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.opened.close()

    def open(self, *, wait: bool = True, **settings: Any) -> None:
        """Start a cache, with a registry of its own."""
        self.settings.update(settings)
        self.registry = CollectorRegistry()
        self.config = BasebackupCacheConfig(**self.settings)
        before = set(threading.enumerate())
        self.cache = BasebackupCache.spawn(
            self.dir, self.config, self.host, self.registry, tier=self.tier
        )
        self.threads = [
            thread
            for thread in threading.enumerate()
            if thread not in before and thread.name.startswith("bbcache-")
        ]
        self.opened.callback(self.cache.close, DEADLINE_S)
        if wait:
            assert self.cache.wait_initialized(DEADLINE_S)

    def reopen(self, **settings: Any) -> None:
        """Close the cache and start another on the same directory."""
        self.cache.close(DEADLINE_S)
        self.open(**settings)

    @property
    def engine(self) -> Any:
        """The parts of the cache, for the seams at which races are forced."""
        return self.cache._engine

    def living(self, kind: str = "prepare") -> list[threading.Thread]:
        """The living threads of the cache: its workers, or that of its clean-up."""
        name = f"bbcache-{kind}"
        return [t for t in self.threads if t.name.startswith(name) and t.is_alive()]

    def timeline(self, lsn: Lsn = LSN_A, tenant: MemoryTenant | None = None) -> MemoryTimeline:
        """A new timeline with its tip at `lsn`."""
        return (tenant or self.tenant).add_timeline(lsn)

    def shard_of(self, timeline: MemoryTimeline) -> TenantShardId:
        """The shard that has the timeline."""
        for shard_id, tenant in self.host.tenants.items():
            if tenant is not None and timeline.timeline_id in tenant.timelines:
                return shard_id
        return self.tenant.tenant_shard_id

    def send(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> None:
        """Ask for a prepare."""
        self.cache.send_prepare(self.shard_of(timeline), timeline.timeline_id, lsn)

    def wait_idle(self) -> None:
        """Wait until nothing is under way."""
        assert self.cache.wait_idle(DEADLINE_S)

    def prepare(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> None:
        """Ask for a prepare and wait until it has ended."""
        self.send(timeline, lsn)
        self.wait_idle()

    def prepared(self, lsn: Lsn = LSN_A, size_bytes: int | None = None) -> MemoryTimeline:
        """A new timeline with an entry at `lsn`; of incompressible bytes if a size is given."""
        timeline = self.timeline(lsn)
        if size_bytes is not None:
            timeline.tarball = lambda at: noise(size_bytes, int(at))
        self.prepare(timeline, lsn)
        assert self.holds(timeline, lsn)
        return timeline

    def open_file(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> BasebackupFile | None:
        """What `BasebackupCache.get` returns."""
        return self.cache.get(self.shard_of(timeline).tenant_id, timeline.timeline_id, lsn)

    def get_archive(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> bytes | None:
        """The bytes of the archive that the cache has; None for a miss or an error."""
        file = self.open_file(timeline, lsn)
        if file is None:
            return None
        with file:
            return file.read()

    def get(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> bytes | None:
        """The tarball that the cache has, decompressed; None for a miss or an error."""
        archive = self.get_archive(timeline, lsn)
        return None if archive is None else gzip.decompress(archive)

    def holds(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> bool:
        """Whether `entries` has the timeline at `lsn`."""
        return any(
            (entry.timeline_id, entry.lsn) == (timeline.timeline_id, lsn)
            for entry in self.cache.entries()
        )

    def path(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> Path:
        """Where the entry's file belongs."""
        tenant_id = self.shard_of(timeline).tenant_id
        return self.dir / f"basebackup_{tenant_id}_{timeline.timeline_id}_{lsn:016X}.tar.gz"

    def seed(
        self, timeline: MemoryTimeline, lsn: Lsn = LSN_A, content: bytes | None = None
    ) -> Path:
        """Put a file under the entry's name by hand; a good archive unless content is given."""
        path = self.path(timeline, lsn)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(self.sealed(timeline, lsn) if content is None else content)
        return path

    def sealed(self, timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> bytes:
        """The archive that the cache would publish."""
        key = make_key(self.shard_of(timeline).tenant_id, timeline.timeline_id)
        pieces: list[bytes] = []
        writer = ArchiveWriter(pieces.append, 2)
        writer.write(timeline.tarball(lsn))
        header = pack_header(writer.finish(), key, lsn)
        return header + b"".join(pieces)[len(header) :]

    def value(self, name: str) -> float:
        """A sample such as ``bbcache_nonentry_bytes``; a label is written ``{name=value}``."""
        return samples_of(self.registry, name.partition("{")[0])[name]

    def counts(self, metric: str = "pageserver_basebackup_cache_prepare_total") -> dict[str, int]:
        """The values of a metric with one label that are not 0, by the label."""
        found = {}
        for name, value in samples_of(self.registry, metric).items():
            if value:
                found[name.partition("=")[2][:-1]] = int(value)
        return found

    @property
    def reads(self) -> dict[str, int]:
        """How many `get` were hit, miss or error."""
        return self.counts("pageserver_basebackup_cache_read_total")

    @property
    def skips(self) -> dict[str, int]:
        """How many prepares were skipped, by reason."""
        return self.counts("bbcache_prepare_skips_total")

    @property
    def nonentry_bytes(self) -> float:
        """The gauge of files that are no entries, less the file of saved habits."""
        habits = self.dir / ".bbcache.habits"
        saved_bytes = habits.stat().st_size if habits.exists() else 0
        return self.value("bbcache_nonentry_bytes") - saved_bytes

    def temp_files(self) -> list[str]:
        """Names in ``tmp/``."""
        return sorted(os.listdir(self.dir / "tmp"))

    def quarantined(self) -> list[str]:
        """Names in ``quarantine/``, oldest first."""
        return sorted(os.listdir(self.dir / "quarantine"))

    def entry_files(self) -> list[str]:
        """Names of the entry files on disk."""
        return sorted(name for name in os.listdir(self.dir) if ENTRY_NAME.fullmatch(name))

    def check_accounting(self) -> None:
        """Gauges, `entries` and the disk agree, as they must whenever the cache is idle."""
        sizes = {name: (self.dir / name).lstat().st_size for name in self.entry_files()}
        listed = {
            f"basebackup_{e.tenant_id}_{e.timeline_id}_{e.lsn:016X}.tar.gz": e.size_bytes
            for e in self.cache.entries()
        }
        assert listed == sizes
        assert self.value("pageserver_basebackup_cache_entries_total") == len(sizes)
        assert self.value("pageserver_basebackup_cache_size_bytes") == sum(sizes.values())
        assert self.temp_files() == []
        nonentry_bytes = self.value("bbcache_nonentry_bytes")
        assert nonentry_bytes == disk_bytes(self.dir) - sum(sizes.values())
        assert total_bytes(self.engine.index) == disk_bytes(self.dir)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample of a registry, such as ``{"name{label=value}": 1.0}``."""
    return {
        sample.name + "".join(f"{{{name}={text}}}" for name, text in sample.labels.items()): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def samples_of(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """The samples of one metric, without the cost of all others."""
    one = cast("CollectorRegistry", registry.restricted_registry([name]))
    return samples(one)


def disk_bytes(data_dir: Path) -> int:
    """Bytes of all regular files of a cache directory, without its lock file."""
    return sum(
        status.st_size
        for path in data_dir.rglob("*")
        if path.name != ".bbcache.lock" and stat.S_ISREG((status := path.lstat()).st_mode)
    )


def noise(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same for the same seed; as a tar, if there is room."""
    member = tarfile.TarInfo("noise")
    member.size = max(0, size_bytes - tarfile.BLOCKSIZE)
    head = member.tobuf()[: size_bytes if size_bytes >= tarfile.BLOCKSIZE else 0]
    return head + random.Random(seed).randbytes(size_bytes - len(head))


def small_tar(size_bytes: int, seed: int) -> bytes:
    """A tar whose archive has about so many bytes, which may be fewer than a tar's own header."""
    return noise(tarfile.BLOCKSIZE) + random.Random(seed).randbytes(max(16, size_bytes - 90))


def tar_of(timeline: MemoryTimeline, lsn: Lsn = LSN_A) -> bytes:
    """The tarball that a timeline in memory writes unless told otherwise."""
    return make_tarball(timeline.timeline_id, lsn)


def stop_while_sending(timeline: MemoryTimeline, gate: Gate) -> None:
    """Make the timeline's basebackup stop at `gate` between its first byte and the rest."""

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        data = timeline.tarball(lsn)
        writer.write(data[:1])
        gate()
        writer.write(data[1:])

    timeline.on_send = send


def start_child(function: str, *args: object) -> subprocess.Popen[str]:
    """Run a function, such as ``module:name``, in a fresh process of this Python."""
    module, _, name = function.partition(":")
    code = f"import sys, {module}; {module}.{name}(*sys.argv[1:])"
    paths = [str(TESTS_DIR), str(TESTS_DIR.parent), *filter(None, [os.getenv("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_child(child: subprocess.Popen[str] | WarmChild) -> tuple[int, str, str]:
    """Wait for a child's end: its exit code, and what it has printed and complained of."""
    with child:
        try:
            out, err = child.communicate(timeout=CHILD_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    return child.wait(), out, err


def run_child(function: str, *args: object) -> str:
    """Run a function of a child to its end, which must be good; returns what it has printed."""
    code, out, err = end_child(start_child(function, *args))
    assert code == 0, f"{function} failed:\n{out}\n{err}"
    return out
