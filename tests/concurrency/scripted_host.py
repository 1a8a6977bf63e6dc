"""A host whose builds go as a test says: well, badly in every way, or not before a gate opens."""

from __future__ import annotations

import copy
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from support.cache_helpers import DEADLINE_S, small_tar
from support.helpers import seal_archive

from bbcache import Lsn
from bbcache.storage.index import make_key
from bbcache.testing import MemoryHost, MemoryTenant

if TYPE_CHECKING:
    from bbcache import TenantShardId
    from bbcache.host import TarballWriter

LSN_STEP: Final = 0x10
GOOD: Final = "good"
STOPS: Final = "stops in the middle"
TIP_MOVES: Final = "the tip moves on"
FAILURES: Final = ("raises", "exits", "interrupts", "swallows the writer's error", "writes nothing")


class ScriptedHost(MemoryHost):
    """A host that raises `failure` from every question, where it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self.pinned: set[int] = set()  # numbers of timelines

    def list(self) -> list[tuple[TenantShardId, MemoryTenant | None]]:
        """All tenants, or the failure."""
        if self.failure is not None:
            raise copy.copy(self.failure)  # one that was raised keeps its callers' frames alive
        return super().list()

    def get_attached_tenant_shard(self, tenant_shard_id: TenantShardId) -> MemoryTenant:
        """The tenant, or the failure."""
        if self.failure is not None:
            raise copy.copy(self.failure)  # one that was raised keeps its callers' frames alive
        return super().get_attached_tenant_shard(tenant_shard_id)


class Build:
    """A build that has stopped in the middle.

    Attributes:
        lsn: the LSN of the build.
        archive: the bytes that it will publish.
        has_arrived: set by the host's thread.
        may_go_on: set by the test.
        is_lost: whether the temporary file was removed meanwhile.
    """

    def __init__(self, lsn: Lsn, archive: bytes) -> None:
        self.lsn = lsn
        self.archive = archive
        self.has_arrived = threading.Event()
        self.may_go_on = threading.Event()
        self.is_lost = False


class Slot:
    """One timeline of the host, and how its next build goes.

    Attributes:
        number: its place among the timelines.
        tenant, timeline: as the host knows them.
        size_bytes: about what its archives have.
        version: makes each build's bytes differ, even at one LSN.
        mode: how builds go: `GOOD`, `STOPS`, `TIP_MOVES` or one of `FAILURES`.
        build: the build that has stopped.
        late_writer: the writer of the last good build, for a host that writes too late.
    """

    def __init__(self, number: int, tenant: MemoryTenant) -> None:
        self.number = number
        self.tenant = tenant
        self.timeline = tenant.add_timeline(Lsn(0x100))
        self.timeline.on_send = self._send
        self.key = make_key(tenant.tenant_id, self.timeline.timeline_id)
        self.size_bytes = 150
        self.version = 0
        self.mode = GOOD
        self.build: Build | None = None
        self.late_writer: TarballWriter | None = None

    @property
    def tip(self) -> Lsn:
        """The timeline's tip."""
        return self.timeline.get_last_record_lsn()

    def move(self, steps: int = 1) -> None:
        """Move the tip on."""
        self.timeline.advance(self.tip + steps * LSN_STEP)

    def name(self, lsn: Lsn) -> str:
        """The name of the entry's file."""
        return f"basebackup_{self.key[:16].hex()}_{self.key[16:].hex()}_{lsn:016X}.tar.gz"

    def tar(self, lsn: Lsn) -> bytes:
        """What a build at `lsn` writes now."""
        return small_tar(self.size_bytes, hash((self.number, int(lsn), self.version)))

    def archive(self, lsn: Lsn) -> bytes:
        """The archive of that build."""
        return seal_archive(self.tar(lsn), self.key, lsn)

    def _send(self, writer: TarballWriter, lsn: Lsn) -> None:
        self.late_writer = writer
        tar = self.tar(lsn)
        if self.mode == STOPS and self.build is not None:
            build = self.build
            writer.write(tar[:50])
            build.has_arrived.set()
            assert build.may_go_on.wait(DEADLINE_S)
            writer.write(tar[50:])
        elif self.mode in FAILURES:
            self._fail(writer, tar)
        else:
            _write_with_one_buffer(writer, tar)
            if self.mode == TIP_MOVES:
                self.move()

    def _fail(self, writer: TarballWriter, tar: bytes) -> None:
        if self.mode == "swallows the writer's error":
            with suppress(TypeError):
                writer.write("no bytes")  # type: ignore[arg-type]  # that is the mistake
            with suppress(TypeError):
                writer.write(tar)
        elif self.mode != "writes nothing":
            writer.write(tar[:50])
            raise {"raises": OSError, "exits": SystemExit, "interrupts": KeyboardInterrupt}[
                self.mode
            ]


def _write_with_one_buffer(writer: TarballWriter, tar: bytes) -> None:
    """As a host that reuses its buffer for every write."""
    buffer = bytearray(64)
    for start in range(0, len(tar), len(buffer)):
        piece = tar[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        writer.write(memoryview(buffer)[: len(piece)])
        buffer[:] = bytes(len(buffer))
