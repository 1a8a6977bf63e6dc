"""Where a test takes hold of a running cache: its close, its log, its back-off's clock."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.cache_helpers import Worker
from support.helpers import wait_until
from support.threads import is_waiting

from bbcache.prepare.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from support.cache_helpers import Harness


def stand_still(monkeypatch: pytest.MonkeyPatch, harness: Harness) -> list[float]:
    """Restart the cache with a back-off whose clock a test moves: the item of the list."""
    now_s = [0.0]
    monkeypatch.setattr("bbcache.engine.Backoff", lambda _: Backoff(lambda: now_s[0]))
    harness.reopen()
    return now_s


def start_close(harness: Harness) -> Worker:
    """Close the cache in a thread, which has begun to wait for what is under way."""
    closing = Worker(harness.cache.close)
    wait_until(lambda: is_waiting(closing, "close"))
    return closing


class _GateHandler(logging.Handler):
    """Stops the threads that log a line with this text in it."""

    def __init__(self, text: str, gate: Callable[[], object]) -> None:
        super().__init__()
        self._text = text
        self._gate = gate

    def handle(self, record: logging.LogRecord) -> bool:
        """Stop without the lock of the handler, so that other threads can log."""
        if self._text in record.getMessage():
            self._gate()
        return True


@contextmanager
def stop_at_log(text: str, gate: Callable[[], object]) -> Iterator[None]:
    """Make each thread that logs a line with this text in it stop at `gate`."""
    log, handler = logging.getLogger("bbcache"), _GateHandler(text, gate)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
