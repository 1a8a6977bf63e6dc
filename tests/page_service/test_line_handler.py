"""A line for each record, those of a burst by one write, and nothing is kept for long."""

from __future__ import annotations

import io
import logging
import threading
import time

import pytest
from support.cache_helpers import DEADLINE_S, Worker

from bbcache.page_service.line_handler import MORE_FOLLOWS, LineHandler

MORE = {MORE_FOLLOWS: True}


class Stream(io.StringIO):
    """Keeps each write apart.

    Attributes:
        writes: the texts.
        flushed: how many there were at each flush.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.flushed: list[int] = []
        self.fails = False

    def write(self, text: str) -> int:
        """Take a text, or fail."""
        if self.fails:
            raise OSError("nobody reads")
        self.writes.append(text)
        return len(text)

    def flush(self) -> None:
        """Count."""
        self.flushed.append(len(self.writes))


@pytest.fixture
def stream() -> Stream:
    """Where the lines go."""
    return Stream()


@pytest.fixture
def handler(stream: Stream) -> LineHandler:
    """A handler that writes there."""
    return LineHandler(stream)


@pytest.fixture
def logger(handler: LineHandler) -> logging.Logger:
    """A logger of its own."""
    logger = logging.Logger("a.b", logging.INFO)  # noqa: LOG001 - no other test shall see it
    logger.addHandler(handler)
    return logger


def messages(stream: Stream) -> list[list[str]]:
    """The messages of each write."""
    return [[line.split(": ", 1)[1] for line in text.splitlines()] for text in stream.writes]


def test_each_line_is_written_at_once(stream: Stream, logger: logging.Logger) -> None:
    """And flushed."""
    logger.info("one")
    logger.warning("two %d", 2)
    assert messages(stream) == [["one"], ["two 2"]]
    assert stream.flushed == [1, 2]


def test_a_burst_is_one_write(stream: Stream, logger: logging.Logger) -> None:
    """In order, whoever logs the last line of it."""
    logger.info("one", extra=MORE)
    logger.info("two", extra=MORE)
    assert not stream.writes
    logger.error("three")
    assert messages(stream) == [["one", "two", "three"]]
    logger.info("four")
    assert messages(stream)[1:] == [["four"]]


def test_flush_writes_what_is_kept(
    stream: Stream, handler: LineHandler, logger: logging.Logger
) -> None:
    """As at the end of a process, where the next line may not come."""
    logger.info("one", extra=MORE)
    handler.flush()
    handler.flush()
    assert messages(stream) == [["one"]]


def test_the_form_of_a_line(stream: Stream, handler: LineHandler) -> None:
    """It is what logging itself makes of it, second by second, with tracebacks."""
    usual = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    failure = (ValueError, ValueError("x"), None)
    for at_s in (1e9, 1e9 + 0.0625, 1e9 + 0.999, 1e9 + 1, 1e9 - 1, time.time()):
        record = logging.LogRecord("a", logging.INFO, __file__, 1, "m %s", ("n",), failure)
        record.created, record.msecs = at_s, int(at_s % 1 * 1000)
        handler.handle(record)
        assert stream.writes[-1] == usual.format(record) + "\n"


def test_a_stream_that_fails(
    stream: Stream,
    logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who logs does not hear of it, and what could not be written does not pile up."""
    stream.fails = True
    logger.info("one", extra=MORE)
    logger.info("two")
    assert "nobody reads" in capsys.readouterr().err
    stream.fails = False
    logger.info("three")
    assert messages(stream) == [["three"]]


def test_many_threads(stream: Stream, logger: logging.Logger) -> None:
    """No line is lost or written twice."""
    barrier = threading.Barrier(4)

    def log_much(part: int) -> None:
        barrier.wait(DEADLINE_S)
        for number in range(300):
            logger.info("%d", 1000 * part + number, extra=MORE)
            logger.info("%d", 1000 * part + number + 500)

    workers = [Worker(log_much, part) for part in range(4)]
    for worker in workers:
        worker.result()
    lines = [line for write in messages(stream) for line in write]
    assert len(lines) == len(set(lines)) == 2400
