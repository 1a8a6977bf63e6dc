"""Hints for disk errors, and the error of a step on the disk."""

from __future__ import annotations

import errno

import pytest

from bbcache.errors import ArchiveError, StoreError
from bbcache.storage.disk_errors import disk_step, hint_for


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS),
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.EIO),
    ],
    ids=errno.errorcode.__getitem__,
)
def test_disk_errors_come_with_a_hint(number: int) -> None:
    """Each error that an operator can fix has a full sentence on its own line."""
    hint = hint_for(OSError(number, "x"))
    assert hint.startswith("\nhint: ")
    assert hint.count("\n") == 1
    assert hint.endswith(".")
    assert hint[7].isupper()


def test_a_hint_is_not_repeated() -> None:
    """An error of our own has its hint in its text."""
    error = StoreError("cannot lock\nhint: Do this.", errno=errno.EACCES)
    assert hint_for(error) == ""


@pytest.mark.parametrize("error", [OSError(errno.EXDEV, "x"), OSError("x"), ValueError("x")])
def test_other_errors_have_no_hint(error: Exception) -> None:
    """An unknown error has no hint."""
    assert hint_for(error) == ""


def test_a_step_on_the_disk_raises_a_store_error_with_its_cause() -> None:
    """The text has step, path, cause and hint; errno is kept."""
    cause = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError) as caught, disk_step("write", "/data/x"):
        raise cause
    assert str(caught.value).split("\n")[0] == "cannot write /data/x: No space left on device"
    assert "\nhint: " in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [StoreError("x", errno=5), ArchiveError("x"), ValueError("x")])
def test_other_errors_pass_a_step_unchanged(error: Exception) -> None:
    """A StoreError passes unchanged."""
    with pytest.raises(type(error)) as caught, disk_step("write", "/data/x"):
        raise error
    assert caught.value is error


def test_a_step_that_works_says_nothing() -> None:
    """A block without an error is not affected."""
    with disk_step("write", "/data/x"):
        done = True
    assert done
