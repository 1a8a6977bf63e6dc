"""A function that a thread calls once in a period."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """Calls a function once in a period, the first time after one. Thread-safe.

    Args:
        call: the function; what it raises is logged.
        period_s: the period.
        name: of the thread.
    """

    def __init__(self, call: Callable[[], None], period_s: float, name: str) -> None:
        self._call = call
        self._period_s = min(period_s, threading.TIMEOUT_MAX)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float | None) -> None:
        """Stop after the call that runs; wait `timeout_s` seconds at most."""
        self._is_stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_stopped.wait(self._period_s):
            try:
                self._call()
            except Exception:
                log.exception("%s has failed", self._thread.name)
