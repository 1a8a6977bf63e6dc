"""The name of a snapshot: a hash of all that its contents depend on.

No absolute path and no time goes in: in continuous integration both differ in every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.testing.postgres.errors import SnapshotError
from bbcache.testing.postgres.snapshots import Snapshot

# Another number makes every snapshot again: raise it where they are made in another way.
_FORMAT_VERSION: Final = "1"
_NO_LIBRARIES: Final = ("bitcode", "pgxs")  # hundreds of directories for compilers
_SHARED_DIRS: Final = ("", "extension", "timezonesets", "tsearch_data")


def fingerprint(snapshot: Snapshot, installation: bytes, settings: Mapping[str, str]) -> bytes:
    """Return 32 bytes that change with everything that the snapshot is made of.

    Args:
        snapshot: the snapshot.
        installation: the hash of the PostgreSQL that makes it.
        settings: the server settings while it is made.

    Raises:
        SnapshotError: an input cannot be found or read.
    """
    hasher = _Framed()
    hasher.add("format", _FORMAT_VERSION)
    hasher.add("installation", installation)
    for argument in snapshot.initdb_args:
        hasher.add("initdb", argument)
    for name, value in sorted(settings.items()):
        hasher.add("setting", f"{name}={value}")
    for relative, path in snapshot.input_files():
        hasher.add("input", relative)
        try:
            hasher.add("content", path.read_bytes())
        except OSError as error:
            raise SnapshotError(
                f"snapshot {snapshot.name}: cannot read its input {path}: {error.strerror}"
            ) from error
    hasher.add("source", snapshot.source())
    hasher.add("version", snapshot.version)
    return hasher.digest()


class _Framed:
    """A hash of labelled values; no two sequences of values give the same bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, label: str, value: str | bytes) -> None:
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        self._hash.update(b"%s %d\n" % (label.encode(), len(data)))
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def installation_hash(binaries: PostgresBinaries, memo_dir: Path) -> bytes:
    """Return a hash of the server's version, its program, libraries and extensions.

    They are read once. While their paths, sizes and times stay, the hash is remembered in
    `memo_dir`, where that can be written.
    """
    listed = _Framed()
    listed.add("version", binaries.version)
    files = list(_installed_files(binaries, memo_dir))
    for name, path, status in files:
        listed.add("file", f"{name} {path} {status.st_size} {status.st_mtime_ns}")
    memo = memo_dir / listed.digest().hex()
    with contextlib.suppress(OSError, ValueError):
        return bytes.fromhex(memo.read_text())
    hasher = _Framed()
    hasher.add("version", binaries.version)
    for name, path, _ in files:
        hasher.add("file", name)
        hasher.add("content", Path(path).read_bytes())
    _remember(memo, hasher.digest().hex())
    return hasher.digest()


def _remember(memo: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        memo.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = memo.with_name(f"{memo.name}.{os.urandom(6).hex()}")
        part.write_text(text)
        part.rename(memo)


def _installed_files(
    binaries: PostgresBinaries, memo_dir: Path
) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield files with a name that is the same on every machine, in order."""
    bindir = binaries.installed_bindir
    programs = list(_statuses("bin", bindir, ["postgres", "initdb"]))
    yield from programs
    library_dir, shared_dir = _remembered_directories(binaries, programs, memo_dir)
    yield from _statuses("lib", library_dir, _libraries(library_dir))
    for name in _SHARED_DIRS:
        directory = shared_dir / name
        with contextlib.suppress(OSError):
            yield from _statuses(f"share/{name}", directory, os.listdir(directory))


def _remembered_directories(
    binaries: PostgresBinaries,
    programs: Iterable[tuple[str, str, os.stat_result]],
    memo_dir: Path,
) -> tuple[Path, Path]:
    """Return `_directories` without running a program, while those that there are stay."""
    listed = _Framed()
    for _, path, status in programs:
        listed.add("program", f"{path} {status.st_size} {status.st_mtime_ns}")
    memo = memo_dir / f"{listed.digest().hex()}.directories"
    with contextlib.suppress(OSError, ValueError):
        library_dir, shared_dir = memo.read_text().split("\n")
        return Path(library_dir), Path(shared_dir)
    found = _directories(binaries, binaries.installed_bindir)
    _remember(memo, "\n".join(map(str, found)))
    return found


def _directories(binaries: PostgresBinaries, bindir: Path) -> tuple[Path, Path]:
    try:
        said = binaries.run("pg_config", "--pkglibdir", "--sharedir").splitlines()
    except PostgresError:
        return bindir.parent / "lib", bindir.parent / "share"
    # Of a copy, those of the original.
    prefix, original = str(binaries.bindir.parent), str(bindir.parent)
    library_dir, shared_dir = (
        original + each.removeprefix(prefix) if each.startswith(prefix) else each for each in said
    )
    return Path(library_dir), Path(shared_dir)


def _libraries(directory: Path) -> list[str]:
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in _NO_LIBRARIES]
        relative = os.path.relpath(parent, directory)
        found += [os.path.normpath(f"{relative}/{name}") for name in names if ".so" in name]
    return found


def _statuses(
    label: str, directory: Path, names: Iterable[str]
) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield those that are files; paths are text, since a `Path` costs more than its stat."""
    for name in sorted(names):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):  # a link that leads nowhere
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                yield f"{label}/{name}", path, status
