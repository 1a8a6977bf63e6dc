"""What a client reads of an error, and what the log has of it."""

from __future__ import annotations

import errno

import pytest

from bbcache.errors import BbcacheError, PostgresError, StoreError
from bbcache.page_service.access_log import one_line
from bbcache.page_service.errors import CommandError

_UNNAMED = "the log of the service has the reason"


def caused_by(cause: BaseException) -> CommandError:
    """The error of a command that has failed for a reason."""
    error = CommandError("cannot build the basebackup")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (PostgresError("cannot read /srv/a b/global: I/O error"), _UNNAMED),
        (PostgresError("'/srv/x' is a link"), _UNNAMED),
        (PostgresError("(/srv/x)"), _UNNAMED),
        (
            StoreError("cannot write /srv/x: No space left on device", errno=errno.ENOSPC),
            "No space left on device",
        ),
        (StoreError("cannot use /srv/x"), _UNNAMED),
        (
            PostgresError("global/pg_control at 0/16B5A50 is cut"),
            "global/pg_control at 0/16B5A50 is cut",
        ),
        (FileNotFoundError(2, "No such file", "/srv/x"), "FileNotFoundError"),
    ],
)
def test_a_client_reads_no_path(cause: BaseException, told: str) -> None:
    """What the disk has said is told, where it lies is not; the log has both."""
    error = caused_by(cause)
    assert error.simple_text() == f"cannot build the basebackup: {told}"
    assert error.extended_text() == "cannot build the basebackup"
    if isinstance(cause, BbcacheError):
        assert str(cause) in one_line(error)


def test_a_hint_names_no_path_either() -> None:
    """One that does is left out; the next one that does not is given."""
    inner = caused_by(PostgresError("no\nhint: Ask for help."))
    middle = PostgresError("it runs\nhint: Remove /srv/x/postmaster.pid.")
    middle.__cause__ = inner
    error = caused_by(middle)
    assert error.hint() == "Ask for help."
    assert caused_by(PostgresError("x\nhint: See /srv/x.")).hint() is None
