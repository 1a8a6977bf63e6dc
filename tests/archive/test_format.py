"""The bytes of an archive: layout, seal, damage, plain gzip, other readers."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import subprocess
import tarfile
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import igzip
from support.archive_helpers import RANDOM, TAR, Made
from support.helpers import KEY, LSN, seal_archive, tool
from xxhash import xxh3_64_digest, xxh3_128_digest

from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.archive.format import (
    HEADER_SIZE_BYTES,
    Seal,
    check_plain,
    check_sealed,
    pack_header,
    parse_header,
    read_seal,
)
from bbcache.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
        os.ftruncate(fd, 1 << 24)
        monkeypatch.setattr("bbcache.archive.format.os.pread", pread)
        with pytest.raises(ArchiveError, match="behind"):
            check_plain(fd, 1 << 24)
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
