"""Small things that the tests of the core share."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client import CollectorRegistry

from bbcache.archive.format import pack_header
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import DirectoryLockedError
from bbcache.history import History
from bbcache.ids import Lsn, TenantId, TenantShardId, TimelineId
from bbcache.metrics import Metrics
from bbcache.outcomes import PrepareResult, SkipReason
from bbcache.prepare.queue import PrepareQueue
from bbcache.prepare.request import Request, Result
from bbcache.storage.dirlock import DirectoryLock
from bbcache.storage.index import make_key
from bbcache.work_counter import WorkCounter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bbcache.metric_rows import Row

TENANT: Final = TenantId.from_str("de200bd42b49cc1814412c7e592dd6e9")
TIMELINE: Final = TimelineId.from_str("11223344556677889900aabbccddeeff")
KEY: Final = make_key(TENANT, TIMELINE)
LSN: Final = Lsn.from_str("0/16B5A50")
_DEADLINE_S: Final = 60.0


def make_keys(count: int) -> list[bytes]:
    """Keys of `count` timelines of one tenant."""
    return [make_key(TENANT, TimelineId(number.to_bytes(16, "big"))) for number in range(count)]


def wait_until(is_so: Callable[[], object], timeout_s: float = _DEADLINE_S) -> None:
    """Poll until `is_so()` holds; fails the test when it never does.

    The longer it takes, the rarer are the polls: some of them start a program.
    """
    begun_s = time.monotonic()
    while not is_so():
        waited_s = time.monotonic() - begun_s
        assert waited_s < timeout_s, "the condition did not become true in time"
        time.sleep(min(max(0.001, waited_s / 10), 0.03))


def run_threads(targets: Iterable[Callable[[], object]]) -> None:
    """Run every target in a thread of its own, started together; raises the first failure."""
    targets = list(targets)
    barrier = threading.Barrier(len(targets))
    failures: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        try:
            barrier.wait(_DEADLINE_S)
            target()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_DEADLINE_S)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def seal_archive(tar: bytes, key: bytes = KEY, lsn: int = LSN, level: int = 2) -> bytes:
    """The bytes of a whole sealed archive of `tar`."""
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, level)
    writer.write(tar)
    seal = writer.finish()
    whole = b"".join(pieces)
    header = pack_header(seal, key, lsn)
    return header + whole[len(header) :]


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample of a registry, such as ``{"name{label=value}": 1.0}``."""
    return {
        sample.name + "".join(f"{{{name}={text}}}" for name, text in sample.labels.items()): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def samples_of(row: Row[Any]) -> list[str]:
    """The samples of a declared metric with one label or none, without those of buckets."""
    suffixes = ("_count", "_sum") if row.kind == "histogram" else ("",)
    labels = [f"{{{label}={value}}}" for label in row.labels for value in row.labels[label]]
    return [f"{row.name}{suffix}{label}" for suffix in suffixes for label in labels or [""]]


def file_names(directory: str | Path) -> set[str]:
    """Names of all that is in a directory, itself included in none of them."""
    return set(os.listdir(directory))


def is_free(directory: Path) -> bool:
    """Whether another cache could take the directory."""
    lock = DirectoryLock(str(directory))
    try:
        lock.acquire()
    except DirectoryLockedError:
        return False
    lock.release()
    return True


def open_below(directory: Path | str) -> list[str]:
    """The files in a directory that this process has open; other threads may open others."""
    names = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(name for name in names if Path(name).is_relative_to(directory))


def count_descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def make_request(key: bytes, lsn: int = 1, *, is_rebuild: bool = False) -> Request:
    """A request for a timeline, which nobody waits for."""
    return Request(key, Lsn(lsn), None if is_rebuild else TenantShardId(TENANT), 0.0)


class SettledQueue:
    """A queue whose every step returns the requests that it settles, with the reason."""

    def __init__(self, capacity: int) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.queue = PrepareQueue(capacity, metrics, History(), WorkCounter())
        self._reasons: list[SkipReason] = []  # of the skips that the last step has counted
        count_skip = metrics.skipped

        def skipped(reason: SkipReason) -> None:
            count_skip(reason)
            self._reasons.append(reason)

        vars(metrics)["skipped"] = skipped
        self._fills: dict[Request, list[Request]] = {}  # the callers that have joined a request
        self._open: dict[Request, None] = {}  # those that are not settled, in order

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue, name)

    def __len__(self) -> int:
        return len(self.queue)

    def submit(self, request: Request) -> tuple[Request, SkipReason] | None:
        """Queue a request."""
        self._open[request] = None
        self.queue.submit(request)
        return self._settled_one()

    def join(self, fill: Request) -> Request | None:
        """Join a request, or queue one."""
        request = self.queue.join(fill)
        if request is not None:
            self._open[request] = None
            self._fills.setdefault(request, []).append(fill)
        return request

    def leave(self, request: Request) -> tuple[Request, SkipReason] | None:
        """Leave a request: the last of those that have joined it."""
        self.queue.leave(self._fills[request].pop())
        return self._settled_one()

    def take(self) -> Request | None:
        """Wait for a request."""
        return self.queue.take()

    def postpone(self, request: Request) -> tuple[Request, SkipReason] | None:
        """Put a request behind."""
        self.queue.postpone(request)
        return self._settled_one()

    def start(self, request: Request) -> list[Request] | None:
        """Begin a build; None where it cannot begin."""
        is_started = self.queue.start(request)
        settled = self._settled()
        return list(settled) if is_started else None

    def finish(self, request: Request) -> None:
        """End a request that a worker has taken, with an error."""
        self.queue.finish(request, Result())
        self._open.pop(request, None)

    def close(self) -> list[Request]:
        """Close the queue."""
        self.queue.close()
        return list(self._settled())

    def abandon_running(self) -> list[Request]:
        """Give up what workers run."""
        self.queue.abandon_running()
        return list(self._settled())

    def running(self) -> list[Request]:
        """The requests that have the slots of their timelines."""
        return list(self.queue._line.running.values())

    def results(self) -> dict[str, int]:
        """How many requests have ended how."""
        name = "pageserver_basebackup_cache_prepare_total"
        one: Any = self.registry.restricted_registry([name])  # without the cost of all others
        now = samples(one)
        counts = {each.value: int(now[f"{name}{{result={each}}}"]) for each in PrepareResult}
        return {result: count for result, count in counts.items() if count}

    def _settled_one(self) -> tuple[Request, SkipReason] | None:
        settled = self._settled()
        assert len(settled) <= 1
        return next(iter(settled.items()), None)

    def _settled(self) -> dict[Request, SkipReason]:
        """What the last step has settled, each counted once."""
        settled = [each for each in self._open if each.is_counted]
        for each in settled:
            assert each.wait(0) is not None  # its callers are told
            del self._open[each]
        reasons, self._reasons = self._reasons, []
        assert len(settled) == len(reasons)
        assert len(set(reasons)) <= 1  # so it does not matter which is whose
        return dict(zip(settled, reasons, strict=True))


def take_all(queue: SettledQueue) -> list[Request]:
    """Take what can be taken now, in order, and find each LSN reached."""
    taken = []
    while len(queue):
        each = queue.take()
        assert each is not None
        taken.append(each)
        assert queue.start(each) is not None
        queue.finish(each)
    return taken


def tool(name: str) -> str:
    """The path of a program; skips the test without it, or fails where it is required."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
            pytest.fail(f"{name} is not installed, but BBCACHE_REQUIRE_TOOLS is set")
        pytest.skip(f"{name} is not installed")
    return path
