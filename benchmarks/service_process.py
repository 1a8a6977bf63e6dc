"""A page service in a process of its own, set up as ``bbcache serve`` sets it up.

``python -m benchmarks.service_process DIR COUNT CONNECTIONS VERIFY`` serves the entries of
the first COUNT of `make_ids` that are in DIR, without tokens, over loopback; VERIFY is
`verify_reads`. It prints its port, logs each command to stderr, and ends at the end of stdin.

`child` runs such a process.
"""

from __future__ import annotations

import dataclasses
import logging
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry

from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from benchmarks.entries import make_config, make_host, make_ids, spawn_ready

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ANY_PORT: Final = Address("127.0.0.1", 0)
_END_TIMEOUT_S: Final = 60.0
_SHOWN: Final = 500


@contextmanager
def child(module: str, arguments: Sequence[object], log_path: Path) -> Iterator[str]:
    """Run a module of Python in a process that ends at the end of its stdin.

    Args:
        module: its name.
        arguments: for it.
        log_path: where its stderr goes.

    Returns:
        The first line that it prints.

    Raises:
        ValueError: it ended without one; the message has the end of its log.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            if not line:
                raise ValueError(f"{module} did not start: {log_path.read_text()[-_SHOWN:]}")
            yield line.strip()
        finally:
            process.stdin.close()
            process.wait(_END_TIMEOUT_S)


@contextmanager
def service_process(
    data_dir: Path,
    entry_count: int,
    most_connections: int,
    log_path: Path,
    verify_reads: str = "first",
) -> Iterator[int]:
    """Serve a directory while the block runs.

    Args:
        data_dir: a cache's directory with entries of `write_entries`.
        entry_count: how many they are.
        most_connections: clients at once.
        log_path: where its log goes.
        verify_reads: the setting of the cache.

    Returns:
        The port on loopback.

    Raises:
        ValueError: it did not start.
    """
    arguments = (data_dir, entry_count, most_connections, verify_reads)
    with child(__name__, arguments, log_path) as line:
        yield int(line)


def allow_many_descriptors() -> None:
    """Raise the limit of descriptors of this process to its maximum."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(data_dir: Path, entry_count: int, most_connections: int, verify_reads: str) -> None:
    """Serve until stdin ends."""
    allow_many_descriptors()
    logging.basicConfig(level=logging.INFO)
    host = make_host(make_ids(entry_count))
    config = PageServiceConfig(listen=_ANY_PORT, max_connections=most_connections)
    registry = CollectorRegistry()
    settings: dict[str, Any] = {"verify_reads": verify_reads}
    cache_config = dataclasses.replace(make_config(), **settings)
    with spawn_ready(data_dir, host, cache_config) as cache:
        service = PageService(CacheSource(host, cache, config), config, registry=registry)
        with service:
            print(service.address.port, flush=True)  # noqa: T201 - for `child`
            sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
