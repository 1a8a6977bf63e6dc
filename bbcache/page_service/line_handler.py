"""Writing the log to a stream: a line for each record, and those of a burst by one write."""

from __future__ import annotations

import logging
import time
from typing import Final, TextIO

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

MORE_FOLLOWS: Final = "more_follows"
"""The attribute of a record behind which its logger logs another at once."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes records as lines with time, level and logger. Thread-safe.

    One with a true `MORE_FOLLOWS` is written together with the next one, whoever logs
    that: a system call for each line costs as much as to make the line.

    Args:
        stream: where to; it is flushed behind each write, and never closed.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(_Formatter(_FORMAT))
        self._kept: list[str] = []  # guarded by the handler's lock

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it for the next; its lock is held."""
        try:
            self._kept.append(self.format(record) + self.terminator)
            if not getattr(record, MORE_FOLLOWS, False):
                self.flush()
        except Exception:  # noqa: BLE001 - it is told on stderr, as logging tells it
            self.handleError(record)

    def flush(self) -> None:
        """Write what is kept."""
        self.acquire()
        try:
            lines, self._kept = self._kept, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
        finally:
            self.release()


class _Formatter(logging.Formatter):
    """Spells each second once, which otherwise is half of a line's formatting."""

    _second: tuple[int, str] = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        second, text = self._second
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime(self.default_time_format, self.converter(second))
            self._second = second, text
        return f"{text},{int(record.msecs):03}"
