"""How ``bbcache serve`` writes its log: as text or JSON, to stderr."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from bbcache.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
_ACCESS_LOGGER: Final = "bbcache.page_service.access_log"
_FIELDS: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def _iso_utc(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds")


class _TextFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        return _iso_utc(record.created)


def _json_formatter() -> logging.Formatter:
    try:
        from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("--log-format json cannot be used", "serve", error) from error

    class Formatter(JsonFormatter):
        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
            return _iso_utc(record.created)

    renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
    return Formatter(_FIELDS, rename_fields=renamed)


@contextmanager
def logging_to_stderr(log_format: str, level: str, *, has_access_log: bool) -> Iterator[None]:
    """Write the log of bbcache to stderr in a block.

    Args:
        log_format: one of `FORMATS`; JSON has one line a record, tracebacks included.
        level: the least that is written, one of `LEVELS`.
        has_access_log: whether each command gets a line even where it went well.

    Raises:
        MissingExtraError: JSON takes a package that is not there.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == "json" else _TextFormatter(_TEXT))
    logger, access = logging.getLogger("bbcache"), logging.getLogger(_ACCESS_LOGGER)
    before = logger.level, access.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    if not has_access_log:
        access.setLevel(logging.WARNING)
    try:
        yield
    finally:
        handler.flush()
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        access.setLevel(before[1])
