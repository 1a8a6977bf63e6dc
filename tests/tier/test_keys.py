"""Key files: which are refused, and what happens when they change."""

from __future__ import annotations

import logging
import os
import resource
from typing import TYPE_CHECKING

import pytest
from tier.lab import make_key_file

from bbcache.errors import ConfigError
from bbcache.tier.keys import KeyRing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_may_read_is_refused(key_file: Path, mode: int) -> None:
    """The error names the file and its mode, and says what to do."""
    key_file.chmod(mode)
    with pytest.raises(ConfigError, match=f"{key_file} has mode {mode:04o}.*\nhint: chmod 600"):
        KeyRing([str(key_file)])


@pytest.mark.parametrize("size_bytes", [0, 31, 4097])
def test_a_key_of_a_wrong_size_is_refused(key_file: Path, size_bytes: int) -> None:
    """Too short to be a secret, or too long to be a key."""
    key_file.write_bytes(b"x" * size_bytes)
    with pytest.raises(ConfigError, match=f"has {size_bytes} bytes, but must have from 32 to 4096"):
        KeyRing([str(key_file)])


def test_a_key_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """A key that is not a regular file, or is missing, is refused."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read the key {path}"):
            KeyRing([str(path)])


def test_a_key_that_is_a_fifo_does_not_hang(tmp_path: Path) -> None:
    """It is refused at once, whether or not somebody writes to it."""
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match=f"the key {path} is not a regular file"):
        KeyRing([str(path)])


def test_the_first_key_signs_and_each_one_is_found(tmp_path: Path) -> None:
    """A key is found by the id in the objects that it has signed."""
    paths = [str(make_key_file(tmp_path / name)) for name in ("a", "b")]
    ring = KeyRing(paths)
    first, second = (KeyRing([path]).signing() for path in paths)
    assert first is not None
    assert second is not None
    assert ring.signing() == first
    assert [ring.find(each.id) for each in (first, second)] == [first, second]
    assert ring.find(b"????") is None
    assert KeyRing([]).signing() is None


def test_keys_stay_in_use_while_their_file_is_bad(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is half written during a rotation costs one error line for each change."""
    ring = KeyRing([str(key_file)])
    before = ring.signing()
    key_file.write_bytes(b"short")
    for _ in range(3):
        ring.refresh()
    assert ring.signing() == before
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
    make_key_file(key_file)
    ring.refresh()
    assert ring.signing() != before


def test_keys_that_could_not_be_read_for_a_moment_are_read_again(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process without file descriptors keeps the old keys only while it has none."""
    ring = KeyRing([str(key_file)])
    before = ring.signing()
    make_key_file(key_file)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        ring.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text
    assert ring.signing() == before
    ring.refresh()
    assert ring.signing() != before


def test_a_secret_is_in_no_text_of_a_failure(key_file: Path) -> None:
    """The bytes of a key reach neither a log nor an error."""
    key_file.write_bytes(b"a secret that is too short")
    with pytest.raises(ConfigError) as caught:
        KeyRing([str(key_file)])
    assert "a secret" not in str(caught.value)
