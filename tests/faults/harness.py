"""Where the lives are lived: the shim, warm processes, and a directory for each."""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

from faults import shim
from faults.fork_server import ForkServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SHM_DIR: Final = Path("/dev/shm")  # noqa: S108 - mkdtemp is safe there
_WANTED_SHM_BYTES: Final = 256 << 20

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Bench(NamedTuple):
    """A warm process and a directory of its own."""

    fork_server: ForkServer
    directory: Path


class FaultHarness:
    """Benches that work side by side; a context manager.

    The directories are on tmpfs where there is room: the faults come from the shim, and
    the model says what a disk keeps, so that a real fsync adds nothing
    but time.

    Args:
        compiler: a C compiler.
        jobs: how many benches.
    """

    def __init__(self, compiler: str, jobs: int | None = None) -> None:
        self._opened = ExitStack()
        with ExitStack() as opened:
            has_shm = _SHM_DIR.is_dir() and os.access(_SHM_DIR, os.W_OK)
            has_room = has_shm and shutil.disk_usage(_SHM_DIR).free >= _WANTED_SHM_BYTES
            parent = tempfile.TemporaryDirectory(
                prefix="bbcache-faults-", dir=_SHM_DIR if has_room else None
            )
            self.directory = Path(opened.enter_context(parent))
            self.library = shim.build(self.directory, compiler)
            self.benches = [
                Bench(
                    opened.enter_context(ForkServer(self.library)), self._new_dir(f"bench{number}")
                )
                for number in range(jobs or os.cpu_count() or 1)
            ]
            self._opened = opened.pop_all()

    def each(
        self, work: Callable[[Bench, Item], Answer], items: Iterable[Item]
    ) -> Iterator[Answer]:
        """Do `work` for every item, on whichever bench is free; answers in the items' order."""
        free: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        for bench in self.benches:
            free.put(bench)

        def one(item: Item) -> Answer:
            bench = free.get()
            try:
                return work(bench, item)
            finally:
                free.put(bench)

        with ThreadPoolExecutor(len(self.benches)) as pool:
            yield from pool.map(one, items)

    def close(self) -> None:
        """End the processes and remove the directories."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_dir(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path
