"""Work in a second thread that follows the caller's, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Final, Generic, Self, TypeVar

_Batch = TypeVar("_Batch")

WAITING_AT_MOST: Final = 4


class WriteBehind(Generic[_Batch]):
    """Works on batches, one at a time and in order. A context manager, for one thread.

    The first batches are done in the caller's thread: often there are no others, and a thread
    for little work costs more than it saves. Then a thread is started, which has ended when
    the block is left. If no thread can be started, the caller's does all the work.

    Args:
        work: called with each batch, and not called again after it has raised.
        at_once: how many batches the caller's thread does first.
    """

    def __init__(self, work: Callable[[_Batch], object], at_once: int) -> None:
        self._work = work
        self._at_once_left = at_once
        self._waiting: Queue[_Batch | None] = Queue(WAITING_AT_MOST)  # None ends the thread
        self._thread: threading.Thread | None = None
        self._has_thread = False
        self._has_ended = threading.Event()  # an interrupted join takes a thread for ended
        self._is_cancelled = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_cancelled = self._is_cancelled or kind is not None
        self._end()

    def put(self, batch: _Batch) -> None:
        """Hand over a batch; wait if `WAITING_AT_MOST` batches are waiting.

        Raises:
            BaseException: the exception of `work` for this or an earlier batch.
        """
        self._raise_error()
        if self._at_once_left == 0 and self._thread is None:
            self._start()
        if self._has_thread:
            self._waiting.put(batch)
        else:
            self._at_once_left = max(0, self._at_once_left - 1)
            self._work(batch)

    def finish(self) -> None:
        """Wait until all batches are done; call `put` no more.

        Raises:
            BaseException: the exception of `work`.
        """
        self._end()
        self._raise_error()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="bbcache-write", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # too many threads, or the interpreter is exiting
            return
        self._has_thread = True

    def _run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if self._is_cancelled:
                continue
            try:
                self._work(batch)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._error = error
                self._is_cancelled = True
        self._has_ended.set()

    def _end(self) -> None:
        """End the thread and wait for it, even if that is interrupted."""
        if self._thread is None:
            return
        interruption: BaseException | None = None
        is_told = False
        while not is_told or (self._has_thread and not self._has_ended.is_set()):
            try:
                if not is_told:
                    self._waiting.put(None)  # also to a thread whose start was interrupted
                    is_told = True
                else:
                    self._has_ended.wait()
            except BaseException as error:  # noqa: BLE001 - raised once the thread has ended
                interruption = error
                self._is_cancelled = True
        if self._has_thread:
            self._thread.join()
        self._thread, self._has_thread = None, False
        if interruption is not None:
            raise interruption

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
