"""A file without a name: there as long as it is open, and never to be seen."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import fail_with

from bbcache.storage.unnamed_file import UnnamedFile

if TYPE_CHECKING:
    from pathlib import Path


def test_a_nameless_file_is_gone_with_its_descriptor(tmp_path: Path) -> None:
    """It can be opened once more as long as it is open, and has no name."""
    file = UnnamedFile.create(str(tmp_path), "name")
    file.append(b"bytes")
    assert os.listdir(tmp_path) == []
    fd = os.open(file.link, os.O_RDONLY)
    file.close()
    assert os.pread(fd, 10, 0) == b"bytes"
    os.close(fd)


def test_a_nameless_file_leaves_nothing_where_it_cannot_be_unlinked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no file then, and its descriptor is closed."""
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # refused for writing
    before = os.listdir("/proc/self/fd")
    fail_with(monkeypatch, os, "unlink", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        UnnamedFile.create(str(tmp_path), "name")
    assert os.listdir("/proc/self/fd") == before
