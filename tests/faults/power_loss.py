"""What a disk may hold after the power was lost in the middle of a life.

A model of a file system that promises no more than POSIX does, fed with the recorded
calls of a life. At each moment it knows of every name which files it has ever stood
for, and of every file what an fsync has made sure and which writes came after. None of
the directories is ever synced, so after a loss each name may stand for any of its files,
or for none, whatever became of the others; and of the writes after the last fsync any
may be missing, their bytes zeros, or the file short. So "the rename is on the disk, the
data are not" is among the images, as is everything that a file system with a journal
leaves behind.

What somebody else did to the directory counts as being on the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from faults import fixed_host, shim
from faults.calls import read_log

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from faults.calls import Call
    from faults.harness import Bench

_DIRECTORIES: Final = ("tmp", "quarantine")


class Write(NamedTuple):
    """Bytes put at an offset; or, without bytes, the file cut there."""

    offset: int
    data: bytes | None


class Content(NamedTuple):
    """One version of a file's bytes, and whether somebody else has had a hand in it."""

    data: bytes
    is_damaged: bool


@dataclass(slots=True)
class File:
    """One file, whatever its names.

    Attributes:
        synced: its bytes as the last fsync has made sure.
        pending: the writes since.
        is_damaged: whether somebody else has written to it.
    """

    synced: bytes = b""
    pending: list[Write] = field(default_factory=list)
    is_damaged: bool = False

    def copy(self) -> File:
        """The file at this moment."""
        return File(self.synced, list(self.pending), self.is_damaged)

    def whole(self) -> bytes:
        """Its bytes as a reader sees them now."""
        return applied(self.synced, self.pending)

    def zeroed(self) -> bytes:
        """Its size is on the disk, but of what was written since the fsync nothing."""
        blank = [w if w.data is None else Write(w.offset, bytes(len(w.data))) for w in self.pending]
        return applied(self.synced, blank)

    def any_state(self, rng: random.Random) -> bytes:
        """Any state that an fsync does not rule out."""
        simple = {0: self.whole, 1: self.zeroed}.get(which := rng.randrange(6))
        if simple is not None:
            return simple()
        return self.synced if which == 2 else self.torn(rng)

    def torn(self, rng: random.Random) -> bytes:
        """Any of the writes are there, in part or not at all, in whatever order."""
        kept = []
        for write in self.pending:
            if write.data is None or rng.random() < 1 / 2:
                kept.append(write)
            elif rng.random() < 1 / 2:
                kept.append(Write(write.offset, write.data[: rng.randrange(len(write.data) + 1)]))
        return applied(self.synced, kept)


def applied(content: bytes, writes: Iterable[Write]) -> bytes:
    """`content` after some writes; gaps are zeros."""
    data = bytearray(content)
    for write in writes:
        if write.data is None:
            data = data[: write.offset].ljust(write.offset, b"\0")
            continue
        data.extend(bytes(max(0, write.offset - len(data))))
        data[write.offset : write.offset + len(write.data)] = write.data
    return bytes(data)


Image = dict[str, Content]  # by path below the directory


class Disk:
    """The model. Paths are relative to the directory.

    Args:
        data_dir: the directory, as the life will find it: all of that is on the disk.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = str(data_dir)
        self._files: list[File] = []
        self.names: dict[str, list[int | None]] = {}  # every file a name has stood for
        self._open: dict[tuple[int, str], int] = {}
        self._positions: dict[tuple[int, str], int] = {}
        for folder, _, names in os.walk(data_dir):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    content = file.read()
                entry = fixed_host.parse_name(name)
                is_damaged = entry is not None and not fixed_host.is_right(content, *entry)
                number = self._add(File(content, is_damaged=is_damaged))
                self.names[self._relative(path)] = [number]

    def apply(self, call: Call) -> bool:
        """Let a recorded call happen; returns whether it has changed anything."""
        if call.error or call.op not in _EFFECTS:
            return False
        path = self._relative(call.path)
        is_outside = call.number == 0
        match call.op:
            case "open":
                return self._opened(call, path)
            case "close":
                self._open.pop((call.fd, path), None)
                return False
            case "rename":
                self.bind(self._relative(call.path2), self.names[path][-1], is_outside)
                self.bind(path, None, is_outside)
                return True
            case "unlink":
                self.bind(path, None, is_outside)
                return True
        return self._on_file(call, (call.fd, path))

    def images(self, rng: random.Random, count: int) -> Iterator[Image]:
        """What the disk may hold, were the power lost now: the extremes, then any.

        Args:
            rng: chooses.
            count: how many are chosen at random.
        """
        newest = {name: files[-1] for name, files in self.names.items()}
        yield self._image(newest, [file.whole() for file in self._files])
        yield self._image(newest, [file.zeroed() for file in self._files])
        yield self._image(newest, [file.synced for file in self._files])
        for _ in range(count):
            names = {name: rng.choice(files) for name, files in self.names.items()}
            yield self._image(names, [file.any_state(rng) for file in self._files])

    def _image(self, names: dict[str, int | None], contents: list[bytes]) -> Image:
        return {
            name: Content(contents[number], self._files[number].is_damaged)
            for name, number in names.items()
            if number is not None
        }

    def _opened(self, call: Call, path: str) -> bool:
        numbers = self.names.get(path, [None])
        number, is_new = numbers[-1], numbers[-1] is None
        if number is None and not call.offset & os.O_CREAT:  # by a link of the kernel's
            return False
        if number is None:
            number = self._add(File())
            self.bind(path, number, call.number == 0)
        self._open[call.result, path] = number
        self._positions[call.result, path] = 0
        if call.offset & os.O_TRUNC and not is_new:
            self._files[number].pending.append(Write(0, None))
        return is_new

    def _on_file(self, call: Call, descriptor: tuple[int, str]) -> bool:
        number = self._open.get(descriptor)
        if number is None:  # a directory
            return False
        file = self._files[number]
        match call.op:
            case "lseek":
                self._positions[descriptor] = call.result
                return False
            case "read":
                self._positions[descriptor] += call.result
                return False
            case "write":
                file.pending.append(Write(self._positions[descriptor], call.data))
                self._positions[descriptor] += call.result
            case "pwrite":
                file.pending.append(Write(call.offset, call.data))
            case "ftruncate":
                file.pending.append(Write(call.offset, None))
        if call.number == 0:
            file.is_damaged = True
        if call.op == "fsync" or call.number == 0:
            file.synced, file.pending = file.whole(), []
        return True

    def bind(self, name: str, number: int | None, is_outside: bool) -> None:
        """Let a name stand for a file from now on, or for none."""
        if is_outside:
            self.names[name] = [number]
        else:
            self.names.setdefault(name, [None]).append(number)

    def _add(self, file: File) -> int:
        self._files.append(file)
        return len(self._files) - 1

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root)


_EFFECTS: Final = frozenset(
    (
        *("open", "close", "rename", "unlink"),
        *("lseek", "read", "write", "pwrite", "ftruncate", "fsync"),
    )
)


def all_images(disk: Disk, calls: list[Call], rng: random.Random, count: int) -> list[Image]:
    """Every image of every moment of a life, each once.

    Args:
        disk: as it was before the life.
        calls: of the life.
        rng: chooses.
        count: how many images of a moment are chosen at random, beside the extremes.
    """
    found: dict[bytes, Image] = {}
    for call in calls:
        if disk.apply(call):
            for image in disk.images(rng, count):
                found.setdefault(_digest(image), image)
    return list(found.values())


def _digest(image: Image) -> bytes:
    hasher = hashlib.sha256()
    for name, content in sorted(image.items()):
        for part in (name.encode(), content.data):
            hasher.update(hashlib.sha256(part).digest())
    return hasher.digest()


def corrupt_entries(image: Image) -> list[str]:
    """Entries that are not whole, though nobody but the power has touched them."""
    found = []
    for name, content in image.items():
        entry = fixed_host.parse_name(name)
        if entry and not content.is_damaged and not fixed_host.is_right(content.data, *entry):
            found.append(f"{entry.name} at {entry.lsn} has {len(content.data)} bytes of its own")
    return found


def write_image(image: Image, data_dir: Path) -> None:
    """Make a directory out of an image."""
    shutil.rmtree(data_dir, ignore_errors=True)
    for name in _DIRECTORIES:
        (data_dir / name).mkdir(parents=True)
    for name, content in image.items():
        (data_dir / name).write_bytes(content.data)


def without_damaged_entries(image: Image) -> Image:
    """The image without the entries that somebody has damaged."""
    return {
        name: content
        for name, content in image.items()
        if not (content.is_damaged and fixed_host.parse_name(name))
    }


def record_life(bench: Bench, mutation: str | None = None) -> tuple[Disk, list[Call]]:
    """Live without fault; returns the disk as it was before, and the calls."""
    data_dir, log = bench.directory / "cache", bench.directory / "log"
    log.unlink(missing_ok=True)
    fixed_host.seed(data_dir)
    disk = Disk(data_dir)
    lived = bench.fork_server.run(
        "life", data_dir, told=shim.settings(data_dir, log=log), mutation=mutation
    )
    assert mutation is not None or not lived.complaints(), lived.complaints()
    return disk, read_log(log)


def start_on(bench: Bench, image: Image, verify_reads: str) -> list[str]:
    """Start a cache on an image; returns everything that is not as it must be.

    Args:
        bench: where.
        image: what the disk holds.
        verify_reads: of the cache. With ``never`` it serves what looks whole, so that
            the image must be as good as the promise: what somebody has damaged is
            taken out before.
    """
    if verify_reads == "never":
        image = without_damaged_entries(image)
    data_dir = bench.directory / "image"
    write_image(image, data_dir)
    started = bench.fork_server.run(
        "restart", data_dir, survivors=fixed_host.UNTOUCHED, verify_reads=verify_reads
    )
    return corrupt_entries(image) + started.complaints()
