"""The check of the first block that a host writes: a tar, or a clear error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import LSN_A, Harness, noise
from support.helpers import TIMELINE

from bbcache import FillError
from bbcache.archive.tar_head import BLOCK_SIZE_BYTES, check_tar_head
from bbcache.errors import ArchiveError
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.host import TarballWriter

TAR = make_tarball(TIMELINE, LSN_A)


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("PG_VERSION", "16")
    return buffer.getvalue()


FOREIGN: list[tuple[bytes, str]] = [
    (gzip.compress(TAR), "what looks like gzip"),
    (bz2.compress(TAR), "what looks like bzip2"),
    (lzma.compress(TAR), "what looks like xz"),
    (b"\x28\xb5\x2f\xfd" + noise(1000)[512:], "what looks like zstd"),
    (_zipped(), "what looks like zip"),
    (b"ERROR: no such timeline\n" * 100, "text: b'ERROR: no such timeline"),
    (b"ERROR", "text: b'ERROR'"),
    ("Fehler: Zeitleiste nicht gefunden \u2014 ä".encode() * 30, "text: b'Fehler"),
    (noise(1000)[512:], "other bytes: b'"),
    (TAR[1:], "other bytes: b'estart.lsn"),
    (TAR[:100], "other bytes: b'restart.lsn"),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["PG_VERSION", "n" * 300, "ünïcödé"])
def test_every_kind_of_tar_passes(form: int, name: str) -> None:
    """All formats of tarfile pass, with long and non-ASCII names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        try:
            tar.addfile(tarfile.TarInfo(name))
        except ValueError:
            pytest.skip("this format has no such names")
    check_tar_head(buffer.getvalue()[:BLOCK_SIZE_BYTES])


@pytest.mark.parametrize(("data", "kind"), FOREIGN)
def test_what_is_no_tar_is_refused(data: bytes, kind: str) -> None:
    """The error says what it looks like, and what to do."""
    with pytest.raises(ArchiveError) as caught:
        check_tar_head(data[:BLOCK_SIZE_BYTES])
    first, hint = str(caught.value).split("\n")
    assert kind in first.replace("\\x00", "")
    assert hint.startswith("hint: Write the tar itself, uncompressed")


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_checksum_is_refused(difference: int) -> None:
    """A checksum that is not the exact sum of the header is refused."""
    block = bytearray(TAR[:BLOCK_SIZE_BYTES])
    stated = int(bytes(block[148:156]).strip(b"\0 "), 8)
    block[148:156] = b"%06o\0 " % (stated + difference)
    with pytest.raises(ArchiveError, match="the host wrote no tar"):
        check_tar_head(bytes(block))


@pytest.mark.parametrize("cut_bytes", [1, 2, 3])
def test_a_text_whose_last_character_is_cut_is_a_text(cut_bytes: int) -> None:
    """The block may end in the middle of a character."""
    cut = "\U0001f418".encode()[:cut_bytes]
    with pytest.raises(ArchiveError, match="but text: b'a"):
        check_tar_head(b"a" * (BLOCK_SIZE_BYTES - cut_bytes) + cut)


@pytest.fixture(name="harness")
def make_harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as harness:
        yield harness


@pytest.mark.parametrize("piece_size_bytes", [1, 511, 513, 8192])
@pytest.mark.parametrize(("data", "kind"), [FOREIGN[0], FOREIGN[5], FOREIGN[6]])
def test_a_host_that_writes_no_tar_is_refused_by_the_first_block(
    harness: Harness, data: bytes, kind: str, piece_size_bytes: int
) -> None:
    """The caller gets the reason for any sizes of the writes."""
    timeline = harness.timeline()
    timeline.tarball = lambda _: data
    timeline.piece_size_bytes = piece_size_bytes
    with pytest.raises(FillError, match="the host wrote no tar") as caught:
        harness.cache.get_or_prepare(harness.shard_of(timeline), timeline.timeline_id, LSN_A, 60.0)
    assert kind in str(caught.value)
    harness.wait_idle()
    assert harness.counts() == {"error": 1}
    assert harness.entry_files() == harness.temp_files() == []


@pytest.mark.parametrize("size_bytes", [1024, 10240, 1 << 21])
def test_an_archive_without_members_is_refused(harness: Harness, size_bytes: int) -> None:
    """Zeros alone are an empty tar."""
    timeline = harness.timeline()
    timeline.tarball = lambda _: bytes(size_bytes)
    with pytest.raises(FillError, match="the host wrote an empty basebackup"):
        harness.cache.get_or_prepare(harness.shard_of(timeline), timeline.timeline_id, LSN_A, 60.0)


def test_what_ends_in_the_first_block_is_refused_at_its_end(harness: Harness) -> None:
    """A tarball shorter than a block is refused at its end."""
    timeline = harness.timeline()
    sent: list[Any] = []

    def send(writer: TarballWriter, _: object) -> None:
        sent.append(writer.write(TAR[:511]))

    timeline.on_send = send
    harness.prepare(timeline)
    assert sent == [511]
    assert harness.counts() == {"error": 1}
