"""What `get` checks: no damaged archive is ever served."""

from __future__ import annotations

import errno
import gzip
import io
import os
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Harness,
    fail_with,
    noise,
    tar_of,
)

from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.archive.format import HEADER_SIZE_BYTES
from bbcache.storage import reader
from bbcache.storage.files import BasebackupFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def _restart_with(harness: Harness, content: bytes, **settings: str) -> MemoryTimeline:
    """A timeline whose entry, found by a new start, has `content`; its tip has moved on."""
    timeline = harness.timeline(LSN_B)
    harness.seed(timeline, LSN_A, content)
    harness.reopen(**settings)
    return timeline


def _flip(at: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        position = at % len(content)
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        return bytes(damaged)

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _content: b"",
    "nuls": lambda content: bytes(len(content)),
    "cut_in_magic": lambda content: content[:3],
    "cut_in_header": lambda content: content[: HEADER_SIZE_BYTES - 1],
    "cut_after_header": lambda content: content[:HEADER_SIZE_BYTES],
    "cut_in_body": lambda content: content[:-9],
    "last_byte_gone": lambda content: content[:-1],
    "garbage_behind": lambda content: content + b"\0",
    "second_member": lambda content: content + gzip.compress(b"more"),
    "nuls_in_body": lambda content: content[:-40] + bytes(40),
    "not_gzip": lambda content: b"PK" + content[2:],
    "no_extra_field": lambda content: content[:3] + b"\0" + content[4:],
    "other_version": lambda content: content[:16] + b"\2" + content[17:],
    "flipped_digest": _flip(40),
    "flipped_body": _flip(HEADER_SIZE_BYTES + 20),
    "flipped_crc": _flip(-5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_found_at_the_start_is_never_served(harness: Harness, damage: str) -> None:
    """The first read of a damaged entry finds the damage and removes the entry."""
    timeline = harness.timeline(LSN_B)
    bad = DAMAGE[damage](harness.sealed(timeline, LSN_A))
    harness.seed(timeline, LSN_A, bad)
    harness.reopen()
    assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}
    assert harness.cache.entries() == []
    (name,) = harness.quarantined()
    assert (harness.dir / "quarantine" / name).read_bytes() == bad
    assert harness.value("bbcache_quarantined_total") == 1
    harness.wait_idle()
    harness.check_accounting()


def test_no_prefix_and_no_flipped_byte_is_ever_served(harness: Harness) -> None:
    """Cut anywhere, or with any one byte changed, an archive is not served."""
    size_bytes = len(harness.sealed(harness.timeline(LSN_B), LSN_A))
    damaged = {}
    for position in range(size_bytes):
        for damage in (_flip(position), lambda content, at=position: content[: at % len(content)]):
            timeline = harness.timeline(LSN_B)
            damaged[timeline] = damage(harness.sealed(timeline, LSN_A))
            harness.seed(timeline, LSN_A, damaged[timeline])
    harness.reopen()
    assert [timeline for timeline in damaged if harness.get_archive(timeline) is not None] == []
    assert harness.reads == {"error": len(damaged)}
    assert harness.cache.entries() == []


@pytest.mark.parametrize("settings", [{}, {"verify_reads": "always"}], ids=["first", "always"])
def test_an_archive_under_another_name_is_never_served(
    harness: Harness, settings: dict[str, str]
) -> None:
    """The seal binds tenant, timeline and LSN: a file of another key is bad."""
    other = harness.prepared()
    timeline = _restart_with(harness, harness.path(other).read_bytes(), **settings)
    assert harness.get(timeline) is None
    assert harness.get(other) == tar_of(other)
    moved = harness.timeline(LSN_B)
    harness.seed(moved, LSN_B, harness.sealed(moved, LSN_A))
    harness.reopen(verify_reads="never")
    assert harness.get(moved, LSN_B) is None


def test_the_first_read_checks_the_digest_once(harness: Harness) -> None:
    """By default the digest is checked at the first open of this life; later the size."""
    timeline = harness.prepared()
    assert harness.get(timeline) is not None
    path = harness.path(timeline)
    path.write_bytes(_flip(-5)(path.read_bytes()))
    assert harness.get_archive(timeline) is not None
    path.write_bytes(path.read_bytes() + b"x")
    assert harness.get(timeline) is None
    assert harness.reads == {"hit": 2, "error": 1}


def test_the_first_read_of_a_published_entry_is_checked_too(harness: Harness) -> None:
    """An entry published in this life is as unverified as one found at the start."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    path = harness.path(timeline)
    path.write_bytes(_flip(-5)(path.read_bytes()))
    assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}


def test_a_read_cut_short_proves_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is read byte by byte is complete."""
    timeline = harness.prepared()
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, _size, offset: pread(fd, 1, offset))
    assert harness.get(timeline) is not None
    assert harness.quarantined() == []


def test_a_close_that_fails_after_a_failed_check_is_an_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets None, as for any disk error; nothing is raised, the entry stays."""
    timeline = harness.prepared()
    error = OSError(errno.EIO, os.strerror(errno.EIO))

    def close_and_fail(file: BasebackupFile) -> None:
        io.FileIO.close(file)
        raise error

    with monkeypatch.context() as patched:
        fail_with(patched, os, "pread", error)
        patched.setattr(BasebackupFile, "close", close_and_fail)
        assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}
    assert harness.get(timeline) is not None


def test_always_checks_every_read(harness: Harness) -> None:
    """With verify_reads always, damage after a good read is found by the next."""
    harness.reopen(verify_reads="always")
    timeline = harness.prepared()
    assert harness.get(timeline) == tar_of(timeline)
    timeline.advance(LSN_B)
    path = harness.path(timeline)
    path.write_bytes(_flip(-5)(path.read_bytes()))
    assert harness.get(timeline) is None
    assert harness.reads == {"hit": 1, "error": 1}


def test_always_finds_a_seal_that_has_vanished(harness: Harness) -> None:
    """A plain archive of the same size in the place of a verified sealed one is bad."""
    harness.reopen(verify_reads="always")
    timeline = harness.prepared()
    assert harness.get(timeline) is not None
    timeline.advance(LSN_B)
    path = harness.path(timeline)
    path.write_bytes(_plain_of_size(path.stat().st_size))
    assert harness.get(timeline) is None
    assert len(harness.quarantined()) == 1


def test_never_still_reads_the_header_of_what_it_found(harness: Harness) -> None:
    """With verify_reads never, header and size of an entry found at start are checked once."""
    flipped_body = _restart_with(harness, b"", verify_reads="never")
    harness.seed(flipped_body, LSN_A, _flip(-1)(harness.sealed(flipped_body, LSN_A)))
    flipped_seal = harness.timeline(LSN_B)
    harness.seed(flipped_seal, LSN_A, _flip(30)(harness.sealed(flipped_seal, LSN_A)))
    harness.reopen()
    assert harness.get_archive(flipped_body) is not None
    assert harness.get(flipped_seal) is None


def _plain_of_size(size_bytes: int, tail: bytes = b"") -> bytes:
    """A gzip member without extra field of exactly this size, padded by a comment."""
    bare = gzip.compress(b"a tarball of Neon's", mtime=0)
    padding = b"c" * (size_bytes - len(bare) - 1)
    member = bare[:3] + bytes([bare[3] | 0x10]) + bare[4:10] + padding + b"\0" + bare[10:]
    assert len(member) == size_bytes
    # Python's gzip module reads the comment byte by byte.
    assert zlib.decompress(member, zlib.MAX_WBITS | 16) == b"a tarball of Neon's"
    return member + tail


PLAIN_BAD: dict[str, bytes] = {
    "two_members": gzip.compress(b"one") + gzip.compress(b"two"),
    "garbage_behind": gzip.compress(b"one") + b"x",
    "nuls_behind": gzip.compress(b"one") + bytes(512),
    "cut_trailer": gzip.compress(b"one")[:-1],
    "no_trailer": gzip.compress(b"one")[:-8],
    "cut_body": gzip.compress(noise(3 * PIECE_SIZE_BYTES))[: 2 * PIECE_SIZE_BYTES],
    "wrong_crc": _flip(-8)(gzip.compress(b"one")),
    "wrong_size": _flip(-4)(gzip.compress(b"one")),
    "header_only": gzip.compress(b"one")[:10],
    "foreign_extra_field": b"\x1f\x8b\x08\x04"
    + bytes(6)
    + struct.pack("<H4s", 4, b"XX\0\0")
    + zlib.compress(b"one")[2:-4]
    + struct.pack("<II", zlib.crc32(b"one"), 3),
    "garbage_at_a_piece": _plain_of_size(PIECE_SIZE_BYTES, b"garbage"),
    "member_at_a_piece": _plain_of_size(PIECE_SIZE_BYTES, gzip.compress(b"two")),
    "piece_behind_a_piece": _plain_of_size(PIECE_SIZE_BYTES, noise(PIECE_SIZE_BYTES)),
    "garbage_behind_a_piece": _plain_of_size(PIECE_SIZE_BYTES - 1, b"garbage"),
}


@pytest.mark.parametrize("verify_reads", ["always", "first", "never"])
@pytest.mark.parametrize("content", PLAIN_BAD.values(), ids=PLAIN_BAD)
def test_a_bad_archive_without_seal_is_never_served(
    harness: Harness, content: bytes, verify_reads: str
) -> None:
    """Without seal a file is one whole gzip member with nothing behind it, or it is bad."""
    timeline = _restart_with(harness, content, verify_reads=verify_reads)
    assert harness.get_archive(timeline) is None
    assert harness.reads == {"error": 1}
    assert len(harness.quarantined()) == 1


PLAIN_GOOD: dict[str, bytes] = {
    "small": gzip.compress(b"one"),
    "big": gzip.compress(noise(3 * PIECE_SIZE_BYTES)),
    "bomb": gzip.compress(bytes(16 << 20), 1),
    "ends_with_a_piece": _plain_of_size(PIECE_SIZE_BYTES),
    "with_a_name": b"\x1f\x8b\x08\x08" + bytes(6) + b"base.tar\0" + gzip.compress(b"one")[10:],
}


@pytest.mark.parametrize("verify_reads", ["always", "first", "never"])
@pytest.mark.parametrize("content", PLAIN_GOOD.values(), ids=PLAIN_GOOD)
def test_an_archive_of_neons_is_checked_once_and_served(
    harness: Harness, content: bytes, verify_reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without seal is decompressed in full at its first open, and not again."""
    timeline = _restart_with(harness, content, verify_reads=verify_reads)
    assert harness.get_archive(timeline) == content
    fail_with(monkeypatch, reader, "check_plain", AssertionError("decompressed again"))
    assert harness.get_archive(timeline) == content
    assert harness.reads == {"hit": 2}


def _found_sealed(harness: Harness, verify_reads: str) -> MemoryTimeline:
    timeline = harness.prepared()
    harness.reopen(verify_reads=verify_reads)
    return timeline


def _found_plain(harness: Harness, verify_reads: str) -> MemoryTimeline:
    return _restart_with(harness, gzip.compress(noise(1000)), verify_reads=verify_reads)


def _published(harness: Harness, verify_reads: str) -> MemoryTimeline:
    harness.reopen(verify_reads=verify_reads)
    return harness.prepared()


# The damaged part, and whether that was before the first open of this life or after it.
MOMENTS = [(where, when) for where in ("seal", "body") for when in ("before", "after")]
# Per origin and mode the moments at which damage of no other size is found.
FOUND: dict[Callable[[Harness, str], MemoryTimeline], dict[str, set[tuple[str, str]]]] = {
    _found_sealed: {
        "always": set(MOMENTS),
        "first": {("seal", "before"), ("body", "before")},
        "never": {("seal", "before")},
    },
    _found_plain: {mode: {("body", "before")} for mode in ("always", "first", "never")},
    _published: {
        "always": set(MOMENTS),
        "first": {("seal", "before"), ("body", "before")},
        "never": set(),
    },
}


CASES = [
    pytest.param(origin, where, when, mode, id=f"{origin.__name__[1:]}-{where}-{when}-{mode}")
    for origin, modes in FOUND.items()
    for where, when in MOMENTS
    for mode in modes
    if origin is not _found_plain or where == "body"  # without seal there is none to damage
]


@pytest.mark.parametrize(("origin", "where", "when", "verify_reads"), CASES)
def test_what_is_found_by_origin_and_mode(
    harness: Harness,
    origin: Callable[[Harness, str], MemoryTimeline],
    where: str,
    when: str,
    verify_reads: str,
) -> None:
    """Each mode finds what its documentation says, at the first open and at later ones."""
    timeline = origin(harness, verify_reads)
    timeline.advance(LSN_B)  # a bad archive is not built again
    path = harness.path(timeline)
    if when == "after":
        assert harness.get_archive(timeline) == path.read_bytes()
    path.write_bytes(_flip(20 if where == "seal" else -20)(path.read_bytes()))
    is_found = (where, when) in FOUND[origin][verify_reads]
    assert (harness.get_archive(timeline) is None) == is_found
    assert len(harness.quarantined()) == is_found
