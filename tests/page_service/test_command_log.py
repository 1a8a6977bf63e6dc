"""A line for each command: of its own time, and none is lost."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest
from helpers import LSN, TENANT, TIMELINE, wait_until

from bbcache.metrics import Source
from bbcache.page_service import command_log
from bbcache.page_service.command import BasebackupCommand
from bbcache.page_service.command_log import CommandLog, EndedCommand
from bbcache.page_service.errors import CanceledError, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = BasebackupCommand(TENANT, TIMELINE, LSN, is_gzip=True)


def ended(number: int = 1, failure: BaseException | None = None) -> EndedCommand:
    """A command that has sent so many bytes."""
    return EndedCommand(COMMAND, "1.2.3.4:5", Source.HIT, failure, number, 0.25, 1e9 + 0.125)


@pytest.fixture
def log() -> Iterator[CommandLog]:
    """A log that is closed at the end, and leaves no thread."""
    log = CommandLog()
    yield log
    log.close(10.0)
    assert not [each for each in threading.enumerate() if each.name == "bbcache-log"]


@pytest.fixture(autouse=True)
def _all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=command_log.__name__)


def test_what_went_well_is_logged_soon(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """With its own time, not that of the writing."""
    log.start()
    log.add(ended())
    wait_until(lambda: caplog.records)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"basebackup {TENANT} {TIMELINE} {LSN} gzip for 1.2.3.4:5: "
        "result=ok bbcache_source=hit bytes=1 seconds=0.250"
    )
    assert (record.created, record.msecs, record.levelname) == (1e9 + 0.125, 125, "INFO")


@pytest.mark.parametrize(
    ("failure", "level", "end"),
    [
        (CommandError("no\nhint: Try."), "WARNING", "result=error bbcache_source=hit bytes=1 "),
        (CanceledError("stop"), "INFO", "result=client_error bbcache_source=hit bytes=1 "),
    ],
)
def test_what_failed_is_logged_at_once(
    log: CommandLog,
    caplog: pytest.LogCaptureFixture,
    failure: BaseException,
    level: str,
    end: str,
) -> None:
    """Without a thread, and with its reason."""
    log.add(ended(failure=failure))
    (record,) = caplog.records
    assert record.levelname == level
    assert end in record.getMessage()
    assert record.getMessage().endswith(f": {str(failure).splitlines()[0]}")


def test_a_close_loses_nothing(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever waits is logged in order, and what comes later on the spot."""
    log.start()
    for number in range(500):
        log.add(ended(number))
    log.close(10.0)
    assert [f"bytes={number} " in text for number, text in enumerate(caplog.messages)] == [
        True
    ] * 500
    log.add(ended(500))
    assert "bytes=500 " in caplog.messages[500]


def test_a_log_that_never_started(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """Logs at its close."""
    log.add(ended())
    assert not caplog.records
    log.close(10.0)
    assert len(caplog.records) == 1


def test_what_waits_is_bounded(
    log: CommandLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes where too much waits logs by itself."""
    monkeypatch.setattr(command_log, "_MOST_WAITING", 3)
    for number in range(5):
        log.add(ended(number))
    assert ["bytes=3 " in caplog.messages[0], "bytes=4 " in caplog.messages[1]] == [True, True]
    log.close(10.0)
    assert len(caplog.messages) == 5
