"""Tars for the tests of restores, and what becomes of them."""

from __future__ import annotations

import io
import random
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from bbcache.errors import ArchiveError
from bbcache.postgres.pgdata.tarball import restore_tarball

if TYPE_CHECKING:
    import threading
    from pathlib import Path

CONTROL = "global/pg_control"
CONTROL_BYTES = bytes(range(256)) * 32


def make_tar(
    *extra: tarfile.TarInfo,
    control: bool = True,
    style: int = tarfile.USTAR_FORMAT,
    fill: bytes = b"\0",
) -> bytes:
    """A small tar: two directories, a file, then `extra` full of `fill`, then pg_control."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=style) as opened:
        opened.addfile(directory("global"))
        opened.addfile(directory("base"))
        content = random.Random(1).randbytes(3000)
        opened.addfile(file("base/1", len(content)), io.BytesIO(content))
        for member in extra:
            opened.addfile(member, io.BytesIO(fill * member.size))
        if control:
            opened.addfile(file(CONTROL, len(CONTROL_BYTES)), io.BytesIO(CONTROL_BYTES))
    return tar.getvalue()


def file(name: str, size_bytes: int = 0) -> tarfile.TarInfo:
    """The header of a file."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info


def directory(name: str) -> tarfile.TarInfo:
    """The header of a directory, with modes that a restore must not take over."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = 0o4777
    return info


def restored(data: bytes, dest: Path, **options: Any) -> dict[str, bytes]:
    """The files that restoring `data` gives."""
    restore_tarball(io.BytesIO(data), dest, **options)
    paths = (path for path in dest.rglob("*") if path.is_file())
    return {str(path.relative_to(dest)): path.read_bytes() for path in paths}


def refusal(data: bytes, dest: Path) -> str:
    """Why `data` is no archive to restore; `dest` must not be there afterwards."""
    with pytest.raises(ArchiveError) as caught:
        restore_tarball(io.BytesIO(data), dest)
    assert not dest.exists()
    return str(caught.value)


def make_large_tar(*extra: tarfile.TarInfo, style: int = tarfile.USTAR_FORMAT) -> bytes:
    """Of some 27 MiB, so that the last of it is created by the second thread; then `extra`."""
    files = [file(f"base/{number}", 600_000) for number in range(2, 50)]
    return make_tar(*files, *extra, style=style)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """The header of a link."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


class FailingFile(io.RawIOBase):
    """Gives its bytes once and then raises, when `after` is set."""

    def __init__(
        self, data: bytes, error: BaseException, after: threading.Event | None = None
    ) -> None:
        self._data: bytes | None = data
        self._error = error
        self._after = after

    def read(self, _size: int = -1, /) -> bytes:
        """All bytes the first time."""
        data, self._data = self._data, None
        if data is None:
            assert self._after is None or self._after.wait(60)
            raise self._error
        return data
