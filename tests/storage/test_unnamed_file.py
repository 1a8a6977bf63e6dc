"""A file without a name: there as long as it is open, and never to be seen."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from bbcache.storage.files import UnnamedFile

if TYPE_CHECKING:
    from pathlib import Path


def test_an_unnamed_file_is_gone_with_its_descriptor(tmp_path: Path) -> None:
    """Its link opens it again while it is open; the directory never lists it."""
    file = UnnamedFile.create(str(tmp_path), "name")
    assert file.path == str(tmp_path / "name")
    file.append(b"bytes")
    assert os.listdir(tmp_path) == []
    fd = os.open(file.link, os.O_RDONLY)
    file.close()
    assert os.pread(fd, 10, 0) == b"bytes"
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.close(fd)


def test_an_unnamed_file_is_not_inherited(tmp_path: Path) -> None:
    """A program that the host starts does not get its descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    file = UnnamedFile.create(str(tmp_path), "name")
    new = {int(name) for name in set(os.listdir("/proc/self/fd")) - before}
    opened = [fd for fd in new if os.path.exists(f"/proc/self/fd/{fd}") or fd == max(new)]
    assert [fd for fd in opened if _is_inheritable(fd)] == []
    file.close()


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # of the listing itself
        return False


def test_a_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """The error is the operating system's."""
    with pytest.raises(FileNotFoundError):
        UnnamedFile.create(str(tmp_path / "gone"), "name")
