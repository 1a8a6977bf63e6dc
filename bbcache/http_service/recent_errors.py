"""The last warnings and errors of a log, for the status page."""

from __future__ import annotations

import logging
from collections import deque
from datetime import UTC, datetime
from typing import Final, NamedTuple

_MAX_CHARACTERS: Final = 1000


class RecentError(NamedTuple):
    """One record of the log.

    Attributes:
        at: when, UTC, by ISO 8601.
        level: such as ``ERROR``.
        logger: the name of the logger.
        text: the message, and that of its exception; cut if it is long.
    """

    at: str
    level: str
    logger: str
    text: str


class RecentErrors(logging.Handler):
    """Keeps the last records of a level and above. Thread-safe.

    Args:
        most: how many records to keep.
        level: the lowest level to keep.
    """

    def __init__(self, most: int = 50, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._records: deque[RecentError] = deque(maxlen=most)  # guarded by the handler's lock

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; never raises."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f"\n{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            if len(text) > _MAX_CHARACTERS:
                text = text[:_MAX_CHARACTERS] + "..."
            self._records.append(RecentError(at, record.levelname, record.name, text))
        except Exception:  # noqa: BLE001 - what logging does with a record that cannot be shown
            self.handleError(record)

    def newest_first(self) -> list[RecentError]:
        """The kept records."""
        self.acquire()
        try:
            return list(reversed(self._records))
        finally:
            self.release()
