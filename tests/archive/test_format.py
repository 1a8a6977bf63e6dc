"""The bytes of an archive: layout, seal, damage, plain gzip, the writer, other readers."""

from __future__ import annotations

import array
import contextlib
import ctypes
import gzip
import io
import mmap
import os
import random
import struct
import subprocess
import tarfile
import threading
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip, isal_zlib
from support.cache_helpers import Gate
from support.helpers import KEY, LSN, TIMELINE, make_keys, run_threads, seal_archive, tool
from xxhash import xxh3_64_digest, xxh3_128_digest

from bbcache.archive import deflate
from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.archive.format import (
    HEADER_SIZE_BYTES,
    ArchiveWriter,
    Seal,
    check_plain,
    check_sealed,
    pack_header,
    parse_header,
    read_seal,
)
from bbcache.errors import ArchiveError, CacheFullError, ClosingError
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

LEAST_PIECE_BYTES = 1 << 18
TAR = make_tarball(TIMELINE, LSN)
RANDOM = random.Random(7).randbytes(3 << 20)
JUNK = [b"\0", bytes(512), b"junk", b"\x1f\x8b", gzip.compress(b"x", mtime=0)]
JUNK_IDS = ["a zero", "a block of zeros", "junk", "a magic number", "a member"]


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[int]:
    """A descriptor of a file with this content, its offset somewhere."""
    fd = os.memfd_create("archive")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def prove(content: bytes, key: bytes = KEY, lsn: int = LSN, *, with_digest: bool = True) -> str:
    """Check a file as its first open does; "sealed" or "plain", or it raises."""
    with opened(content) as fd:
        seal = read_seal(fd, key, lsn)
        if seal is None:
            check_plain(fd, len(content))
            return "plain"
        check_sealed(fd, len(content), seal, with_digest=with_digest)
        return "sealed"


def check_bad(content: bytes, **how: Any) -> str:
    """Check that the file is found bad; returns the error's text."""
    with pytest.raises(ArchiveError) as caught:
        prove(content, **how)
    return str(caught.value)


class Made:
    """A writer, and what it has emitted."""

    def __init__(self, level: int = 2, emit: Callable[[bytes], None] | None = None) -> None:
        self.emitted: list[bytes] = []
        self.writer = ArchiveWriter(emit or self.emitted.append, level)

    def content(self) -> bytes:
        """All that was emitted."""
        return b"".join(self.emitted)

    def finish(self) -> bytes:
        """End the archive and unpack it."""
        seal = self.writer.finish()
        content = self.content()
        assert seal.body_bytes == len(content) - HEADER_SIZE_BYTES
        tar = gzip.decompress(content)
        assert seal.tar_bytes == len(tar)
        return tar


# --- The layout -------------------------------------------------------------------------


def test_header_is_laid_out_by_rfc_1952() -> None:
    """Every byte of the header is where the RFC and the documentation say."""
    content = seal_archive(TAR)
    body = content[57:]
    assert HEADER_SIZE_BYTES == 57
    assert content[0:2] == b"\x1f\x8b"  # ID1 ID2
    assert content[2] == 8  # CM: deflate
    assert content[3] == 4  # FLG: FEXTRA alone
    assert content[4:8] == bytes(4)  # MTIME: none
    assert content[8] == 0  # XFL
    assert content[9] == 255  # OS: unknown
    assert struct.unpack_from("<H", content, 10) == (45,)  # XLEN
    assert content[12:14] == b"BB"  # SI1 SI2
    assert struct.unpack_from("<H", content, 14) == (41,)  # LEN
    assert content[16] == 1  # version of the seal
    assert struct.unpack_from("<QQ", content, 17) == (len(body), len(TAR))
    assert content[33:49] == xxh3_128_digest(body)
    assert content[49:57] == xxh3_64_digest(content[:49] + KEY + struct.pack("<Q", LSN))


def test_the_seal_of_today_is_the_seal_of_tomorrow() -> None:
    """A file that this version has sealed must be good for every later one."""
    seal = Seal(1000, 20480, bytes(range(16)))
    assert pack_header(seal, KEY, LSN).hex() == (
        "1f8b08040000000000ff"  # gzip
        "2d0042422900"  # the subfield
        "01e80300000000000000500000000000000001020304050607"  # version, sizes, digest
        "08090a0b0c0d0e0fb6da93cc237bd871"  # digest, check
    )


def test_body_is_deflate_crc_and_size() -> None:
    """All after the header: a raw deflate stream, CRC-32 and ISIZE, and nothing else."""
    body = seal_archive(TAR)[HEADER_SIZE_BYTES:]
    stream = zlib.decompressobj(-15)
    assert stream.decompress(body) == TAR
    assert stream.eof
    assert stream.unused_data == struct.pack("<II", zlib.crc32(TAR), len(TAR))


def test_size_in_the_trailer_is_modulo_four_gigabytes() -> None:
    """ISIZE has 32 bits, the seal 64."""
    made = Made()
    made.writer.write(b"x" * 10)
    made.writer._deflate.size_bytes = 1 << 32
    seal = made.writer.finish()
    assert seal.tar_bytes == (1 << 32) + 10
    assert made.content()[-4:] == struct.pack("<I", 10)


def test_header_goes_first_and_is_not_valid_until_patched() -> None:
    """A file cut off before the patch is not taken for an archive."""
    made = Made()
    made.writer.write(TAR)
    made.finish()
    content = made.content()
    assert len(made.emitted[0]) == HEADER_SIZE_BYTES
    assert content[16:HEADER_SIZE_BYTES] == bytes(HEADER_SIZE_BYTES - 16)
    check_bad(content)


seals = st.builds(
    Seal, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16)
)


@given(seal=seals, key=st.binary(min_size=32, max_size=32), lsn=st.integers(0, 2**64 - 1))
def test_a_packed_header_is_parsed_back(seal: Seal, key: bytes, lsn: int) -> None:
    """The seal that is read is the one that was written, for its own key and LSN."""
    header = pack_header(seal, key, lsn)
    assert len(header) == HEADER_SIZE_BYTES
    assert parse_header(header, key, lsn) == seal


# --- Damage -----------------------------------------------------------------------------


def test_a_sealed_archive_is_good() -> None:
    """It passes with and without its digest."""
    content = seal_archive(TAR)
    assert prove(content) == prove(content, with_digest=False) == "sealed"


@pytest.mark.parametrize("tar", [b"x", TAR, RANDOM[:3000]], ids=["one byte", "tar", "random"])
@pytest.mark.parametrize("with_digest", [True, False])
def test_no_flipped_bit_of_the_header_passes(tar: bytes, *, with_digest: bool) -> None:
    """Each single bit of the header and the seal, whatever verify_reads says."""
    content = seal_archive(tar)
    for bit in range(HEADER_SIZE_BYTES * 8):
        check_bad(flip(content, bit), with_digest=with_digest)


@given(seal=seals, rest=st.binary(max_size=300))
def test_a_seal_whose_flag_was_flipped_never_passes_as_plain(seal: Seal, rest: bytes) -> None:
    """Without FLG.FEXTRA the bytes of the seal are no deflate stream."""
    content = flip(pack_header(seal, KEY, LSN), 8 * 3 + 2) + rest
    assert parse_header(content[:HEADER_SIZE_BYTES], KEY, LSN) is None
    check_bad(content)


@pytest.mark.parametrize("tar", [b"x", TAR, RANDOM[:300]], ids=["one byte", "tar", "random"])
def test_no_flipped_bit_of_the_body_passes_the_digest(tar: bytes) -> None:
    """Each single bit after the header, CRC and size included."""
    content = seal_archive(tar)
    for bit in range(HEADER_SIZE_BYTES * 8, len(content) * 8):
        assert "digest" in check_bad(flip(content, bit))


@pytest.mark.parametrize("with_digest", [True, False])
def test_no_prefix_of_an_archive_passes(*, with_digest: bool) -> None:
    """A file cut to any length, none included."""
    content = seal_archive(TAR)
    for length in range(len(content)):
        check_bad(content[:length], with_digest=with_digest)


@pytest.mark.parametrize("with_digest", [True, False])
@pytest.mark.parametrize("junk", JUNK, ids=JUNK_IDS)
def test_nothing_behind_an_archive_passes(junk: bytes, *, with_digest: bool) -> None:
    """A byte behind the sealed body is damage."""
    assert "seal says" in check_bad(seal_archive(TAR) + junk, with_digest=with_digest)


def test_a_file_of_zeros_is_bad() -> None:
    """The content that a power loss may leave, size right."""
    size_bytes = len(seal_archive(TAR))
    assert "gzip header" in check_bad(bytes(size_bytes))


def test_an_empty_file_is_bad() -> None:
    """A file without bytes is no archive."""
    assert "gzip header" in check_bad(b"")


def test_a_seal_is_bound_to_its_timeline_and_lsn() -> None:
    """A whole archive under another name is bad, also one bit away."""
    content = seal_archive(TAR)
    for bit in range(len(KEY) * 8):
        assert "another timeline or LSN" in check_bad(content, key=flip(KEY, bit))
    for bit in range(64):
        assert "another timeline or LSN" in check_bad(content, lsn=LSN ^ 1 << bit)
    check_bad(content, key=KEY[16:] + KEY[:16])


def test_the_header_alone_does_not_vouch_for_the_body() -> None:
    """Without the digest a body of the same size passes: that is what never means."""
    content = seal_archive(TAR)
    damaged = flip(content, (len(content) - 9) * 8)
    assert prove(damaged, with_digest=False) == "sealed"
    check_bad(damaged)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_an_unknown_version_of_the_seal_is_bad(version: int) -> None:
    """A valid check does not make a version known."""
    content = bytearray(seal_archive(TAR))
    content[16] = version
    content[49:57] = xxh3_64_digest(bytes(content[:49]) + KEY + struct.pack("<Q", LSN))
    assert f"version {version}" in check_bad(bytes(content))


@pytest.mark.parametrize("size_bytes", [HEADER_SIZE_BYTES - 1, HEADER_SIZE_BYTES + 1])
def test_a_header_of_another_size_is_bad(size_bytes: int) -> None:
    """A valid check does not make up for a byte too few or too many."""
    head = seal_archive(TAR)[: size_bytes - 8]
    with pytest.raises(ArchiveError, match="seal is broken"):
        parse_header(head + xxh3_64_digest(head + KEY + struct.pack("<Q", LSN)), KEY, LSN)


@pytest.mark.parametrize("magic", [b"\x1f\x8a", b"\x1f\x8c", b"\x1e\x8b", b"\x20\x8b"])
def test_only_the_magic_number_begins_a_header(magic: bytes) -> None:
    """Other first bytes are refused, with and without a seal."""
    for content in (seal_archive(TAR), gzip.compress(TAR)):
        with pytest.raises(ArchiveError, match="does not begin with a gzip header"):
            parse_header(magic + content[2:HEADER_SIZE_BYTES], KEY, LSN)


def test_a_header_that_is_read_in_two_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short read is continued."""
    real, short = os.pread, iter([7])
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real(fd, next(short, n), at))
    with opened(seal_archive(TAR)) as fd:
        assert read_seal(fd, KEY, LSN) is not None


def test_a_seal_in_another_header_is_bad() -> None:
    """The header's fixed part is part of the seal's version."""
    content = bytearray(seal_archive(TAR))
    content[12:14] = b"BC"
    content[49:57] = xxh3_64_digest(bytes(content[:49]) + KEY + struct.pack("<Q", LSN))
    check_bad(bytes(content))


def test_a_file_that_shrinks_while_it_is_read_is_bad() -> None:
    """The digest is over what is there."""
    content = seal_archive(TAR)
    with opened(content) as fd:
        seal = read_seal(fd, KEY, LSN)
        assert seal is not None
        os.ftruncate(fd, len(content) - 1)
        with pytest.raises(ArchiveError):
            check_sealed(fd, len(content), seal, with_digest=True)


def test_checks_leave_the_offset_alone() -> None:
    """The caller gets its file at the offset where it was."""
    for content in (seal_archive(TAR), gzip.compress(TAR)):
        with opened(content) as fd:
            os.lseek(fd, 5, os.SEEK_SET)
            seal = read_seal(fd, KEY, LSN)
            if seal is None:
                check_plain(fd, len(content))
            else:
                check_sealed(fd, len(content), seal, with_digest=True)
            assert os.lseek(fd, 0, os.SEEK_CUR) == 5


def test_what_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    """The system's error is raised unchanged."""
    seal = Seal(1, 1, bytes(16))
    fd = os.open(tmp_path, os.O_RDONLY)  # reading a directory fails
    try:
        with pytest.raises(IsADirectoryError):
            read_seal(fd, KEY, LSN)
        with pytest.raises(IsADirectoryError):
            check_sealed(fd, HEADER_SIZE_BYTES + 1, seal, with_digest=True)
        with pytest.raises(IsADirectoryError):
            check_plain(fd, 1)
    finally:
        os.close(fd)


# --- Archives without seal --------------------------------------------------------------


def gzip_header(flags: int, *parts: bytes) -> bytes:
    """A gzip header with optional parts."""
    return struct.pack("<2sBBIBB", b"\x1f\x8b", 8, flags, 0, 0, 255) + b"".join(parts)


def gzip_with(flags: int, *parts: bytes, data: bytes = TAR) -> bytes:
    """One gzip member with this header."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    trailer = struct.pack("<II", zlib.crc32(data), len(data))
    return gzip_header(flags, *parts) + body + trailer


def gzip_of_size(size_bytes: int) -> bytes:
    """One gzip member of exactly this size."""
    guess = size_bytes - 18 - 5 * (size_bytes // 65535 + 1)
    for length in range(max(0, guess - 64), guess + 64):
        deflate = zlib.compressobj(0, zlib.DEFLATED, 31)
        content = deflate.compress(bytes(length)) + deflate.flush()
        if len(content) == size_bytes:
            return content
    raise AssertionError("no such member")


@pytest.mark.parametrize("level", range(10))
def test_gzip_of_others_is_taken_whole(level: int) -> None:
    """As Neon writes it: one member, no extra field, any level."""
    assert prove(gzip.compress(TAR, level)) == "plain"
    assert prove(gzip.compress(b"", level)) == "plain"


@pytest.mark.parametrize(
    "content",
    [
        gzip_with(0x08, b"name.tar\0"),
        gzip_with(0x10, b"a comment\0"),
        gzip_with(0x18, b"name.tar\0", b"a comment\0"),
        gzip_with(0x01),
    ],
    ids=["name", "comment", "both", "text"],
)
def test_other_header_fields_are_read_over(content: bytes) -> None:
    """A name, a comment or the text flag says nothing about the bytes."""
    assert prove(content) == "plain"


def test_gzip_with_a_header_crc_is_taken() -> None:
    """FHCRC is checked where it is there."""
    header = gzip_header(0x02)
    good = struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    assert prove(gzip_with(0x02, good)) == "plain"
    check_bad(gzip_with(0x02, bytes(2)))


@pytest.mark.parametrize("size_bytes", [n << 20 for n in (1, 2, 3)])
@pytest.mark.parametrize("offset", [-1, 0, 1, 512, 32768])
@pytest.mark.parametrize("kind", ["zeros", "random", "repeats"])
def test_gzip_of_whole_pieces_is_not_taken_for_cut(size_bytes: int, offset: int, kind: str) -> None:
    """A member whose output fills the buffer exactly is complete."""
    length = size_bytes + offset
    data = {
        "zeros": lambda: bytes(length),
        "random": lambda: (RANDOM + RANDOM[:65536])[:length],
        "repeats": lambda: (RANDOM[:4096] * (length // 4096 + 1))[:length],
    }[kind]()
    assert prove(gzip.compress(data, 1)) == "plain"


def test_plain_gzip_is_checked_in_little_memory() -> None:
    """A file that unpacks to a thousand times its size is no bomb."""
    content = gzip.compress(bytes(64 << 20), 1)
    with opened(content) as fd:
        tracemalloc.start()
        try:
            check_plain(fd, len(content))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 16 << 20


def test_no_prefix_of_a_plain_gzip_passes() -> None:
    """Cut anywhere, the trailer included."""
    content = gzip.compress(TAR)
    for length in range(len(content)):
        check_bad(content[:length])


def test_no_flipped_bit_of_a_plain_gzip_passes_where_it_matters() -> None:
    """Whatever passes unpacks to the same bytes, also for the reader of a compute node."""
    content = gzip.compress(TAR, mtime=0)
    for bit in range(len(content) * 8):
        damaged = flip(content, bit)
        try:
            prove(damaged)
        except ArchiveError:
            continue
        assert zlib.decompress(damaged, 31) == TAR
        assert bytes(cramjam.gzip.decompress(damaged)) == TAR


@pytest.mark.parametrize("bit", [5, 6, 7])
def test_a_reserved_flag_is_bad(bit: int) -> None:
    """RFC 1952: a reader must refuse a header whose reserved bits are set, and most do."""
    check_bad(flip(gzip.compress(TAR), 8 * 3 + bit))


def test_a_broken_stream_and_a_cut_one_have_their_own_errors() -> None:
    """The error says whether bytes changed or are missing."""
    content = gzip.compress(RANDOM[:1000], mtime=0)
    assert "is broken" in check_bad(flip(content, 8 * len(content) - 64))  # of the CRC
    assert "is cut after 999 bytes" in check_bad(content[:999])


@pytest.mark.parametrize("junk", JUNK, ids=JUNK_IDS)
def test_nothing_behind_a_plain_gzip_passes(junk: bytes) -> None:
    """No padding, no junk, no second member."""
    assert "behind" in check_bad(gzip.compress(TAR) + junk)


@pytest.mark.parametrize("size_bytes", [1 << 16, 1 << 18, 1 << 19, 1 << 20])
@pytest.mark.parametrize("junk", JUNK, ids=JUNK_IDS)
def test_nothing_behind_a_plain_gzip_of_a_round_size_passes(size_bytes: int, junk: bytes) -> None:
    """Also where the member ends just where a piece that is read ends."""
    content = gzip_of_size(size_bytes)
    assert prove(content) == "plain"
    assert "behind" in check_bad(content + junk)


def test_no_more_junk_is_read_than_tells_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check stops at the first piece behind the member."""
    content = gzip.compress(TAR)
    real_pread, reads = os.pread, []

    def pread(fd: int, size_bytes: int, offset: int) -> bytes:
        reads.append(offset)
        return real_pread(fd, size_bytes, offset)

    with opened(content) as fd:
        os.ftruncate(fd, 64 * LEAST_PIECE_BYTES)
        monkeypatch.setattr("bbcache.archive.format.os.pread", pread)
        with pytest.raises(ArchiveError, match="behind"):
            check_plain(fd, 64 * LEAST_PIECE_BYTES)
    assert len(reads) <= 2


@pytest.mark.parametrize("extra", [b"", b"AP\x02\0xy", b"BC\x02\0xy", b"BB\x29\0" + bytes(41)])
def test_an_extra_field_of_others_is_bad(extra: bytes) -> None:
    """With FLG.FEXTRA set only our own seal will do."""
    content = gzip_with(0x04, struct.pack("<H", len(extra)), extra)
    assert gzip.decompress(content) == TAR
    assert "seal" in check_bad(content)


@pytest.mark.parametrize("data", [b"", b"x", b"not gzip at all" * 10, zlib.compress(TAR), TAR])
def test_what_is_no_gzip_is_bad(data: bytes) -> None:
    """Zlib, tar and junk under an archive's name."""
    check_bad(data)


@pytest.mark.parametrize("method", [0, 7, 9])
def test_another_compression_method_is_bad(method: int) -> None:
    """CM is 8."""
    content = bytearray(gzip.compress(TAR))
    content[2] = method
    check_bad(bytes(content))


def test_a_plain_file_of_another_size_than_indexed_is_bad() -> None:
    """The size must be the one that is indexed, no byte more or less."""
    content = gzip.compress(TAR)
    for difference in (-1, 1):
        with opened(content) as fd, pytest.raises(ArchiveError):
            check_plain(fd, len(content) + difference)


# --- The writer -------------------------------------------------------------------------


class _Header(ctypes.Structure):
    """A struct of forty bytes: a buffer without a length of its own."""

    _fields_ = (("magic", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 32))


def buffers() -> dict[str, Buffer]:
    """Forty bytes in every kind of buffer."""
    raw = bytes(range(40))
    mapped = mmap.mmap(-1, 40)
    mapped[:] = raw
    return {
        "bytes": raw,
        "bytearray": bytearray(raw),
        "memoryview": memoryview(raw),
        "part of a view": memoryview(bytes(4) + raw + bytes(4))[4:44],
        "array of ints": array.array("I", raw),
        "view of ints": memoryview(array.array("I", raw)),
        "two dimensions": memoryview(raw).cast("B", [5, 8]),
        "mmap": mapped,
        "ctypes array": (ctypes.c_uint8 * 40).from_buffer_copy(raw),
        "ctypes structure": _Header.from_buffer_copy(raw),
    }


@pytest.mark.parametrize("kind", buffers())
def test_every_contiguous_buffer_is_taken(kind: str) -> None:
    """The result is the number of bytes, not of items."""
    made = Made()
    assert made.writer.write(buffers()[kind]) == 40
    assert made.finish() == bytes(range(40))


@pytest.mark.parametrize("kind", buffers())
def test_every_contiguous_buffer_is_taken_behind_others(kind: str) -> None:
    """Also where it does not fit into what is buffered."""
    made = Made()
    first = RANDOM[: PIECE_SIZE_BYTES - 1]
    assert made.writer.write(first) == len(first)
    assert made.writer.write(buffers()[kind]) == 40
    assert made.finish() == first + bytes(range(40))


@pytest.mark.parametrize(
    "data", ["text", None, 5, [1], memoryview(bytes(10))[::2], memoryview(bytes(10))[::-1]]
)
def test_what_is_no_buffer_fails_the_build(data: Any) -> None:
    """It raises, and the build fails even if the host ignores the error."""
    made = Made()
    made.writer.write(TAR)
    with pytest.raises((TypeError, BufferError, ValueError)) as first:
        made.writer.write(data)
    with pytest.raises(type(first.value)) as second:
        made.writer.write(TAR)
    with pytest.raises(type(first.value)) as third:
        made.writer.finish()
    assert first.value is second.value is third.value is made.writer.failure


def test_buffers_may_be_reused() -> None:
    """The bytes are copied or compressed before write returns."""
    made, wanted = Made(), []
    buffer = bytearray(LEAST_PIECE_BYTES * 5)
    for number, size_bytes in enumerate((10, LEAST_PIECE_BYTES * 5, 7, LEAST_PIECE_BYTES * 4)):
        buffer[:size_bytes] = bytes([number]) * size_bytes
        made.writer.write(memoryview(buffer)[:size_bytes])
        wanted.append(bytes(buffer[:size_bytes]))
        buffer[:] = b"\xff" * len(buffer)
    assert made.finish() == b"".join(wanted)


def test_buffers_are_let_go() -> None:
    """A host may resize its buffer after a write, of whatever size."""
    made = Made()
    for size_bytes in (10, PIECE_SIZE_BYTES, 3 * PIECE_SIZE_BYTES):
        buffer = bytearray(size_bytes)
        made.writer.write(buffer)
        buffer.clear()
    made.finish()


def test_close_and_flush_of_the_host_are_ignored() -> None:
    """Neither ends the archive, and a with block does not either."""
    made = Made()
    with made.writer:
        made.writer.write(b"one")
        made.writer.flush()
    made.writer.close()
    assert not made.writer.closed
    made.writer.write(b"two")
    assert made.finish() == b"onetwo"


def test_wrappers_of_the_host_do_not_close_it() -> None:
    """A buffer over the writer may be collected, a tar stream closed."""
    made = Made()
    buffered = io.BufferedWriter(made.writer)
    buffered.write(b"first")
    buffered.flush()
    del buffered
    with tarfile.open(fileobj=made.writer, mode="w|") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    made.writer.writelines([b"last", b"line"])
    tar_bytes = made.finish()
    assert tar_bytes.startswith(b"first")
    assert tar_bytes.endswith(b"lastline")
    with tarfile.open(fileobj=io.BytesIO(tar_bytes[5:-8])) as tar:
        assert tar.getnames() == ["empty"]


def test_a_host_finds_nothing_behind_the_writer() -> None:
    """The writer cannot be detached, and has no raw stream."""
    made = Made()
    made.writer.write(TAR)
    with pytest.raises(io.UnsupportedOperation):
        made.writer.detach()
    assert not hasattr(made.writer, "raw")
    made.writer.write(TAR)
    assert made.finish() == TAR + TAR


def test_write_after_finish_raises_value_error() -> None:
    """A host that writes late learns so, and nothing is emitted."""
    made = Made()
    made.writer.write(TAR)
    made.finish()
    emitted = len(made.emitted)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"detached|ended"):
            made.writer.write(RANDOM)
    made.writer.flush()
    made.writer.close()
    made.writer.abort()
    assert len(made.emitted) == emitted


@pytest.mark.parametrize("is_failed", [False, True])
def test_write_after_abort_raises_value_error(*, is_failed: bool) -> None:
    """Also where the build had failed before; abort is harmless twice."""
    made = Made()
    made.writer.write(TAR)
    if is_failed:
        made.writer.cancel(ClosingError("closing"))
    for _ in range(2):
        made.writer.abort()
        with pytest.raises(ValueError, match=r"detached|ended"):
            made.writer.write(TAR)
    assert len(made.emitted) == 1  # the header


def test_write_after_a_failed_finish_raises_value_error() -> None:
    """A failed `finish` ends the archive, too."""
    made = Made()
    with pytest.raises(ArchiveError):
        made.writer.finish()
    with pytest.raises(ValueError, match=r"detached|ended"):
        made.writer.write(TAR)


def test_write_after_a_finish_that_found_a_failure_raises_value_error() -> None:
    """`finish` raises the failure again; later writes raise ValueError."""
    made = Made()
    made.writer.cancel(ClosingError("closing"))
    with pytest.raises(ClosingError):
        made.writer.finish()
    with pytest.raises(ValueError, match="ended"):
        made.writer.write(TAR)


def test_an_archive_is_not_ended_twice() -> None:
    """A second end raises, as one after an abort does, and emits nothing."""
    made = Made()
    made.writer.write(TAR)
    made.finish()
    emitted = len(made.emitted)
    with pytest.raises(ValueError, match="ended"):
        made.writer.finish()
    assert len(made.emitted) == emitted
    other = Made()
    other.writer.write(TAR)
    other.writer.abort()
    with pytest.raises(ValueError, match="ended"):
        other.writer.finish()
    assert len(other.emitted) == 1


def test_a_forgotten_writer_emits_nothing_more() -> None:
    """Buffered bytes are lost when the writer is collected, not written late."""
    made = Made()
    made.writer.write(TAR)
    del made.writer
    assert len(made.emitted) == 1


@pytest.mark.parametrize("pieces", [[], [b""], [b"", bytearray(), memoryview(b"")]])
def test_an_empty_archive_is_an_error(pieces: list[Buffer]) -> None:
    """A host that wrote nothing made no basebackup."""
    made = Made()
    for piece in pieces:
        assert made.writer.write(piece) == 0
    with pytest.raises(ArchiveError, match="empty"):
        made.writer.finish()


class Refusing:
    """Takes `room` bytes and then raises."""

    def __init__(self, room: int, error: BaseException) -> None:
        self._room = room
        self._error = error
        self.calls = 0

    def __call__(self, data: bytes) -> None:
        """Take the bytes, or raise."""
        self.calls += 1
        self._room -= len(data)
        if self._room < 0:
            raise self._error


@pytest.mark.parametrize(
    "error", [CacheFullError("full"), OSError(28, "no space"), KeyboardInterrupt(), SystemExit(3)]
)
def test_what_emit_raises_fails_the_build(error: BaseException) -> None:
    """The same error from the write, from every later one and from finish."""
    emit = Refusing(HEADER_SIZE_BYTES + 1000, error)
    writer = ArchiveWriter(emit, 2)
    with pytest.raises(type(error)) as first:
        writer.writelines([RANDOM] * 10)
    calls = emit.calls
    with pytest.raises(type(error)) as second:
        writer.write(b"x")
    with pytest.raises(type(error)) as third:
        writer.finish()
    assert first.value is second.value is third.value is error is writer.failure
    assert emit.calls == calls


def test_what_emit_raises_at_the_header_is_raised_at_once() -> None:
    """There is no writer then."""
    with pytest.raises(CacheFullError):
        ArchiveWriter(Refusing(HEADER_SIZE_BYTES - 1, CacheFullError("full")), 2)


@pytest.mark.parametrize("room", [0, 1])
def test_what_emit_raises_at_the_end_is_raised_by_finish(room: int) -> None:
    """The bytes that were buffered, or the trailer, may pass a limit."""
    whole = len(seal_archive(TAR))
    emit = Refusing((whole - 1) if room else HEADER_SIZE_BYTES, CacheFullError("full"))
    writer = ArchiveWriter(emit, 2)
    writer.write(TAR)
    with pytest.raises(CacheFullError):
        writer.finish()
    with pytest.raises(ValueError, match=r"detached|ended"):
        writer.write(TAR)


def test_cancel_from_another_thread_ends_the_build() -> None:
    """A write that is under way ends, and the next one raises."""
    is_inside, may_go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def emit(data: bytes) -> None:
        if len(data) > HEADER_SIZE_BYTES:
            is_inside.set()
            assert may_go_on.wait(60)

    made = Made(emit=emit)

    def host() -> None:
        try:
            while True:
                made.writer.write(RANDOM)
        except ClosingError as error:
            errors.append(error)

    def closer() -> None:
        assert is_inside.wait(60)
        made.writer.cancel(ClosingError("closing"))
        may_go_on.set()

    run_threads([host, closer])
    with pytest.raises(ClosingError) as caught:
        made.writer.finish()
    assert errors == [caught.value]


def stopping(emitted: list[bytes], gate: Gate) -> Callable[[bytes], None]:
    """Collects the output, and stops at the gate after the header."""

    def emit(data: bytes) -> None:
        if emitted:
            gate()
        emitted.append(data)

    return emit


def test_a_write_under_way_when_the_archive_ends_does_no_harm() -> None:
    """A host that still writes from another thread gets a whole archive or an error."""
    gate = Gate()
    emitted: list[bytes] = []
    seals: list[Seal] = []

    made = Made(emit=stopping(emitted, gate))

    def pieces() -> Iterator[bytes]:
        while True:  # without a pause the lock may never be free for the other thread
            yield RANDOM
            time.sleep(0.001)

    def host() -> None:
        with pytest.raises(ValueError, match=r"detached|ended"):
            made.writer.writelines(pieces())

    def finish() -> None:
        gate.wait_for()
        threading.Timer(0.01, gate.open).start()
        seals.append(made.writer.finish())

    run_threads([host, finish])
    content = b"".join(emitted)
    tar = gzip.decompress(content)
    assert seals == [
        Seal(
            len(content) - HEADER_SIZE_BYTES,
            len(tar),
            xxh3_128_digest(content[HEADER_SIZE_BYTES:]),
        )
    ]
    assert tar == RANDOM * (len(tar) // len(RANDOM))


def test_a_write_that_fails_in_another_thread_fails_the_build() -> None:
    """Also where the host's callback has returned before it did: the archive has a gap."""
    is_inside, may_go_on = threading.Event(), threading.Event()
    error = CacheFullError("full")
    errors: list[BaseException] = []

    def emit(data: bytes) -> None:
        if len(data) > HEADER_SIZE_BYTES:
            is_inside.set()
            assert may_go_on.wait(60)
            raise error

    made = Made(emit=emit)

    def host() -> None:
        with pytest.raises(CacheFullError):
            made.writer.write(RANDOM)

    def finish() -> None:
        assert is_inside.wait(60)
        threading.Timer(0.01, may_go_on.set).start()
        try:
            made.writer.finish()
        except CacheFullError as caught:
            errors.append(caught)

    run_threads([host, finish])
    assert errors == [error]


def test_a_write_that_had_to_wait_for_the_end_is_refused() -> None:
    """A write that waits while the archive ends is refused."""
    gate = Gate()
    emitted: list[bytes] = []

    made = Made(emit=stopping(emitted, gate))

    def waiting() -> None:
        gate.wait_for()
        threading.Timer(0.01, made.writer.abort).start()
        threading.Timer(0.02, gate.open).start()
        with pytest.raises(ValueError, match="ended"):
            made.writer.writelines(pieces())

    def pieces() -> Iterator[bytes]:
        for _ in range(60_000):
            yield RANDOM[:1024]
            time.sleep(0.001)  # so that the other thread gets the lock

    run_threads([lambda: made.writer.write(RANDOM), waiting])
    assert b"".join(emitted[1:]) != b""


def test_cancelled_before_the_first_write() -> None:
    """Nothing is taken, and finish raises."""
    made = Made()
    made.writer.cancel(ClosingError("closing"))
    with pytest.raises(ClosingError):
        made.writer.write(TAR)
    with pytest.raises(ClosingError):
        made.writer.finish()
    assert len(made.emitted) == 1


@pytest.mark.parametrize("cut", [1, 100, 512, 4096, PIECE_SIZE_BYTES, len(RANDOM)])
@pytest.mark.parametrize("tar", [RANDOM, bytes(3 << 20)], ids=["random", "zeros"])
def test_the_head_is_checked_once_and_before_anything_is_compressed(tar: bytes, cut: int) -> None:
    """The check sees the first block; what it raises fails the build, with no body emitted."""
    tar, heads = tar[: 2000 * cut], []

    def refuse(head: bytes) -> None:
        heads.append(head)
        raise ArchiveError("no tar")

    emitted: list[bytes] = []
    for check in (heads.append, refuse):
        emitted.clear()
        writer = ArchiveWriter(emitted.append, 2, check)
        with contextlib.suppress(ArchiveError):
            writer.writelines(tar[start : start + cut] for start in range(0, len(tar), cut))
        with pytest.raises(ArchiveError) if check is refuse else contextlib.nullcontext():
            writer.finish()
    assert heads == [tar[:512]] * 2
    assert len(emitted) == 1


def test_the_head_of_a_short_tarball_is_all_of_it() -> None:
    """It is checked at the end."""
    heads: list[bytes] = []
    writer = ArchiveWriter(lambda _: None, 2, heads.append)
    writer.write(b"short")
    assert heads == []
    writer.finish()
    assert heads == [b"short"]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pieces that compressors are given."""
    sizes: list[int] = []
    real = isal_zlib.compressobj

    class Recorder:
        """Notes what is compressed."""

        def __init__(self, *arguments: Any) -> None:
            self._real = real(*arguments)

        def compress(self, data: Buffer) -> bytes:
            """Compress, and note the size."""
            sizes.append(memoryview(data).nbytes)
            return self._real.compress(data)

        def flush(self, *mode: int) -> bytes:
            """End the stream, or a part of it."""
            return self._real.flush(*mode)

    monkeypatch.setattr(isal_zlib, "compressobj", Recorder)
    return sizes


@pytest.mark.parametrize(
    "sizes",
    [
        [8192] * 300,
        [1] * 1000,
        [PIECE_SIZE_BYTES] * 3,
        [PIECE_SIZE_BYTES + 100] * 3,
        [512, PIECE_SIZE_BYTES] * 3,
        [512, PIECE_SIZE_BYTES + 1, 512],
        [512, 3 * PIECE_SIZE_BYTES] * 2,
        [3 * PIECE_SIZE_BYTES + 5, 5],
        [LEAST_PIECE_BYTES - 1, PIECE_SIZE_BYTES] * 3,
        [PIECE_SIZE_BYTES - 1, 2, PIECE_SIZE_BYTES - 1, 2],
        [10, 2 * PIECE_SIZE_BYTES, 10, 2 * PIECE_SIZE_BYTES],
    ],
    ids=lambda sizes: f"{sizes[:3]}x{len(sizes)}",
)
def test_the_compressor_gets_big_pieces(fed: list[int], sizes: list[int]) -> None:
    """Whatever the host writes, all but the last have 256 KiB at least."""
    made = Made()
    for size_bytes in sizes:
        made.writer.write(b"x" * size_bytes)
    made.finish()
    assert sum(fed) == sum(sizes)
    assert [size for size in fed[:-1] if size < LEAST_PIECE_BYTES] == []


def test_a_whole_piece_is_compressed_at_once(fed: list[int]) -> None:
    """No more than a piece waits: neither a big write, nor many small ones, are kept."""
    made = Made()
    made.writer.write(b"x" * PIECE_SIZE_BYTES)
    assert fed == [PIECE_SIZE_BYTES]
    made.writer.write(b"x")
    made.writer.write(b"y" * (2 * PIECE_SIZE_BYTES - 1))
    assert fed == [PIECE_SIZE_BYTES] * 3
    made.finish()


def test_flushes_of_the_host_do_not_make_small_pieces(fed: list[int]) -> None:
    """A host that flushes after each write costs no compression."""
    made = Made()
    for _ in range(200):
        made.writer.write(b"x" * 8192)
        made.writer.flush()
    made.finish()
    assert [size for size in fed[:-1] if size < LEAST_PIECE_BYTES] == []


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 511, 8192, LEAST_PIECE_BYTES, PIECE_SIZE_BYTES - 1])
        | st.integers(0, 2 * PIECE_SIZE_BYTES),
        min_size=1,
        max_size=8,
    ),
    level=st.integers(0, 3),
)
def test_pieces_of_any_size_come_back(sizes: list[int], level: int) -> None:
    """The unpacked bytes are those that were written, at every level."""
    made, wanted = Made(level), []
    for number, size_bytes in enumerate([*sizes, 1]):
        start = number * 1000
        piece = RANDOM[start : start + size_bytes]
        wanted.append(piece)
        assert made.writer.write(piece) == len(piece)
    assert made.finish() == b"".join(wanted)
    assert len(b"".join(wanted)) == sum(len(piece) for piece in wanted)


def test_repeats_are_found_as_far_back_as_deflate_can() -> None:
    """The window has 32 KiB, its most: at the best level what returns in it costs little."""
    made, block = Made(level=3), RANDOM[: 30 << 10]
    made.writer.write(block * 40)
    made.finish()
    assert len(made.content()) < 2 * len(block)


def test_two_builds_of_the_same_bytes_give_the_same_file() -> None:
    """Nothing in an archive depends on the time or on the build."""
    tar = TAR * 500
    assert seal_archive(tar) == seal_archive(tar)


@pytest.mark.parametrize("sizes", [[8192], [1 << 20], [512, 1 << 20], [(1 << 20) + 100], [1 << 22]])
def test_the_file_does_not_depend_on_the_pieces(sizes: list[int]) -> None:
    """The same tarball is the same archive, however the host cuts it."""
    tar = (RANDOM[:100_000] + TAR * 100) * 15
    made, position, number = Made(), 0, 0
    while position < len(tar):
        size_bytes = sizes[number % len(sizes)]
        made.writer.write(tar[position : position + size_bytes])
        position, number = position + size_bytes, number + 1
    made.writer.finish()
    assert made.content()[HEADER_SIZE_BYTES:] == seal_archive(tar)[HEADER_SIZE_BYTES:]


def test_the_key_is_in_the_check_alone() -> None:
    """Two timelines with the same bytes have the same body."""
    first, second = (seal_archive(TAR, key=key) for key in make_keys(2))
    assert first[:49] == second[:49]
    assert first[49:57] != second[49:57]
    assert first[57:] == second[57:]


# --- Zeros ------------------------------------------------------------------------------

MIXED = {
    "none": RANDOM[:PIECE_SIZE_BYTES] * 2,
    "all": bytes(3 * PIECE_SIZE_BYTES),
    "all and a bit": bytes(2 * PIECE_SIZE_BYTES + 5),
    "less than a piece": bytes(100_000),
    "behind": RANDOM[:70_000] + bytes(3 * PIECE_SIZE_BYTES),
    "before": bytes(2 * PIECE_SIZE_BYTES) + RANDOM[:70_000],
    "between": RANDOM[:70_000] + bytes(3 * PIECE_SIZE_BYTES) + TAR + bytes(PIECE_SIZE_BYTES) + b"x",
    "one byte at the end": bytes(2 * PIECE_SIZE_BYTES - 1) + b"x" + bytes(PIECE_SIZE_BYTES),
    "one byte at the start": bytes(PIECE_SIZE_BYTES) + b"x" + bytes(2 * PIECE_SIZE_BYTES - 1),
    "repeats across": TAR * 100 + bytes(2 * PIECE_SIZE_BYTES) + TAR * 100,
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("cut", [1000, 4096, 8192, 70_000, PIECE_SIZE_BYTES, 5 << 20])
def test_zeros_come_back_however_they_are_cut(name: str, cut: int) -> None:
    """At any place, in writes of any size, and the file is that of one single write."""
    tar, made = MIXED[name], Made()
    for start in range(0, len(tar), cut):
        made.writer.write(memoryview(tar)[start : start + cut])
    assert made.finish() == tar
    assert made.content()[HEADER_SIZE_BYTES:] == seal_archive(tar)[HEADER_SIZE_BYTES:]


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "array"])
def test_zeros_in_any_buffer_are_zeros(kind: str) -> None:
    """Only the bytes decide, and the last byte counts."""
    make: Callable[[bytes], Buffer] = {
        "bytes": bytes,
        "bytearray": bytearray,
        "memoryview": memoryview,
        "array": lambda data: array.array("Q", data),
    }[kind]  # type: ignore[assignment]  # of several kinds of callables
    wanted = [bytes(8192)] * 200 + [bytes(8191) + b"x"] + [bytes(8192)] * 200
    made = Made()
    for piece in wanted:
        assert made.writer.write(make(piece)) == 8192
    assert made.finish() == b"".join(wanted)


def test_what_only_claims_to_be_zeros_fails_the_build() -> None:
    """An object that says that it equals everything is no buffer."""

    class Anything:
        """Equals everything."""

        def __eq__(self, _: object) -> bool:
            return True

        __hash__ = object.__hash__

    made = Made()
    made.writer.write(bytes(8192))
    with pytest.raises(TypeError):
        made.writer.write(Anything())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        made.writer.finish()


def test_a_run_of_zeros_is_not_compressed(fed: list[int]) -> None:
    """Whole pieces of zeros never come to the compressor, however they are written."""
    deflate._zeros()  # compressed once a process
    fed.clear()
    made = Made()
    made.writer.write(TAR)
    for _ in range(1000):
        made.writer.write(bytes(8192))
    made.writer.write(bytes(20 * PIECE_SIZE_BYTES) + b"end")
    tar = made.finish()
    assert tar == TAR + bytes(1000 * 8192 + 20 * PIECE_SIZE_BYTES) + b"end"
    assert sum(fed) == PIECE_SIZE_BYTES + len(tar) % PIECE_SIZE_BYTES


def test_zeros_without_end_take_no_memory() -> None:
    """They are emitted in batches, not only before other data."""
    made = Made()
    for _ in range(1000):
        made.writer.write(bytes(PIECE_SIZE_BYTES))
    assert len(made.content()) > 1_000_000 - 64 * 1100
    seal = made.writer.finish()
    assert seal.tar_bytes == 1000 * PIECE_SIZE_BYTES


def test_a_buffer_is_used_again_and_tells_nothing() -> None:
    """Each archive has its own bytes."""
    for tar in (RANDOM[:500_000], b"x" * 1000, RANDOM[:700_000], b"y"):
        made = Made()
        made.writer.write(tar[:300_000])
        made.writer.write(tar[300_000:])
        assert made.finish() == tar


def test_a_write_that_is_under_way_when_the_build_is_given_up_is_waited_for() -> None:
    """`abort` waits for it, so nothing is emitted for a build that is over."""
    is_inside, may_go_on = threading.Event(), threading.Event()
    steps: list[str] = []

    def emit(data: bytes) -> None:
        if len(data) > HEADER_SIZE_BYTES:
            is_inside.set()
            assert may_go_on.wait(60)
            steps.append("emitted")

    made, other = Made(emit=emit), Made()

    def host() -> None:
        made.writer.write(RANDOM[:1000])
        made.writer.write(RANDOM)

    def give_up() -> None:
        assert is_inside.wait(60)
        made.writer.abort()
        steps.append("given up")

    def check_cancelled() -> None:
        assert is_inside.wait(60)
        other.writer.write(RANDOM[:600_000])
        may_go_on.set()
        other.writer.write(RANDOM[600_000:700_000])
        assert other.finish() == RANDOM[:700_000]

    run_threads([host, give_up, check_cancelled])
    assert steps[-1] == "given up"
    assert steps.count("given up") == 1


# --- Other readers ----------------------------------------------------------------------

CONTENTS = {
    "one byte": b"x",
    "tar": TAR,
    "random": RANDOM,
    "zeros": bytes(5 << 20),
    "zeros between": TAR + bytes(3 << 20) + RANDOM[:5000] + bytes(2 << 20) + TAR,
    "round": RANDOM[: 2 * PIECE_SIZE_BYTES],
}


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("name", CONTENTS)
def test_python_readers_get_the_exact_bytes(name: str, level: int) -> None:
    """Stdlib gzip, ISA-L's own module, and Rust's flate2 as in Neon's compute node."""
    tar = CONTENTS[name]
    content = seal_archive(tar, level=level)
    assert gzip.decompress(content) == tar
    assert gzip.GzipFile(fileobj=io.BytesIO(content)).read() == tar
    with igzip.open(io.BytesIO(content)) as file:  # type: ignore[no-untyped-call]
        assert file.read() == tar
    assert bytes(cramjam.gzip.decompress(content)) == tar


@pytest.mark.parametrize("name", CONTENTS)
def test_an_archive_is_one_member(name: str) -> None:
    """A reader that decodes only the first member gets it all, with nothing behind."""
    tar = CONTENTS[name]
    stream = zlib.decompressobj(31)
    assert stream.decompress(seal_archive(tar)) == tar
    assert stream.eof
    assert stream.unused_data == b""


@pytest.mark.parametrize("name", ["gzip", "igzip", "pigz"])
@pytest.mark.parametrize("what", CONTENTS)
def test_programs_get_the_exact_bytes(tmp_path: Path, name: str, what: str) -> None:
    """GNU gzip, igzip and pigz test it, and unpack it."""
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(seal_archive(CONTENTS[what]))
    program = tool(name)
    tested = subprocess.run([program, "-t", path], check=True, capture_output=True)
    assert tested.stderr == b""
    unpacked = subprocess.run([program, "-dc", path], check=True, capture_output=True)
    assert unpacked.stdout == CONTENTS[what]


def test_tar_lists_and_unpacks_it(tmp_path: Path) -> None:
    """GNU tar lists and unpacks it with z."""
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(seal_archive(TAR))
    listed = subprocess.run([tool("tar"), "tzf", path], check=True, capture_output=True)
    assert listed.stdout == b"restart.lsn\n"
    assert listed.stderr == b""
    subprocess.run([tool("tar"), "xzf", path, "-C", tmp_path], check=True)
    with tarfile.open(fileobj=io.BytesIO(TAR)) as tar:
        member = tar.extractfile("restart.lsn")
        assert member is not None
        assert (tmp_path / "restart.lsn").read_bytes() == member.read()


def flip(content: bytes, bit: int) -> bytes:
    """The same bytes but for one bit."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
