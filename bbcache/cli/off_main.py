"""Running a part of a command in a thread, so that the main thread hears signals meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_SLICE_S = 0.2


def off_main_thread(function: Callable[[Callable[[], bool]], _T]) -> _T:
    """Call a function in a thread of its own and wait for it; a Ctrl-C asks it to end.

    Args:
        function: is given a function that says whether it is to end; raises what this raises.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    is_stopped = threading.Event()

    def run() -> None:
        try:
            results.append(function(is_stopped.is_set))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="bbcache-command")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_SLICE_S)
    finally:
        is_stopped.set()
    if errors:
        raise errors[0]
    return results[0]
