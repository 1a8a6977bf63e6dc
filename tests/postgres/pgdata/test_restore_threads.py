"""A restore whose files are created by a second thread is like any other."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest
from isal import igzip
from support.restore_helpers import (
    CONTROL,
    CONTROL_BYTES,
    FailingFile,
    directory,
    file,
    link,
    make_large_tar,
    refusal,
    restored,
)

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import restore_tarball

if TYPE_CHECKING:
    from pathlib import Path


class ThreadSpy:
    """Which threads create files, and whether one beside the caller's has done so yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[str, threading.Thread] = {}
        self.is_at_work = threading.Event()
        self._caller = threading.current_thread()
        self._open = os.open
        monkeypatch.setattr(os, "open", self._noted_open)

    def _noted_open(self, path: str, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            self.threads[path] = threading.current_thread()
            if threading.current_thread() is not self._caller:
                self.is_at_work.set()
        return self._open(path, flags, *args, **kwargs)

    def check(self) -> None:
        """A second thread has created files after the first, and has ended."""
        assert self.threads["base/1"] is self._caller
        (second,) = {*self.threads.values()} - {self._caller}
        assert second.name == "bbcache-write"
        assert not second.is_alive()


@pytest.mark.parametrize("sync", [False, True])
def test_large_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sync: bool) -> None:
    """What a second thread creates is the same, and that thread has ended at the end."""
    spy = ThreadSpy(monkeypatch)
    long, empty = file("base/long", 3_000_000), file("base/empty")
    files = restored(igzip.compress(make_large_tar(long, empty)), tmp_path / "d", sync=sync)
    spy.check()
    assert len(files) == 52
    assert files["base/1"] == random.Random(1).randbytes(3000)
    assert all(files[f"base/{number}"] == bytes(600_000) for number in range(2, 50))
    assert files["base/long"] == bytes(3_000_000)
    assert files["base/empty"] == b""
    assert files[CONTROL] == CONTROL_BYTES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_modes_of_a_large_archive(tmp_path: Path) -> None:
    """What a second thread creates has the same modes and the same owner."""
    restore_tarball(
        io.BytesIO(make_large_tar(directory("more"))), tmp_path / "d", owner=(65534, 65533)
    )
    for path in (tmp_path / "d").rglob("*"):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (65534, 65533)
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("rest_bytes", [0, 8 << 20])
def test_late_write_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest_bytes: int) -> None:
    """What the second thread cannot create fails the restore, wherever the first one is."""
    spy = ThreadSpy(monkeypatch)
    name = "base/" + "x" * 256  # one more than file systems take
    tar = make_large_tar(file(name), file("base/rest", rest_bytes), style=tarfile.GNU_FORMAT)
    with pytest.raises(PostgresError, match=r"cannot write .*xxx: File name too long"):
        restore_tarball(io.BytesIO(tar), tmp_path / "d")
    spy.check()
    assert spy.threads[name] is not threading.current_thread()
    assert "base/rest" not in spy.threads
    assert not (tmp_path / "d").exists()


def test_late_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error found while the second thread works undoes the work of that thread."""
    spy = ThreadSpy(monkeypatch)
    hostile = make_large_tar(link("base/x", "1"))
    assert "is a symbolic link" in refusal(hostile, tmp_path / "d")
    assert "cut short" in refusal(make_large_tar().rstrip(b"\0"), tmp_path / "d")
    data = igzip.compress(make_large_tar())
    assert "not a valid gzip file" in refusal(data[:-1] + b"x", tmp_path / "d")
    assert spy.is_at_work.is_set()
    assert not any(thread.name == "bbcache-write" for thread in threading.enumerate())


@pytest.mark.parametrize("error", [OSError(5, "disk on fire"), KeyboardInterrupt(), ValueError()])
def test_late_read_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """What reading raises while the second thread is at work, or the user, ends that thread."""
    spy = ThreadSpy(monkeypatch)
    expected = PostgresError if isinstance(error, OSError) else type(error)
    archive = FailingFile(make_large_tar()[:26_000_000], error, spy.is_at_work)
    with pytest.raises(expected):
        restore_tarball(archive, tmp_path / "d")
    spy.check()
    assert not (tmp_path / "d").exists()
