"""No slow, silent or hostile client harms another, and an end is orderly."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest
from page_service import wire
from page_service.conftest import ANY_PORT
from page_service.wire import copied, kinds
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, MIB, Worker
from support.helpers import count_descriptors, wait_until
from support.threads import functions

from bbcache.errors import ConfigError
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.setting_rows import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from page_service.conftest import Bench


def test_a_silent_client_makes_room(make_bench: Callable[[], Bench]) -> None:
    """Of too many strangers the oldest goes, of the others the one that is idle for longest."""
    bench = make_bench()
    bench.serve(max_connections=3, max_pending_logins=2)
    timeline = bench.harness.prepared()
    first = bench.logged_in()
    silent = [bench.client(), bench.client()]
    wait_until(lambda: bench.service.connection_count == 3)
    for number, client in enumerate(silent, 1):
        good = bench.logged_in()
        assert kinds(good.ask(bench.command(timeline, "gzip"))) == "HdcCZ"
        bench.client()
        (error,) = client.rest()
        assert error.fields()["C"] == "57P05"
        wait_until(lambda number=number: bench.endings() == {"timeout": number})  # type: ignore[misc]  # of this turn
    assert kinds(first.ask("BEGIN")) == "CZ"
    bench.logged_in()
    wait_until(lambda: bench.endings() == {"timeout": 3, "refused": 1})


def test_no_room(make_bench: Callable[[], Bench]) -> None:
    """Busy clients of the same tenant stay, and the new client is told why it is refused."""
    bench = make_bench()
    bench.serve(max_connections=2)
    timeline = bench.harness.timeline(LSN_A)
    busy = [bench.logged_in(), bench.logged_in()]
    for client in busy:
        client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(
        lambda: bench.counts("pageserver_compute_commands_total") == {"{command=Basebackup}": 2}
    )
    newcomer = bench.logged_in()
    newcomer.send(wire.query(bench.command(timeline, LSN_A, "gzip")))
    (error,) = newcomer.rest()
    assert (error.fields()["S"], error.fields()["C"]) == ("FATAL", "53300")
    assert error.fields()["M"] == "there are 2 connections already"
    timeline.advance(LSN_B)
    for client in busy:
        assert kinds(client.until("Z")) == "HdcCZ"
    assert bench.endings() == {"refused": 1}


@pytest.mark.parametrize("begun", [b"", wire.startup(user="u")[:-1], wire.ssl_request()])
def test_a_handshake_that_does_not_end(make_bench: Callable[[], Bench], begun: bytes) -> None:
    """It has so much time and no more."""
    bench = make_bench()
    bench.serve(handshake_timeout_s=0.05)
    sock = bench.socket()
    sock.sendall(begun)
    received = b""
    while piece := sock.recv(1000):
        received += piece
    (error,), _ = wire.split(received.lstrip(b"N"))
    assert error.fields()["C"] == "57P05"
    bench.wait_gone()
    assert bench.endings() == {"timeout": 1}


def test_a_byte_at_a_time(make_bench: Callable[[], Bench]) -> None:
    """The bytes of a message do not extend its time, however steadily they arrive."""
    bench = make_bench()
    bench.serve(idle_timeout_s=0.05)
    client = bench.logged_in()
    is_over = threading.Event()

    def drip() -> None:
        client.send(b"Q", struct.pack("!I", 30_000))
        while not is_over.wait(0.01):
            try:
                client.send(b"x")
            except OSError:
                return

    dripping = Worker(drip)
    codes: list[str] = []
    with contextlib.suppress(ConnectionResetError):  # a byte that crosses the close resets it
        while (reply := client.receive()) is not None:
            codes.append(reply.fields()["C"])
    is_over.set()
    dripping.result()
    assert codes in (["57P05"], [])
    bench.wait_gone()
    assert bench.endings() == {"timeout": 1}


def test_an_idle_client(make_bench: Callable[[], Bench]) -> None:
    """Between commands it has so much time."""
    bench = make_bench()
    bench.serve(idle_timeout_s=0.05)
    client = bench.logged_in()
    assert kinds(client.rest()) == "E"
    bench.wait_gone()
    assert bench.endings() == {"timeout": 1}


def test_a_client_that_does_not_read(make_bench: Callable[[], Bench]) -> None:
    """The service drops it after its time, and serves others meanwhile."""
    bench = make_bench()
    bench.serve(send_timeout_s=0.2)
    timeline = bench.harness.prepared(size_bytes=30 * MIB)
    lazy = bench.logged_in()
    lazy.send(wire.query(bench.command(timeline, LSN_A, "gzip")))
    other = bench.logged_in()
    assert kinds(other.ask("BEGIN")) == "CZ"
    wait_until(lambda: bench.endings() == {"broken": 1})
    bench.wait_queries({"client_error hit": 1})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Q" + struct.pack("!I", 70_000), "a message says that it has 70000 bytes"),
        (b"Q\0\0\0\0", "a message says that it has 0 bytes"),
        (wire.packed(b"?"), "no message has the type"),
        (wire.packed(b"F", b"\0" * 8), "no message has the type"),
        (wire.packed(b"Q", b"\xff\0"), "is not UTF-8"),
        (wire.password("x"), "no password is wanted now"),
    ],
)
def test_what_is_no_message(bench: Bench, data: bytes, text: str) -> None:
    """The client is told, and must go."""
    client = bench.logged_in()
    client.send(data)
    (error,) = client.rest()
    assert (error.fields()["S"], error.fields()["C"]) == ("FATAL", "08P01")
    assert text in error.fields()["M"]
    bench.wait_gone()
    assert bench.endings() == {"protocol": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
        b"\0" * 100,
        b"\xff" * 100,
    ],
    ids=["http", "direct TLS", "zeros", "ones"],
)
def test_who_speaks_something_else(bench: Bench, data: bytes) -> None:
    """A client that speaks another protocol is disconnected at once."""
    sock = bench.socket()
    sock.sendall(data)
    received = sock.recv(1000)
    assert wire.split(received)[0][0].fields()["C"] == "08P01"
    bench.wait_gone()


def test_idle_clients_hold_no_thread(bench: Bench) -> None:
    """Nor do those in the middle of a message or a handshake."""
    timeline = bench.harness.prepared(size_bytes=1000)
    clients = [bench.logged_in() for _ in range(20)]
    for client in clients * 3:
        assert kinds(client.ask(bench.command(timeline, LSN_A, "gzip"))) == "HdcCZ"
    for client in clients[:10]:
        client.send(b"Q\0")
    strangers = [bench.client() for _ in range(10)]
    for stranger in strangers:
        stranger.send(wire.startup(user="u")[:5])
    wait_until(lambda: not threads_that_serve())


def threads_that_serve() -> list[str]:
    """Threads of the pool that are neither idle nor ended: they are in a session."""
    names = {each.ident: each.name for each in threading.enumerate()}
    return [
        names[ident]
        for ident, called in functions().items()
        if names.get(ident, "").startswith(("bbcache-client", "bbcache-login"))
        and "serve" in called
    ]


def test_a_client_that_asks_for_much_at_once(bench: Bench) -> None:
    """Others do not wait for all of it."""
    timeline = bench.harness.prepared(size_bytes=60_000)
    greedy, other = bench.logged_in(), bench.logged_in()
    command = wire.query(bench.command(timeline, LSN_A, "gzip"))
    greedy.send(command * 100)  # what it does not read stops its thread soon
    for _ in range(3):
        assert kinds(other.ask("BEGIN")) == "CZ"
    for _ in range(100):
        assert kinds(greedy.until("Z")) == "HdcCZ"


def test_nothing_leaks(bench: Bench) -> None:
    """After a hundred clients of every kind there are as many descriptors as before."""
    timeline = bench.harness.prepared()

    def many(count: int) -> None:
        for number in range(count):
            client = bench.client()
            kind = number % 4
            if kind == 0:
                client.log_in()
                client.ask(bench.command(timeline, LSN_A, "gzip"))
            elif kind == 1:
                client.send(b"\xff" * 9)
            elif kind == 2:
                client.send(wire.startup(user="u"), wire.query("x"))
            client.close()
        bench.wait_gone()

    many(20)
    before = count_descriptors()
    many(100)
    assert count_descriptors() <= before + 4  # one may be on its way out


def test_the_longest_times_that_are_allowed(make_bench: Callable[[], Bench]) -> None:
    """A service with them works as any other; the limit is the same as that of the cache."""
    bench = make_bench()
    longest: dict[str, Any] = {
        key: 1e9 for key in settings_of(PageServiceConfig) if key.endswith("timeout_s")
    }
    bench.harness.settings["wait_lsn_timeout"] = 1e9
    bench.serve(**longest)
    timeline = bench.harness.prepared(size_bytes=5 * MIB)
    client = bench.logged_in()
    for name in ("basebackup", "fullbackup"):
        assert kinds(client.ask(bench.command(timeline, LSN_A, name=name))) == "HdcCZ"
    assert len(longest) == 4


def test_drain(bench: Bench) -> None:
    """A busy client finishes its command, an idle one goes at once, and new ones are refused."""
    timeline = bench.harness.timeline(LSN_A)
    busy, idle = bench.logged_in(), bench.logged_in()
    busy.send(wire.query(bench.command(timeline, LSN_B, "gzip")), wire.query("BEGIN"))
    wait_until(lambda: bench.counts("pageserver_compute_commands_total"))
    address = (bench.service.address.host, bench.service.address.port)
    assert not bench.service.drain(0)
    assert not bench.service.is_serving
    (error,) = idle.rest()
    assert (error.fields()["C"], error.fields()["M"]) == ("57P01", "shutdown")
    with (
        pytest.raises(OSError, match=r"refused|reset"),
        socket.create_connection(address, DEADLINE_S) as late,
    ):
        late.recv(1)
    timeline.advance(LSN_B)
    replies = busy.rest()
    assert kinds(replies) == "HdcCZE"
    assert replies[-1].fields()["C"] == "57P01"
    assert bench.service.drain(DEADLINE_S)
    bench.wait_queries({"ok built": 1})


def test_close_waits_for_nobody(bench: Bench) -> None:
    """A client that waits, one that does not read and one that is idle are all cut off."""
    timeline = bench.harness.timeline(LSN_A)
    large = bench.harness.prepared(size_bytes=30 * MIB)
    clients = [bench.logged_in() for _ in range(3)]
    clients[0].send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    clients[1].send(wire.query(bench.command(large, LSN_A, "gzip")))
    assert clients[1].receive() is not None
    bench.service.close(DEADLINE_S)
    assert bench.service.connection_count == 0
    bench.service.close(DEADLINE_S)
    for client in clients:
        client.close()


def test_close_before_the_start() -> None:
    """It does nothing but leave the registry."""
    source = object()
    config = PageServiceConfig(listen=ANY_PORT)
    PageService(source, config, registry=CollectorRegistry()).close()  # type: ignore[arg-type]  # not asked


def test_a_port_that_is_taken(bench: Bench) -> None:
    """It is named."""
    config = PageServiceConfig(listen=bench.service.address)
    service = PageService(bench.source(), config, registry=CollectorRegistry())
    with pytest.raises(ConfigError, match=f"cannot listen on {bench.service.address}: Address"):
        service.start()
    service.close()


def test_two_services_in_one_registry(bench: Bench) -> None:
    """The second is told what to do."""
    with pytest.raises(ConfigError, match=r"hint: Pass registry=CollectorRegistry\(\)"):
        PageService(bench.source(), PageServiceConfig(listen=ANY_PORT), registry=bench.registry)


def test_many_idle_clients(make_bench: Callable[[], Bench]) -> None:
    """A few hundred that say nothing keep a good one from nothing."""
    bench = make_bench()
    bench.serve(max_connections=100)
    timeline = bench.harness.prepared()
    crowd = [bench.socket() for _ in range(300)]
    for _ in range(10):
        client = bench.logged_in()
        assert copied(client.ask(bench.command(timeline, "gzip")))
        client.close()
    assert len(crowd) == 300


@pytest.mark.parametrize(
    "settings",
    [
        {"max_connections": 0},
        {"max_connections": True},
        {"max_fullbackup_size_bytes": 0},
        {"idle_timeout_s": 0},
        {"send_timeout_s": "1"},
    ],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    """They are refused by name."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PageServiceConfig(**settings)  # type: ignore[arg-type]  # on purpose
