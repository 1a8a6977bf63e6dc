"""Damaged archives: never served where reads are checked, found, and built again.

The sweeps damage one small archive in place in every way that is listed, each time
on a freshly built file, and print how many ways there were.
"""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, TypeAlias

import pytest
from support.cache_helpers import LSN_A, LSN_B, Harness, noise

from bbcache.archive.format import HEADER_SIZE_BYTES
from bbcache.storage.verify import Audit, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline

Sweep: TypeAlias = "Callable[[bytes], Iterator[bytes]]"
BODY_SAMPLES = 200


def _flip(data: bytes, offset: int, mask: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


def _header_flips(data: bytes) -> Iterator[bytes]:
    """Every single bit of header and seal, and every byte as a whole."""
    for offset in range(HEADER_SIZE_BYTES):
        for mask in (*(1 << bit for bit in range(8)), 0xFF):
            yield _flip(data, offset, mask)


def _body_flips(data: bytes) -> Iterator[bytes]:
    """A dense sample of the body and the whole trailer, with varying bits."""
    step = max(1, (len(data) - HEADER_SIZE_BYTES) // BODY_SAMPLES)
    offsets = {*range(HEADER_SIZE_BYTES, len(data), step), *range(len(data) - 8, len(data))}
    for offset in sorted(offsets):
        yield _flip(data, offset, 1 << offset % 8)


def _truncations(data: bytes) -> Iterator[bytes]:
    """Every length that is too short."""
    return (data[:length] for length in range(len(data)))


def _others(data: bytes) -> Iterator[bytes]:
    """Damage as from power cuts and operators."""
    yield bytes(len(data))
    yield data[:HEADER_SIZE_BYTES] + bytes(len(data) - HEADER_SIZE_BYTES)
    yield bytes(HEADER_SIZE_BYTES) + data[HEADER_SIZE_BYTES:]
    yield from (data + junk for junk in (b"\0", b"x", bytes(512), data, gzip.compress(b"")))
    yield gzip.compress(gzip.decompress(data))[:-1]
    yield noise(len(data))


def _name_of(ways: Sweep) -> str:
    return ways.__name__.strip("_").replace("_", " ")


SWEEPS = [_header_flips, _body_flips, _truncations, _others]


def _damage(path: Path, content: bytes) -> None:
    """Change the file in place, as failing hardware does."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def _sweep(harness: Harness, timeline: MemoryTimeline, ways: Iterable[bytes]) -> int:
    """Damage the entry each way; it must not be served, and must be built again."""
    good = timeline.tarball(LSN_A)
    for count, content in enumerate(ways, 1):
        path = harness.path(timeline)
        assert path.read_bytes() != content
        _damage(path, content)
        assert harness.get(timeline) is None, f"way {count} was served"
        harness.wait_idle()
        assert harness.get(timeline) == good, f"way {count} was not built again"
        harness.prepare(timeline)  # a skip: the entry is there
    assert harness.reads == {"hit": count, "error": count}
    harness.check_accounting()
    return count


@pytest.mark.parametrize("ways", SWEEPS, ids=_name_of)
def test_damage_is_never_served_and_is_built_again(
    tmp_path: Path, ways: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `always`, no damage of any kind is served; the next `get` has the right bytes."""
    with Harness(tmp_path / "cache", verify_reads="always") as harness:
        timeline = harness.prepared(size_bytes=700)
        count = _sweep(harness, timeline, ways(harness.path(timeline).read_bytes()))
        assert len(harness.quarantined()) == min(count, 8)
    with capsys.disabled():
        print(f"[{count} {_name_of(ways)}, 0 served]", end="")  # noqa: T201 - the count is a result


@pytest.mark.parametrize("ways", SWEEPS, ids=_name_of)
def test_damage_before_the_first_open_is_never_served(tmp_path: Path, ways: Sweep) -> None:
    """With `first`, damage done before the first open of an entry in a life is found."""
    with Harness(tmp_path / "cache", verify_reads="first") as harness:
        timeline = harness.prepared(size_bytes=600)
        whole = harness.path(timeline).read_bytes()
        for content in list(ways(whole))[::7]:
            _damage(harness.path(timeline), content)
            assert harness.get(timeline) is None
            harness.wait_idle()  # built again, and not opened yet
        assert harness.get(timeline) is not None


@pytest.mark.parametrize("ways", SWEEPS, ids=_name_of)
def test_damage_done_between_two_lives_is_never_served(tmp_path: Path, ways: Sweep) -> None:
    """An entry found at the start is unverified: what happened to it meanwhile is found."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared(size_bytes=600)
        for content in list(ways(harness.path(timeline).read_bytes()))[::29]:
            harness.cache.close()
            _damage(harness.path(timeline), content)
            harness.open()
            assert harness.get(timeline) is None
            harness.wait_idle()
            assert harness.get(timeline) == timeline.tarball(LSN_A)


@pytest.mark.parametrize("verify_reads", ["always", "first"])
def test_a_file_of_another_timeline_or_lsn_is_never_served(
    tmp_path: Path, verify_reads: str
) -> None:
    """A whole archive under another's name, or sealed for another LSN, is bad."""
    with Harness(tmp_path / "cache", verify_reads=verify_reads) as harness:
        first, second = harness.prepared(size_bytes=700), harness.prepared(size_bytes=800)
        first_bytes, second_bytes = (harness.path(t).read_bytes() for t in (first, second))
        _damage(harness.path(first), second_bytes)
        _damage(harness.path(second), first_bytes)
        assert (harness.get(first), harness.get(second)) == (None, None)
        harness.wait_idle()
        _damage(harness.path(first), harness.sealed(first, LSN_B))
        assert harness.get(first) is None
        harness.wait_idle()
        assert harness.get(first) == first.tarball(LSN_A)
        assert harness.get(second) == second.tarball(LSN_A)


def test_a_swap_of_whole_files_between_two_lives_is_found(tmp_path: Path) -> None:
    """Two files that have changed their names are both bad at the next start."""
    with Harness(tmp_path / "cache") as harness:
        first, second = harness.prepared(), harness.prepared()
        harness.cache.close()
        aside = tmp_path / "aside"
        os.rename(harness.path(first), aside)
        os.rename(harness.path(second), harness.path(first))
        os.rename(aside, harness.path(second))
        harness.open()
        assert (harness.get(first), harness.get(second)) == (None, None)


def test_nothing_is_built_again_once_the_timeline_has_gone_on(tmp_path: Path) -> None:
    """A bad archive of a timeline that has moved on is only removed."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        _damage(harness.path(timeline), b"bad")
        timeline.advance(LSN_B)
        assert harness.get(timeline) is None
        harness.wait_idle()
        assert harness.skips == {"tip_moved": 1}
        assert harness.entry_files() == []
        harness.check_accounting()


def test_never_still_refuses_what_has_another_size(tmp_path: Path) -> None:
    """With `never` the size is still compared, and the header read once after a start."""
    with Harness(tmp_path / "cache", verify_reads="never") as harness:
        timeline = harness.prepared(size_bytes=600)
        whole = harness.path(timeline).read_bytes()
        for content in (whole[:-1], whole + b"x", b""):
            _damage(harness.path(timeline), content)
            assert harness.get(timeline) is None
            harness.wait_idle()
        for content in _header_flips(whole):
            harness.cache.close()
            _damage(harness.path(timeline), content)
            harness.open()
            assert harness.get(timeline) is None
            harness.wait_idle()
            if content[0] != whole[0]:
                break


def test_an_audit_finds_every_damage(tmp_path: Path) -> None:
    """`Audit` finds all damage that a read finds, with and without a cache."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared(size_bytes=600)
        path = harness.path(timeline)
        whole = path.read_bytes()
        assert [f.verdict for f in Audit(harness.dir).run()] == [Verdict.GOOD]
        for sweep in SWEEPS:
            for content in sweep(whole):
                _damage(path, content)
                (finding,) = Audit(harness.dir).run()
                assert (finding.verdict, finding.path) == (Verdict.BAD, str(path))
                assert finding.reason
