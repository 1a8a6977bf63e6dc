"""The writer of an archive: buffers, ends, failures, threads, pieces, zeros."""

from __future__ import annotations

import array
import contextlib
import ctypes
import gzip
import io
import mmap
import tarfile
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib
from support.archive_helpers import RANDOM, TAR, Made
from support.cache_helpers import Gate
from support.helpers import make_keys, run_threads, seal_archive
from xxhash import xxh3_128_digest

from bbcache.archive import deflate
from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.archive.format import HEADER_SIZE_BYTES, Seal
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import ArchiveError, CacheFullError, ClosingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

LEAST_PIECE_BYTES = 1 << 18


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
