"""Good, slow, greedy and hostile clients of several tenants at once: no wrong byte, nothing left.

``BBCACHE_SOAK_S`` says for how many seconds at least; by default until everything has happened
once.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from page_service import wire
from support.cache_helpers import LSN_A, LSN_B, MIB, Worker, noise
from support.helpers import count_descriptors, wait_until

from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.source import CacheSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from page_service.conftest import Bench

    from bbcache import Lsn

IS_NIGHTLY: Final = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
DURATION_S: Final = float(os.environ.get("BBCACHE_SOAK_S", "60" if IS_NIGHTLY else "0"))
PATIENCE_S: Final = 60.0
CLIENTS: Final = 24
SIZES_BYTES: Final = (1000, 20_000, 65_000, 70_000, MIB, 4 * MIB)
WANTED: Final = {
    *("archive", "good", "lazy", "gone", "flood", "cancel", "silent", "rubbish"),
    *("error 53300", "error 57014", "error 57P05", "error XX000"),
}


class Asked(NamedTuple):
    """A command, and the bytes of its archive."""

    command: str
    content: bytes
    is_gzip: bool


class Crowd:
    """Clients of all kinds, each in a thread.

    Attributes:
        counts: events by kind.
    """

    def __init__(self, bench: Bench, archives: list[tuple[str, bytes]]) -> None:
        self.counts: Counter[str] = Counter()
        self._address = bench.service.address
        self._archives = archives
        self._is_over = threading.Event()
        self._kinds: dict[str, Callable[[socket.socket, random.Random], None]] = {
            "good": self.good,
            "lazy": self.lazy,
            "gone": self.gone,
            "flood": self.flood,
            "cancel": self.cancel,
            "silent": self.silent,
            "rubbish": self.rubbish,
        }

    def run(self) -> None:
        """Let clients come and go until all has happened."""
        until_s = time.monotonic() + DURATION_S
        workers = [Worker(self._come_and_go, seed) for seed in range(CLIENTS)]
        try:
            wait_until(
                lambda: time.monotonic() >= until_s and self.counts.keys() >= WANTED,
                DURATION_S + PATIENCE_S,
            )
        finally:
            self._is_over.set()
            for worker in workers:
                worker.result()

    def good(self, sock: socket.socket, rng: random.Random) -> None:
        """A few commands, one after the other."""
        if self._log_in(sock):
            for _ in range(rng.randrange(1, 6)):
                asked = self._asked(rng)
                sock.sendall(wire.query(asked.command))
                if not self._check(asked, self._answer(sock)):
                    return

    def lazy(self, sock: socket.socket, rng: random.Random) -> None:
        """Commands sent at once, whose answers are read late."""
        if self._log_in(sock):
            several = [self._asked(rng) for _ in range(3)]
            sock.sendall(b"".join(wire.query(asked.command) for asked in several))
            self._is_over.wait(rng.random())
            replies = self._answer(sock, len(several))
            for asked in several:
                end = next((at for at, each in enumerate(replies, 1) if each.kind == "Z"), None)
                self._check(asked, replies[:end])
                replies = replies[len(replies) if end is None else end :]

    def gone(self, sock: socket.socket, rng: random.Random) -> None:
        """A command whose answer is not waited for."""
        if self._log_in(sock):
            sock.sendall(wire.query(self._asked(rng).command))
            sock.recv(rng.randrange(1, 1000))

    def flood(self, sock: socket.socket, rng: random.Random) -> None:
        """More messages at once than a turn takes; each is answered."""
        if self._log_in(sock):
            count = rng.randrange(1, 3000)
            sock.sendall(wire.SYNC * count)
            replies = self._answer(sock, count)
            assert len(replies) == count or replies[-1].kind == "E" or not replies

    def cancel(self, sock: socket.socket, rng: random.Random) -> None:
        """A command that another connection cancels, sometimes too late."""
        key = next((each.body for each in self._log_in(sock) if each.kind == "K"), None)
        if key is not None:
            ids, content = rng.choice(self._archives)
            asked = Asked(f"basebackup {ids} {LSN_B} gzip", content, is_gzip=True)
            sock.sendall(wire.query(asked.command))
            with self._connect() as other:
                other.sendall(wire.cancel_request(key))
            self._check(asked, self._answer(sock))

    def silent(self, sock: socket.socket, rng: random.Random) -> None:
        """The beginning of a login."""
        sock.sendall(wire.startup(user="u")[: rng.randrange(8)])
        self._is_over.wait(rng.random())

    def rubbish(self, sock: socket.socket, rng: random.Random) -> None:
        """Bytes that are no message."""
        sock.sendall(rng.randbytes(rng.randrange(1, 100)))

    def _come_and_go(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._is_over.is_set():
            kind = rng.choice([*self._kinds, "good", "good", "cancel"])
            with contextlib.suppress(ConnectionError), self._connect() as sock:
                self._kinds[kind](sock, rng)
            self.counts[kind] += 1

    def _connect(self) -> socket.socket:
        return socket.create_connection((self._address.host, self._address.port), PATIENCE_S)

    def _asked(self, rng: random.Random) -> Asked:
        ids, content = rng.choice(self._archives)
        form = rng.choice(["basebackup {} {} gzip"] * 7 + ["basebackup {} {}", "fullbackup {} {}"])
        return Asked(form.format(ids, LSN_A), content, is_gzip=form.endswith("gzip"))

    def _log_in(self, sock: socket.socket) -> list[wire.Reply]:
        """The answer to a login; nothing where the client was refused."""
        sock.sendall(wire.startup(0, user="u"))
        replies = self._answer(sock)
        return replies if self._check(Asked("", b"", is_gzip=False), replies) else []

    def _answer(self, sock: socket.socket, ready_count: int = 1) -> list[wire.Reply]:
        """The messages up to so many ReadyForQuery, or to the end, which may cut one."""
        replies: list[wire.Reply] = []
        data = b""
        while sum(reply.kind == "Z" for reply in replies) < ready_count:
            piece = sock.recv(1 << 20)
            if not piece:
                break
            more, data = wire.split(data + piece)
            replies += more
        return replies

    def _check(self, asked: Asked, replies: list[wire.Reply]) -> bool:
        """Whether the client may go on; a copy with its end must have the right bytes."""
        if any(reply.kind == "c" for reply in replies):
            data = wire.copied(replies)
            assert (gzip.decompress(data) if asked.is_gzip else data) == asked.content, asked[0]
            self.counts["archive"] += 1
        for reply in replies:
            if reply.kind == "E":
                self.counts[f"error {reply.fields()['C']}"] += 1
        return bool(replies) and replies[-1].kind == "Z"


def _content(content: bytes, _: Lsn) -> bytes:
    return content


def test_soak(
    make_bench: Callable[[], Bench], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Places, room and threads are scarce; every complete archive is right all the same."""
    caplog.set_level(logging.INFO, logger="bbcache")
    bench = make_bench()
    bench.harness.settings.update(
        max_unpublished_size_bytes=30 * MIB, max_entry_size_bytes=3 * MIB, cleanup_period=0.5
    )
    bench.serve()
    source = CacheSource(
        bench.harness.host,
        bench.harness.cache,
        PageServiceConfig(wait_lsn_timeout_s=2.0),
        build_dir=str(tmp_path),
    )
    bench.serve(
        source,
        in_one_registry=True,
        max_connections=12,
        max_pending_logins=6,
        send_timeout_s=2.0,
        idle_timeout_s=2.0,
    )
    archives = []
    for tenant in [bench.harness.tenant, *(bench.harness.host.add_tenant() for _ in range(3))]:
        for size_bytes in SIZES_BYTES:
            timeline = tenant.add_timeline(LSN_A)
            content = noise(size_bytes, size_bytes)
            timeline.tarball = partial(_content, content)
            archives.append((f"{tenant.tenant_id} {timeline.timeline_id}", content))
    before = count_descriptors()
    crowd = Crowd(bench, archives)
    crowd.run()
    print(f"\n{dict(sorted(crowd.counts.items()))}")  # noqa: T201 - the counts are a result
    bench.wait_gone()
    bench.harness.wait_idle()
    assert not [record for record in caplog.records if record.exc_info]
    wait_until(lambda: count_descriptors() <= before)
