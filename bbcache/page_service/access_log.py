"""The line in the log for each command, and its count in the metrics."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from bbcache.outcomes import Source
from bbcache.page_service.errors import (
    CanceledError,
    DisconnectedError,
    PageServiceError,
    ShutdownError,
)
from bbcache.page_service.metrics import Result, ServiceMetrics
from bbcache.page_service.protocol.command import BasebackupCommand

_NO_ORIGIN: Final = "none"

log = logging.getLogger(__name__)
"""Gets a line for each command: a warning where the service failed, otherwise an INFO."""


class EndedCommand(NamedTuple):
    """A command that has ended.

    Attributes:
        command: the command.
        peer: the address of the client.
        origin: the source of the archive; None without an archive.
        failure: why it failed; None if it did not.
        sent_bytes: how many bytes of the archive were sent.
        seconds: how long it took.
    """

    command: BasebackupCommand
    peer: str
    origin: Source | None
    failure: BaseException | None
    sent_bytes: int
    seconds: float

    @property
    def result(self) -> Result:
        """How it ended."""
        if self.failure is None:
            return Result.OK
        is_clients = isinstance(self.failure, DisconnectedError | CanceledError)
        return Result.CLIENT_ERROR if is_clients else Result.ERROR

    def account(self, metrics: ServiceMetrics) -> None:
        """Count it, and write the line."""
        metrics.copied_bytes.inc(self.sent_bytes)
        if not isinstance(self.failure, ShutdownError):  # which Neon does not observe either
            metrics.served(self.result, self.origin, self.seconds)
        level = logging.WARNING if self.result is Result.ERROR else logging.INFO
        if log.isEnabledFor(level):  # without a look at the stack, which half of a line's time took
            log.handle(log.makeRecord(log.name, level, __file__, 0, "%s", (self,), None))

    def __str__(self) -> str:
        reason = "" if self.failure is None else f": {one_line(self.failure)}"
        return (
            f"{self.command} for {self.peer}: result={self.result} "
            f"bbcache_source={self.origin or _NO_ORIGIN} bytes={self.sent_bytes} "
            f"seconds={self.seconds:.3f}{reason}"
        )


def one_line(error: BaseException) -> str:
    """Put an error into one line of the log."""
    if isinstance(error, PageServiceError):
        return ascii(error.log_text())[1:-1]
    return type(error).__name__
