"""The line in the log for each command, and its count in the metrics."""

from __future__ import annotations

import logging

from bbcache.outcomes import Source
from bbcache.page_service.errors import (
    CanceledError,
    DisconnectedError,
    PageServiceError,
    ShutdownError,
)
from bbcache.page_service.metrics import NO_ORIGIN, Result, ServiceMetrics
from bbcache.page_service.protocol.command import BasebackupCommand

log = logging.getLogger(__name__)
"""Gets a line for each command: a warning where the service failed, otherwise an INFO."""


def account(
    metrics: ServiceMetrics,
    command: BasebackupCommand,
    peer: str,
    origin: Source | None,
    failure: BaseException | None,
    sent_bytes: int,
    seconds: float,
) -> None:
    """Count a command that has ended, and write its line.

    Args:
        metrics: where it is counted.
        command: the command.
        peer: the address of the client.
        origin: the source of the archive; None without an archive.
        failure: why it failed; None if it did not.
        sent_bytes: how many bytes of the archive were sent.
        seconds: how long it took.
    """
    is_clients = isinstance(failure, DisconnectedError | CanceledError)
    result = Result.OK if failure is None else Result.CLIENT_ERROR if is_clients else Result.ERROR
    metrics.copied_bytes.inc(sent_bytes)
    if not isinstance(failure, ShutdownError):  # which Neon does not observe either
        metrics.query_seconds[result, origin or NO_ORIGIN].observe(seconds)
    log.log(
        logging.WARNING if result is Result.ERROR else logging.INFO,
        "%s for %s: result=%s bbcache_source=%s bytes=%d seconds=%.3f%s",
        command,
        peer,
        result,
        origin or NO_ORIGIN,
        sent_bytes,
        seconds,
        "" if failure is None else f": {one_line(failure)}",
    )


def one_line(error: BaseException) -> str:
    """Put an error into one line of the log."""
    if isinstance(error, PageServiceError):
        return ascii(error.log_text())[1:-1]
    return type(error).__name__
