"""A host in memory: tenants and timelines that a test moves by hand. Thread-safe."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable

from bbcache.host import TarballWriter
from bbcache.ids import Lsn, TenantId, TenantShardId, TimelineId
from bbcache.simple_host import SimpleTenant, SimpleTenantManager


def make_tarball(timeline_id: TimelineId, lsn: Lsn, size_bytes: int = 1000) -> bytes:
    """Make a small tar that names the timeline and the LSN.

    Args:
        timeline_id: the timeline to name.
        lsn: the LSN to name.
        size_bytes: size of the one file in it.
    """
    text = f"{timeline_id} {lsn}\n".encode()
    content = (text * (size_bytes // len(text) + 1))[:size_bytes]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("restart.lsn")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class MemoryTimeline:
    """A timeline whose tip a test moves with `advance`.

    Attributes:
        timeline_id: its id.
        tarball: makes the bytes of the basebackup at an LSN.
        piece_size_bytes: the size of each write.
        on_send: if set, called with writer and LSN in place of the send: it may
            block, raise, or misuse the writer.
        on_wait: if set, called with LSN and timeout in place of the wait.
    """

    def __init__(self, lsn: Lsn, timeline_id: TimelineId | None = None) -> None:
        self.timeline_id = timeline_id or TimelineId.generate()
        self.tarball: Callable[[Lsn], bytes] = lambda at: make_tarball(self.timeline_id, at)
        self.piece_size_bytes = 8192
        self.on_send: Callable[[TarballWriter, Lsn], None] | None = None
        self.on_wait: Callable[[Lsn, float], None] | None = None
        # Entered by `with` itself: an interrupt while a condition is entered leaves it locked.
        self._lock = threading.RLock()  # guards _lsn
        self._moved = threading.Condition(self._lock)
        self._lsn = lsn

    def advance(self, lsn: Lsn) -> None:
        """Move the tip to `lsn`."""
        with self._lock:
            self._lsn = lsn
            self._moved.notify_all()

    def get_last_record_lsn(self) -> Lsn:
        """The tip."""
        with self._lock:
            return self._lsn

    def wait_lsn(self, lsn: Lsn, timeout: float) -> None:
        """Wait for the tip; raises TimeoutError after `timeout` seconds."""
        if self.on_wait is not None:
            self.on_wait(lsn, timeout)
            return
        with self._lock:
            if not self._moved.wait_for(lambda: self._lsn >= lsn, timeout):
                raise TimeoutError(f"{self.timeline_id} is at {self._lsn}, not at {lsn}")

    def send_basebackup_tarball(self, writer: TarballWriter, lsn: Lsn) -> None:
        """Write the tarball in pieces."""
        if self.on_send is not None:
            self.on_send(writer, lsn)
            return
        data = memoryview(self.tarball(lsn))
        for start in range(0, len(data), self.piece_size_bytes):
            writer.write(data[start : start + self.piece_size_bytes])


class MemoryTenant(SimpleTenant[MemoryTimeline]):
    """A tenant with timelines in memory."""

    def add_timeline(self, lsn: Lsn) -> MemoryTimeline:
        """Add a new timeline with its tip at `lsn`."""
        timeline = MemoryTimeline(lsn)
        self.add(timeline)
        return timeline


class MemoryHost(SimpleTenantManager[MemoryTenant]):
    """A tenant manager in memory."""

    def add_tenant(self, tenant_shard_id: TenantShardId | None = None) -> MemoryTenant:
        """Add a new active tenant.

        Args:
            tenant_shard_id: its id; None for a new id of an unsharded tenant.
        """
        tenant = MemoryTenant(tenant_shard_id or TenantShardId(TenantId.generate()))
        self.add(tenant)
        return tenant
