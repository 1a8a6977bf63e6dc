"""Stopping a thread at one step, once."""

from __future__ import annotations

import threading
from typing import Self

from support.cache_helpers import DEADLINE_S


class StepGate:
    """Stops the first thread that comes to `step`, exactly once, until it is opened.

    A context manager: leaving opens it, so that a failing test leaves no thread behind.
    """

    def __init__(self, step: str) -> None:
        self.step = step
        self._arrived = threading.Event()
        self._is_open = threading.Event()
        self._stopped_name = ""

    @property
    def is_in_pool(self) -> bool:
        """Whether a thread of the cache's pool is stopped, not one of the test."""
        return self._stopped_name.startswith(("bbcache-prepare", "bbcache-fetch"))

    @property
    def has_stopped(self) -> bool:
        """Whether a thread has been stopped."""
        return self._arrived.is_set()

    def stop(self) -> None:
        """Stop here; a step comes only once, so there is no second thread."""
        self._stopped_name = threading.current_thread().name
        self._arrived.set()
        assert self._is_open.wait(DEADLINE_S), f"nobody opened the gate at {self.step}"

    def wait(self) -> None:
        """Wait until a thread has been stopped."""
        assert self._arrived.wait(DEADLINE_S), f"nobody came to {self.step}"

    def open(self) -> None:
        """Let the stopped thread go on."""
        self._is_open.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
