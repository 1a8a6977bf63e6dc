"""The last warnings and errors of a log, for the status page."""

from __future__ import annotations

import logging
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
        times: how many records of this kind there were: same logger, level and wording. The
            others may have named other objects.
        first_at: when the first of them was, as `at`.
    """

    at: str
    level: str
    logger: str
    text: str
    times: int = 1
    first_at: str = ""


class RecentErrors(logging.Handler):
    """Keeps the last records of a level and above, grouped by wording. Thread-safe.

    So a warning that comes again and again hides no other one.

    Args:
        most: how many groups to keep.
        level: the lowest level to keep.
    """

    def __init__(self, most: int = 50, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._most = most
        # The newest is last. Guarded by the handler's lock.
        self._groups: dict[tuple[str, str, str], RecentError] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; never raises."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f"\n{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            if len(text) > _MAX_CHARACTERS:
                text = text[:_MAX_CHARACTERS] + "..."
            key = record.name, record.levelname, str(record.msg)
            before = self._groups.pop(key, None)
            times, first_at = (before.times + 1, before.first_at) if before else (1, at)
            self._groups[key] = RecentError(
                at, record.levelname, record.name, text, times, first_at
            )
            if len(self._groups) > self._most:
                del self._groups[next(iter(self._groups))]
        except Exception:  # noqa: BLE001 - what logging does with a record that cannot be shown
            self.handleError(record)

    def newest_first(self) -> list[RecentError]:
        """Return the newest record of each group."""
        self.acquire()
        try:
            return list(reversed(self._groups.values()))
        finally:
            self.release()
