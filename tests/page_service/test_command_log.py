"""A line for each command: of its own time, and none is lost."""

from __future__ import annotations

import logging
import threading

import pytest
from support.cache_helpers import DEADLINE_S, Worker
from support.helpers import LSN, TENANT, TIMELINE

from bbcache.outcomes import Source
from bbcache.page_service import command_log
from bbcache.page_service.command_log import CommandLog, EndedCommand
from bbcache.page_service.errors import CanceledError, CommandError
from bbcache.page_service.line_handler import MORE_FOLLOWS
from bbcache.page_service.protocol.command import BasebackupCommand

COMMAND = BasebackupCommand(TENANT, TIMELINE, LSN, is_gzip=True)


def ended(number: int = 1, failure: BaseException | None = None) -> EndedCommand:
    """A command that has sent so many bytes."""
    return EndedCommand(COMMAND, "1.2.3.4:5", Source.HIT, failure, number, 0.25, 1e9 + 0.125)


@pytest.fixture
def log() -> CommandLog:
    """A log."""
    return CommandLog()


@pytest.fixture(autouse=True)
def _all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=command_log.__name__)


def test_what_went_well_is_logged_later(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """With its own time, not that of the writing."""
    log.add(ended())
    assert not caplog.records
    log.catch_up()
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
    """With its reason."""
    log.add(ended(failure=failure))
    (record,) = caplog.records
    assert record.levelname == level
    assert end in record.getMessage()
    assert record.getMessage().endswith(f": {str(failure).splitlines()[0]}")


def test_nothing_is_lost(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """What waits is logged in order; what is too much to wait, at once."""
    for number in range(500):
        log.add(ended(number))
    assert 500 - command_log._MOST_WAITING < len(caplog.records) < 500
    log.catch_up()
    wanted = [f"bytes={number} " in text for number, text in enumerate(caplog.messages)]
    assert wanted == [True] * 500
    log.catch_up()
    assert len(caplog.records) == 500


def test_what_is_logged_at_once_is_a_burst(
    log: CommandLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Each record but the last says that more follows; one alone does not."""

    def follows() -> list[bool]:
        return [getattr(record, MORE_FOLLOWS) for record in caplog.records]

    for number in range(3):
        log.add(ended(number))
    log.catch_up()
    assert follows() == [True, True, False]
    caplog.clear()
    log.add(ended())
    log.catch_up()
    log.add(ended(failure=CanceledError("stop")))
    assert follows() == [False, False]


def test_many_threads_catch_up(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """Each line is logged once, whoever takes it."""
    barrier = threading.Barrier(4)

    def add_and_catch_up(first: int) -> None:
        barrier.wait(DEADLINE_S)
        for number in range(first, first + 300):
            log.add(ended(number))
            log.catch_up()

    workers = [Worker(add_and_catch_up, 1000 * part) for part in range(4)]
    for worker in workers:
        worker.result()
    assert len(set(caplog.messages)) == len(caplog.messages) == 1200


def test_a_handler_that_fails(log: CommandLog, caplog: pytest.LogCaptureFixture) -> None:
    """It costs its own lines, and nobody's command."""

    class Failing(logging.Handler):
        """Takes nothing."""

        def emit(self, _: logging.LogRecord) -> None:
            """Fail."""
            raise ValueError("no")

    failing = Failing()
    logging.getLogger(command_log.__name__).addHandler(failing)
    try:
        log.add(ended(1))
        log.add(ended(2))
        log.add(ended(3, CommandError("no")))
        log.catch_up()
    finally:
        logging.getLogger(command_log.__name__).removeHandler(failing)
    log.catch_up()
    assert not caplog.records
    log.add(ended(4))
    log.catch_up()
    assert "bytes=4" in caplog.text
