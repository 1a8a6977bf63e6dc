"""Exceptions: their places in the hierarchy, attributes, texts, and pickling."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import bbcache
from bbcache import errors
from bbcache.errors import (
    ArchiveError,
    ArgumentError,
    BackingOffError,
    BbcacheError,
    BrokenError,
    CacheFullError,
    ClosingError,
    ConfigError,
    DeclinedError,
    DirectoryLockedError,
    EntryTooBigError,
    FillError,
    FillTimeoutError,
    LimitError,
    LowDiskError,
    MissingExtraError,
    NotReadyError,
    ParseError,
    PostgresError,
    PrepareError,
    StoreError,
    TakeoverError,
    safe_str,
)

EVERY_CLASS = {each for each in vars(errors).values() if isinstance(each, type)}
MADE: list[BbcacheError] = [
    ParseError("p"),
    ArgumentError("a must be a str, not None\nhint: Pass a str."),
    ConfigError("c"),
    MissingExtraError("it cannot start", "demo", "No module named 'rich'"),
    NotReadyError("n"),
    StoreError("s", errno=errno.EIO),
    StoreError("s\nhint: Do."),
    DirectoryLockedError("/data", 42),
    DirectoryLockedError("/data", None),
    ArchiveError("a"),
    LimitError("l"),
    CacheFullError("f"),
    DeclinedError("d"),
    LowDiskError("l"),
    EntryTooBigError("t"),
    PrepareError("p"),
    BrokenError("b\nhint: Do."),
    ClosingError("c"),
    FillError("f\nhint: Do."),
    FillTimeoutError("t"),
    BackingOffError("timeline", 3, 4.0, "2026-01-01T00:00:00.000+00:00", "why"),
    PostgresError("g"),
    TakeoverError("t", "/data", "why"),
]


def test_every_error_is_tried_here() -> None:
    """The list of this module is complete."""
    assert {type(each) for each in MADE} | {BbcacheError} == EVERY_CLASS


@pytest.mark.parametrize("error", MADE, ids=repr)
def test_every_error_has_one_base(error: BbcacheError) -> None:
    """One except clause catches all that bbcache raises."""
    assert isinstance(error, BbcacheError)


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (ParseError, {ValueError}),
        (ArgumentError, {ParseError, TypeError, ValueError}),
        (ConfigError, {ValueError}),
        (MissingExtraError, {ConfigError, ImportError, ModuleNotFoundError}),
        (StoreError, {OSError}),
        (DirectoryLockedError, {StoreError, OSError}),
        (BrokenError, {PrepareError}),
        (CacheFullError, {LimitError}),
        (EntryTooBigError, {LimitError}),
        (FillTimeoutError, {FillError, TimeoutError}),
        (BackingOffError, {FillError}),
        (TakeoverError, {PostgresError, OSError}),
    ],
)
def test_errors_are_also_what_python_programs_catch(
    cls: type[BbcacheError], bases: set[type[Exception]]
) -> None:
    """Parse errors are ValueErrors, disk errors OSErrors, both limits LimitErrors."""
    assert all(issubclass(cls, base) for base in bases)


@pytest.mark.parametrize("cls", [NotReadyError, ArchiveError, LimitError, ClosingError])
def test_other_errors_are_no_disk_errors(cls: type[BbcacheError]) -> None:
    """An error that proves damage or ends a build must not look like a failing disk."""
    assert not issubclass(cls, (OSError, ValueError))


def test_public_errors_are_those_of_the_module() -> None:
    """The package exports the very classes."""
    for name in (
        "BbcacheError",
        "ConfigError",
        "StoreError",
        "DirectoryLockedError",
        "NotReadyError",
        "BackingOffError",
        "ClosingError",
        "FillError",
        "FillTimeoutError",
    ):
        assert getattr(bbcache, name) is getattr(errors, name)
        assert name in bbcache.__all__


@pytest.mark.parametrize("error", MADE, ids=repr)
def test_errors_survive_pickle(error: BbcacheError) -> None:
    """Type, text and every attribute come back."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    check_same(again, error)


@pytest.mark.parametrize("error", MADE, ids=repr)
def test_errors_survive_copy(error: BbcacheError) -> None:
    """A copied error has the same text and attributes."""
    check_same(copy.copy(error), error)
    check_same(copy.deepcopy(error), error)


def check_same(again: BbcacheError, error: BbcacheError) -> None:
    """Compare type, text and attributes of two errors."""
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in (
        "errno",
        "data_dir",
        "pid",
        "what",
        "failure_count",
        "retry_after_s",
        "until",
        "pgdata_dir",
    ):
        assert getattr(again, name, "none") == getattr(error, name, "none")


def test_store_error_tells_text_and_errno() -> None:
    """The text is the message alone, and the error number an attribute."""
    error = StoreError("cannot write /x", errno=errno.ENOSPC)
    assert str(error) == "cannot write /x"
    assert error.errno == errno.ENOSPC
    assert StoreError("x").errno is None


def test_subclass_of_store_error_is_pickled_as_itself() -> None:
    """The base's way of pickling keeps the class."""
    error = pickle.loads(pickle.dumps(_SpecialError("x", errno=5)))  # noqa: S301 - our own bytes
    assert (type(error), str(error), error.errno) == (_SpecialError, "x", 5)


class _SpecialError(StoreError):
    """A subclass with nothing of its own."""


def test_directory_locked_error_names_directory_and_pid() -> None:
    """The error of a second cache says who holds the directory, and what to do."""
    error = DirectoryLockedError("/var/cache", 4711)
    assert (error.data_dir, error.pid) == ("/var/cache", 4711)
    first, hint = str(error).split("\n")
    assert "/var/cache" in first
    assert "4711" in first
    assert first[0].islower()
    assert hint.startswith("hint: ")
    assert hint.endswith(".")


class _BrokenError(Exception):
    """An exception of a host that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("x\ny"), "ValueError: x\ny"),
        (KeyError("x"), "KeyError: 'x'"),
        (OSError(5, "bad disk"), "OSError: [Errno 5] bad disk"),
        (StoreError("the disk is bad"), "the disk is bad"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError(), "ValueError"),
        (SystemExit(), "SystemExit"),
        (_BrokenError("x"), "_BrokenError"),
    ],
)
def test_every_exception_has_a_text(error: BaseException, text: str) -> None:
    """A log line about an exception never fails, and names the type of a foreign one."""
    assert safe_str(error) == text


def test_directory_locked_error_without_pid_says_so() -> None:
    """An unknown holder is called unknown, not None."""
    error = DirectoryLockedError("/var/cache", None)
    assert error.pid is None
    assert "unknown" in str(error)
    assert "None" not in str(error)
