"""The timelines of the lives, and the exact bytes that each basebackup must have.

Everything follows from a timeline's name and an LSN, so that any process can tell
what is right.
"""

from __future__ import annotations

import functools
import gzip
import os
import random
import re
import shutil
import tarfile
import time
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from support.helpers import seal_archive

from bbcache import Lsn, TenantId, TenantShardId, TimelineId
from bbcache.outcomes import FetchResult
from bbcache.storage.index import make_key
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTier, MemoryTimeline, make_tarball

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.second_tier import ArchiveSink

TENANT: Final = TenantId.from_str("de200bd42b49cc1814412c7e592dd6e9")
LSN_A, LSN_B, LSN_C, LSN_D = (Lsn(number << 12) for number in (1, 2, 3, 4))
_BIG_TAR_BYTES: Final = 2_300_000  # three pieces of the compressor, so several writes
_STOPPED_BEFORE_S: Final = 1_000_000
_LOAD_TAR_BYTES: Final = 150_000
_TIER_PIECE_BYTES: Final = 100_000
_ENTRY_NAME: Final = re.compile(rf"basebackup_{TENANT}_([0-9a-f]{{32}})_([0-9A-F]{{16}})\.tar\.gz")

STEADY = "steady"  # held from before, never touched
PLAIN = "plain"  # likewise, as Neon writes it: without seal
SUPERSEDED = "superseded"  # held from before at two LSNs
REFRESHED = "refreshed"  # held from before, and prepared again
BAD = "bad"  # held from before, with a flipped byte
MOVED = "moved"  # held from before, but its tip has moved on
DROPPED = "dropped"  # held from before, but the host does not know it
FIRST, BIG, HURT, CUT, LOST = "first", "big", "hurt", "cut", "lost"  # prepared in the life
WANTED = "wanted"  # prepared in the life by a caller that waits for it
LOAD = "load"  # and a number: those of a cache under load
UNHEARD = "unheard"  # known to no life, prepared after it
HELD: Final = (STEADY, PLAIN, SUPERSEDED, REFRESHED, BAD, MOVED, DROPPED)
MADE: Final = (FIRST, BIG, HURT, CUT, LOST)
ALL: Final = (*HELD, *MADE, WANTED)
# Of these some entry is on disk at every moment.
SURVIVORS: Final = (STEADY, PLAIN, SUPERSEDED, REFRESHED)
UNTOUCHED: Final = (STEADY, PLAIN, SUPERSEDED)


class Found(NamedTuple):
    """An entry's name, read."""

    name: str
    lsn: Lsn


@functools.cache
def timeline_id(name: str) -> TimelineId:
    """The id of a timeline."""
    return TimelineId(name.encode().ljust(16, b"."))


def name_of(some_id: bytes) -> str:
    """The name of a timeline with this id."""
    return bytes(some_id).rstrip(b".").decode()


def key(name: str) -> bytes:
    """The key under which a timeline is indexed."""
    return make_key(TENANT, timeline_id(name))


@functools.cache
def tarball(name: str, lsn: int) -> bytes:
    """The tarball of a timeline at an LSN."""
    if name.startswith(LOAD):
        noise = random.Random(f"{name} {lsn}").randbytes(_LOAD_TAR_BYTES)
        return (tarfile.TarInfo(name).tobuf() + noise)[:_LOAD_TAR_BYTES]
    if name != BIG:
        return make_tarball(timeline_id(name), Lsn(lsn), 3000)
    words = random.Random(lsn).choices([b"%d " % number for number in range(300)], k=1000)
    text = b"".join(words)
    head = tarfile.TarInfo("big").tobuf()
    return (head + text * (_BIG_TAR_BYTES // len(text) + 1))[:_BIG_TAR_BYTES]


@functools.cache
def sealed(name: str, lsn: int) -> bytes:
    """The archive that a prepare publishes."""
    return seal_archive(tarball(name, lsn), key(name), lsn)


@functools.cache
def plain(name: str, lsn: int) -> bytes:
    """The archive as Neon writes it."""
    return gzip.compress(tarball(name, lsn), mtime=0)


def warm_up() -> None:
    """Make all archives once, so that forks find them made."""
    for name in (*ALL, UNHEARD):
        for lsn in (LSN_A, LSN_B, LSN_C, LSN_D):
            sealed(name, lsn)
    plain(PLAIN, LSN_A)


def is_right(data: bytes, name: str, lsn: int) -> bool:
    """Whether these are the bytes of that basebackup, to the last one."""
    return data == sealed(name, lsn) or (name == PLAIN and data == plain(name, lsn))


def describe(data: bytes, name: str, lsn: int) -> str:
    """Say whether wrong bytes have another tarball, or another form of the right one."""
    wanted = sealed(name, lsn)
    try:
        tar = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        return f"{len(data)} bytes, which cannot be unpacked: {error}"
    what = "the tarball in another form" if tar == tarball(name, lsn) else "another tarball"
    return f"{len(data)} bytes, not {len(wanted)}: {what}: {data.hex()}, not {wanted.hex()}"


def file_name(name: str, lsn: int) -> str:
    """The name of an entry's file."""
    return f"basebackup_{TENANT}_{timeline_id(name)}_{lsn:016X}.tar.gz"


def parse_name(file: str) -> Found | None:
    """Which timeline and LSN a file is named for; None for any other file."""
    match = _ENTRY_NAME.fullmatch(file)
    if match is None:
        return None
    return Found(name_of(bytes.fromhex(match[1])), Lsn(int(match[2], 16)))


def seed(data_dir: Path) -> None:
    """Make a directory of what an earlier life, its host and an administrator have left."""
    shutil.rmtree(data_dir, ignore_errors=True)
    for path in (data_dir, data_dir / "tmp", data_dir / "quarantine"):
        path.mkdir(mode=0o700)
    for name in HELD:
        content = plain(name, LSN_A) if name == PLAIN else sealed(name, LSN_A)
        if name == BAD:
            content = flipped(content)
        (data_dir / file_name(name, LSN_A)).write_bytes(content)
    (data_dir / file_name(SUPERSEDED, LSN_B)).write_bytes(sealed(SUPERSEDED, LSN_B))
    stopped_s = time.time() - _STOPPED_BEFORE_S
    for path in entry_files(data_dir).values():  # so that newcomers are worth more
        os.utime(path, (stopped_s, stopped_s))
    (data_dir / ".bbcache.lock").write_text('{"pid": 1, "host": "gone", "since": "long ago"}\n')
    (data_dir / "tmp" / (file_name(FIRST, LSN_A) + ".0123456789abcdef")).write_bytes(b"half")
    for number in range(8):
        old = f"2024010{number + 1}T000000.000000Z_{file_name(BAD, LSN_A)}"
        (data_dir / "quarantine" / old).write_bytes(b"old evidence")
    (data_dir / "notes.txt").write_text("left by an administrator\n")


def flipped(content: bytes) -> bytes:
    """The same with one bit of the body changed."""
    middle = (57 + len(content)) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def make_host(lsns: dict[str, Lsn]) -> tuple[MemoryHost, dict[str, MemoryTimeline]]:
    """A host that has these timelines, with their tips at these LSNs."""
    host = MemoryHost()
    tenant = MemoryTenant(TenantShardId(TENANT))
    host.tenants[tenant.tenant_shard_id] = tenant
    timelines = {}
    for name, lsn in lsns.items():
        timeline = MemoryTimeline(lsn, timeline_id(name))
        timeline.tarball = functools.partial(tarball, name)
        timelines[name] = tenant.timelines[timeline.timeline_id] = timeline
    return host, timelines


class FixedTier(MemoryTier):
    """A second tier that has every archive of every timeline."""

    def fetch(
        self,
        tenant_id: TenantId,  # noqa: ARG002 - there is one
        timeline_id: TimelineId,
        lsn: Lsn,
        writer: ArchiveSink,
        deadline_s: float,  # noqa: ARG002 - it takes no time
    ) -> FetchResult:
        """Write the archive in several pieces."""
        data = sealed(name_of(timeline_id), lsn)
        for start in range(0, len(data), _TIER_PIECE_BYTES):
            writer.write(data[start : start + _TIER_PIECE_BYTES])
        writer.check()
        return FetchResult.HIT


def entry_files(data_dir: Path) -> dict[Found, Path]:
    """The files on disk that have an entry's name; none where the directory is gone."""
    names = os.listdir(data_dir) if data_dir.exists() else []
    found = ((parse_name(name), data_dir / name) for name in names)
    return {entry: path for entry, path in found if entry is not None}
