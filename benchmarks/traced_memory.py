"""The memory that Python has allocated for what a benchmark makes."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def traced_growth() -> Iterator[Callable[[], int]]:
    """Trace allocations in a block.

    Returns:
        A function that gives the bytes allocated since the beginning, without garbage.
    """
    tracemalloc.start()
    try:
        before_bytes = _traced_bytes()
        yield lambda: _traced_bytes() - before_bytes
    finally:
        tracemalloc.stop()


def _traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
