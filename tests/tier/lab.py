"""Tiers of several nodes on one bucket, and archives to upload."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, noise
from support.helpers import seal_archive

from bbcache import EntryInfo, Lsn, TenantId, TimelineId
from bbcache.archive.incoming import IncomingArchive
from bbcache.storage.index import make_key
from bbcache.tier import ObjectTier, TierConfig

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.outcomes import FetchResult

_PATIENT: Final = {  # no test that wants a hit depends on the machine's speed
    "connect_timeout": DEADLINE_S,
    "first_byte_timeout": DEADLINE_S,
    "fetch_timeout": DEADLINE_S,
    "upload_timeout": DEADLINE_S,
    "flush_timeout": DEADLINE_S,
}


class Sink:
    """Takes an archive, as the cache does."""

    def __init__(self, key: bytes, lsn: Lsn) -> None:
        self.data = b""
        self._check = IncomingArchive(key, lsn)

    def write(self, data: Any, /) -> int:
        """Keep the bytes."""
        self.data += data
        self._check.add(data)
        return len(data)

    def check(self) -> None:
        """Compare them with their seal."""
        self._check.finish()


class Archive:
    """One sealed archive of a timeline."""

    def __init__(
        self, tenant_id: TenantId, timeline_id: TimelineId, lsn: int, size_bytes: int = 3000
    ) -> None:
        key = make_key(tenant_id, timeline_id)
        self.data = seal_archive(noise(size_bytes, lsn), key, lsn)
        self.info = EntryInfo(tenant_id, timeline_id, Lsn(lsn), len(self.data))
        self.key = key

    def open(self) -> BinaryIO:
        """Open it, as the cache does."""
        return io.BytesIO(self.data)


class DirectoryObjects(MutableMapping[str, bytes]):
    """The objects of a store that is a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getitem__(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def __setitem__(self, name: str, data: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def __delitem__(self, name: str) -> None:
        (self._directory / name).unlink()

    def __iter__(self) -> Iterator[str]:
        paths = (path for path in self._directory.rglob("*") if path.is_file())
        return iter(sorted(str(path.relative_to(self._directory)) for path in paths))

    def __len__(self) -> int:
        return len(list(iter(self)))


class Lab:
    """One tier after the other on one bucket, each with metrics of its own."""

    def __init__(
        self,
        url: str,
        key_file: Path,
        objects: MutableMapping[str, bytes],
        settings: dict[str, Any],
    ) -> None:
        self.objects = objects
        self._url = url
        self._settings = {"key_files": (str(key_file),), **_PATIENT, **settings}
        self._open: list[ObjectTier] = []
        self.registry = CollectorRegistry()
        self.tenant_id, self.timeline_id = TenantId.generate(), TimelineId.generate()

    def config(self, **settings: Any) -> TierConfig:
        """The settings of a tier."""
        return TierConfig(**{"url": self._url, **self._settings, **settings})

    def tier(self, **settings: Any) -> ObjectTier:
        """Another tier, as of another node; closed at the end."""
        self.registry = CollectorRegistry()
        tier = ObjectTier(self.config(**settings), self.registry)
        self._open.append(tier)
        assert tier.wait_checked(DEADLINE_S)
        return tier

    def archive(self, lsn: int = 0x1000, size_bytes: int = 3000) -> Archive:
        """An archive of the one timeline."""
        return Archive(self.tenant_id, self.timeline_id, lsn, size_bytes)

    def upload(self, tier: ObjectTier, archive: Archive, replaced: int | None = None) -> None:
        """Offer an archive, and wait until the tier has nothing to do."""
        tier.offer(archive.info, archive.open, None if replaced is None else Lsn(replaced))
        assert tier.wait_idle(DEADLINE_S)

    def fetch(
        self, tier: ObjectTier, archive: Archive, timeout_s: float = DEADLINE_S
    ) -> tuple[FetchResult, bytes]:
        """Fetch an archive in a thread of its own, as the cache does."""
        sink = Sink(archive.key, archive.info.lsn)
        results: list[FetchResult] = []
        ids = archive.info[:3]
        thread = threading.Thread(
            target=lambda: results.append(tier.fetch(*ids, sink, time.monotonic() + timeout_s))
        )
        thread.start()
        thread.join(DEADLINE_S)
        return results[0], sink.data

    def count(self, metric: str, **labels: str) -> float:
        """The value of a metric of the last tier."""
        value = self.registry.get_sample_value(f"bbcache_tier_{metric}", labels)
        assert value is not None, metric
        return value

    def close(self) -> None:
        """Close every tier."""
        for tier in self._open:
            tier.close(0)


def make_key_file(path: Path) -> Path:
    """Make a signing key."""
    path.write_bytes(secrets.token_bytes(32))
    path.chmod(0o600)
    return path
