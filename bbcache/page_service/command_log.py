"""A line in the log for each command that has ended."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

from bbcache.outcomes import Source
from bbcache.page_service.errors import (
    CanceledError,
    DisconnectedError,
    PageServiceError,
)
from bbcache.page_service.line_handler import MORE_FOLLOWS
from bbcache.page_service.metrics import Result
from bbcache.page_service.protocol.command import BasebackupCommand

_MOST_WAITING: Final = 64
_NO_ORIGIN: Final = "none"

log = logging.getLogger(__name__)


class EndedCommand(NamedTuple):
    """A command that has ended.

    Attributes:
        command: what was asked for.
        peer: by whom.
        origin: where the archive came from; None where there was none.
        failure: why it has failed; None where it has not.
        sent_bytes: how many bytes of the archive were sent.
        seconds: how long it took.
        at_s: when it ended, in seconds since 1970.
    """

    command: BasebackupCommand
    peer: str
    origin: Source | None
    failure: BaseException | None
    sent_bytes: int
    seconds: float
    at_s: float

    @property
    def result(self) -> Result:
        """How it ended."""
        if self.failure is None:
            return Result.OK
        is_clients = isinstance(self.failure, DisconnectedError | CanceledError)
        return Result.CLIENT_ERROR if is_clients else Result.ERROR

    def __str__(self) -> str:
        reason = "" if self.failure is None else f": {one_line(self.failure)}"
        return (
            f"{self.command} for {self.peer}: result={self.result} "
            f"bbcache_source={self.origin or _NO_ORIGIN} bytes={self.sent_bytes} "
            f"seconds={self.seconds:.3f}{reason}"
        )


class CommandLog:
    """Logs commands that have ended. Thread-safe.

    What has gone well waits until there is nothing better to do, many at once: by itself a
    line takes as long as half of all else that a small hit needs, since its code has left
    the processor's caches by then. What has failed is logged on the spot.
    """

    def __init__(self) -> None:
        self._waiting: deque[EndedCommand] = deque()

    def add(self, ended: EndedCommand) -> None:
        """Log a command, now or at the next `catch_up`."""
        if ended.failure is not None:
            _log(ended)
            return
        self._waiting.append(ended)
        if len(self._waiting) >= _MOST_WAITING:
            self.catch_up()

    def catch_up(self) -> None:
        """Log all that waits, as one burst."""
        ended = []
        with suppress(IndexError):  # another thread may take the last one
            while self._waiting:
                ended.append(self._waiting.popleft())
        for left, each in enumerate(ended, 1 - len(ended)):
            _log(each, more_follows=left < 0)


def _log(ended: EndedCommand, *, more_follows: bool = False) -> None:
    level = logging.WARNING if ended.result is Result.ERROR else logging.INFO
    if log.isEnabledFor(level):
        record = log.makeRecord(log.name, level, __file__, 0, str(ended), (), None, "_log")
        record.created, record.msecs = ended.at_s, int(ended.at_s % 1 * 1000)
        setattr(record, MORE_FOLLOWS, more_follows)
        with suppress(Exception):  # of a handler: the command has ended as it has
            log.handle(record)


def one_line(error: BaseException) -> str:
    """An error as a line in the log."""
    if isinstance(error, PageServiceError):
        return ascii(error.log_text())[1:-1]
    return type(error).__name__
