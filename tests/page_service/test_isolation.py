"""No client, and no tenant, keeps the others from being served."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from page_service import wire
from page_service.certificates import certificate
from page_service.tokens import Signer
from page_service.wire import WireClient, copied, kinds
from support.cache_helpers import LSN_A, LSN_B, MIB, Gate, noise, stop_before
from support.fill_helpers import unpublished_bytes, waiting_callers
from support.helpers import wait_until

from bbcache.page_service import uncached_build
from bbcache.page_service.auth.permission import EVERYTHING
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.session import Turn
from bbcache.page_service.source import CacheSource
from bbcache.serving.poller import Poller
from bbcache.storage import reader

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from page_service.conftest import Bench

    from bbcache.host import TarballWriter
    from bbcache.ids import Lsn, TenantId
    from bbcache.page_service.auth.permission import Permission
    from bbcache.testing import MemoryTenant, MemoryTimeline


def test_strangers_keep_nobody_out(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """Silent ones in the middle of TLS go for each other; clients that have logged in stay."""
    server, trusting = certificate(tmp_path)
    bench = make_bench()
    bench.serve(tls=server, max_connections=40)
    timeline = bench.harness.prepared()
    command = bench.command(timeline, LSN_A, "gzip")
    idle = [logged_in_by_tls(bench, trusting) for _ in range(10)]
    for number in range(300):
        bench.socket().sendall(wire.ssl_request())
        if number % 15 == 0:
            client = logged_in_by_tls(bench, trusting)
            assert kinds(client.ask(command)) == "HdcCZ"
            client.close()
    for client in idle:
        assert kinds(client.ask(command)) == "HdcCZ"
        client.close()


def logged_in_by_tls(bench: Bench, trusting: ssl.SSLContext) -> WireClient:
    """A client that was let in over TLS."""
    sock = bench.socket()
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    client = WireClient(trusting.wrap_socket(sock, server_hostname="127.0.0.1"))
    assert client.log_in()[-1].kind == "Z"
    return client


def test_commands_behind_a_login_keep_no_stranger_out(bench: Bench) -> None:
    """A client that sends both at once waits for its archive as a client that has logged in."""
    timeline = bench.harness.timeline(LSN_A)
    command = wire.query(bench.command(timeline, LSN_B, "gzip"))
    count = 4 * (os.cpu_count() or 1)
    waiting = [bench.client() for _ in range(count)]
    for client in waiting:
        client.send(wire.startup(user="u"), command)
    wait_until(lambda: waiting_callers() == count)
    assert kinds(bench.logged_in().ask("BEGIN")) == "CZ"
    timeline.advance(LSN_B)
    for client in waiting:
        assert client.until("Z")
        assert kinds(client.until("Z")) == "HdcCZ"


def test_slow_logins_keep_nobody_out(make_bench: Callable[[], Bench]) -> None:
    """They have threads of their own, two per CPU, also where a busy client's thread takes them."""
    bench = make_bench()
    with Gate() as gate:
        bench.serve(verifier=Slow(gate))
        command = bench.command(bench.harness.prepared(), LSN_A, "gzip")
        busy = bench.logged_in("at once")
        strangers = [bench.client() for _ in range(4 * (os.cpu_count() or 1))]
        for stranger in strangers:
            stranger.send(wire.startup(0, user="u"), wire.password("slow"))
            assert kinds(busy.ask(command)) == "HdcCZ"
        gate.wait_for(2 * (os.cpu_count() or 1))
        assert not gate.has_arrived(0.05)
        assert kinds(busy.ask(command)) == "HdcCZ"
        gate.open()
        for stranger in strangers:
            assert stranger.until("Z")


class Slow:
    """Verifies a token when a gate opens, but one token at once."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def verify(self, token: str) -> Permission:
        """Everything."""
        if token != "at once":  # noqa: S105 - no secret
            self._gate()
        return EVERYTHING


def test_a_verification_keeps_nobody_waiting(
    make_bench: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one archive is verified at its first read, hits of others finish."""
    bench = make_bench()
    bench.serve()
    timeline, other = bench.harness.prepared(), bench.harness.prepared()
    command = bench.command(other, LSN_A, "gzip")
    bench.harness.reopen()
    bench.serve(in_one_registry=True)
    clients = [bench.logged_in() for _ in range(21)]
    assert kinds(clients[0].ask(command)) == "HdcCZ"
    with Gate() as gate:
        stop_before(monkeypatch, reader, "check_sealed", gate)
        clients[0].send(wire.query(bench.command(timeline, LSN_A, "gzip")))
        gate.wait_for()
        for client in clients[1:]:
            assert kinds(client.ask(command)) == "HdcCZ"
    assert kinds(clients[0].until("Z")) == "HdcCZ"


def unlinked_files(directory: Path) -> int:
    """How many files without a name this process has open there."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        found += target.startswith(str(directory)) and target.endswith("(deleted)")
    return found


def test_fullbackups_that_nobody_reads(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """However many clients ask, two are on the disk; the next begins when one has gone."""
    bench = make_bench()
    bench.serve()  # makes the cache
    source = CacheSource(
        bench.harness.host, bench.harness.cache, PageServiceConfig(), build_dir=str(tmp_path)
    )
    bench.serve(source, in_one_registry=True)
    timeline = bench.harness.timeline()
    timeline.tarball = lambda at: noise(30 * MIB, int(at))
    command = bench.command(timeline, LSN_A, name="fullbackup")
    clients = [bench.logged_in() for _ in range(6)]
    for client in clients[:2]:
        client.send(wire.query(command))
        assert client.sock.recv(1, 2)  # MSG_PEEK: it is being sent
    for client in clients[2:]:
        client.send(wire.query(command))
    wait_until(
        lambda: bench.counts("pageserver_compute_commands_total") == {"{command=Fullbackup}": 6}
    )
    assert unlinked_files(tmp_path) == 2
    assert kinds(clients[0].until("Z")) == "HdcCZ"
    wait_until(lambda: any(has_input(client) for client in clients[2:]))
    assert unlinked_files(tmp_path) == 2


def has_input(client: WireClient) -> bool:
    """Whether it has received anything that it has not read."""
    client.sock.settimeout(0.01)
    try:
        return bool(client.sock.recv(1, 2))
    except TimeoutError:
        return False
    finally:
        client.sock.settimeout(30.0)


def test_fullbackups_have_a_limit(make_bench: Callable[[], Bench]) -> None:
    """The client is told of it, and the bytes are free again."""
    bench = make_bench()
    bench.serve(max_fullbackup_size_bytes=1_000_000)
    small, large = bench.harness.timeline(), bench.harness.timeline()
    small.tarball = lambda at: noise(600_000, int(at))
    large.tarball = lambda at: noise(1_100_000, int(at))
    client = bench.logged_in()
    error, ready = client.ask(bench.command(large, LSN_A, name="fullbackup"))
    assert "exceed max_fullbackup_size_bytes 1000000" in error.fields()["M"]
    for _ in range(3):
        assert kinds(client.ask(bench.command(small, LSN_A, name="fullbackup"))) == "HdcCZ"
    assert ready.kind == "Z"


class Shared:
    """A service with tokens for two tenants, each with one timeline."""

    def __init__(self, bench: Bench, directory: Path, **settings: Any) -> None:
        self.bench = bench
        self.signer = Signer()
        keys = TokenKeys(self.signer.write_public(directory / "key.pem"))
        bench.serve(verifier=keys, **settings)
        self.greedy = bench.harness.tenant
        self.modest = bench.harness.host.add_tenant()

    def client(self, tenant: MemoryTenant) -> WireClient:
        """A client with a token of the tenant."""
        tenant_id = str(tenant.tenant_id)
        return self.bench.logged_in(self.signer.sign(scope="tenant", tenant_id=tenant_id))

    def command(self, tenant_id: TenantId, timeline_id: object, *words: object) -> str:
        """A command for a timeline."""
        return " ".join(map(str, ["basebackup", tenant_id, timeline_id, *words]))


def test_waits_of_one_tenant_keep_no_other_out(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """A tenant that waits with every place gives some up when another one comes."""
    shared = Shared(make_bench(), tmp_path, max_connections=10)
    bench = shared.bench
    idle = shared.client(shared.modest)
    timeline = bench.harness.timeline(LSN_A)
    waiting = [shared.client(shared.greedy) for _ in range(9)]
    for client in waiting:
        client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(lambda: waiting_callers() == 9)
    newcomers = [shared.client(shared.modest) for _ in range(4)]
    for client in (idle, *newcomers):
        assert kinds(client.ask("BEGIN")) == "CZ"
    codes = {client.until("Z")[0].fields()["C"] for client in waiting[:4]}
    assert codes == {"53300"}
    timeline.advance(LSN_B)
    for client in waiting[4:]:
        assert kinds(client.until("Z")) == "HdcCZ"


def test_unpublished_bytes_of_one_tenant_leave_room_for_others(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """Its slowest reader goes when another tenant's archive finds no room."""
    bench = make_bench()
    bench.harness.settings.update(max_entry_size_bytes=1000, max_unpublished_size_bytes=35 * MIB)
    shared = Shared(bench, tmp_path)
    timelines = [bench.harness.timeline() for _ in range(3)]
    other = shared.modest.add_timeline(LSN_A)
    for timeline in (*timelines, other):
        timeline.tarball = lambda at: noise(16 * MIB, int(at))
    lazy = [shared.client(shared.greedy) for _ in range(3)]
    for client, timeline in zip(lazy[:2], timelines, strict=False):
        client.send(wire.query(bench.command(timeline, LSN_A, "gzip")))
        assert client.sock.recv(1, 2)
    lazy[2].send(wire.query(bench.command(timelines[2], LSN_A, "gzip")))
    assert "no room" in lazy[2].until("Z")[0].fields()["M"]
    client = shared.client(shared.modest)
    replies = client.ask(shared.command(shared.modest.tenant_id, other.timeline_id, LSN_A, "gzip"))
    assert kinds(replies) == "HdcCZ"
    assert "c" not in kinds(cut_off(lazy[0]))
    assert kinds(lazy[1].until("Z")) == "HdcCZ"
    wait_until(lambda: unpublished_bytes(bench.harness) == 0)


def test_an_unpublished_archive_each_ends_neither(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """The only reader of a tenant has some time, and the other tenant is told to come back."""
    bench = make_bench()
    bench.harness.settings.update(max_entry_size_bytes=1000, max_unpublished_size_bytes=20 * MIB)
    shared = Shared(bench, tmp_path)
    timelines = bench.harness.timeline(), shared.modest.add_timeline(LSN_A)
    clients = shared.client(shared.greedy), shared.client(shared.modest)
    for timeline in timelines:
        timeline.tarball = lambda at: noise(16 * MIB, int(at))
    clients[0].send(wire.query(bench.command(timelines[0], LSN_A, "gzip")))
    assert clients[0].sock.recv(1, 2)
    command = shared.command(shared.modest.tenant_id, timelines[1].timeline_id, LSN_A, "gzip")
    assert clients[1].ask(command)[0].fields()["C"] == "53400"
    assert kinds(clients[0].until("Z")) == "HdcCZ"
    assert kinds(clients[1].ask(command)) == "HdcCZ"


def test_fullbackups_of_one_tenant_leave_a_place_for_others(
    make_bench: Callable[[], Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that holds both places for long loses one when another tenant waits."""
    monkeypatch.setattr(uncached_build, "SENDING_S", 0.0)
    shared = Shared(make_bench(), tmp_path)
    timelines = shared.bench.harness.timeline(), shared.modest.add_timeline(LSN_A)
    for timeline in timelines:
        timeline.tarball = lambda at: noise(30 * MIB, int(at))
    greedy = [shared.client(shared.greedy) for _ in range(2)]
    for client in greedy:
        command = shared.bench.command(timelines[0], LSN_A, name="fullbackup")
        client.send(wire.query(command))
        assert client.sock.recv(1, 2)
    modest = shared.client(shared.modest)
    command = f"fullbackup {shared.modest.tenant_id} {timelines[1].timeline_id} {LSN_A}"
    assert kinds(modest.ask(command)) == "HdcCZ"
    assert "c" not in kinds(cut_off(greedy[0]))
    assert kinds(greedy[1].until("Z")) == "HdcCZ"


@pytest.mark.parametrize("is_fair", [True, False])
def test_fullbackups_of_two_tenants_leave_a_place_for_a_third(
    make_bench: Callable[[], Bench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_fair: bool,
) -> None:
    """One that is sent slowly goes for another tenant; one that is not is sent to its end."""
    monkeypatch.setattr(uncached_build, "SENDING_S", 0.0)
    monkeypatch.setattr(uncached_build, "FAIR_RATE", 1 if is_fair else 1 << 40)
    bench = make_bench()
    shared = Shared(bench, tmp_path)
    clients = []
    for tenant in (shared.greedy, shared.modest, bench.harness.host.add_tenant()):
        timeline = tenant.add_timeline(LSN_A)
        timeline.tarball = lambda at: noise(30 * MIB, int(at))
        client = shared.client(tenant)
        clients.append(client)
        client.send(wire.query(f"fullbackup {tenant.tenant_id} {timeline.timeline_id} {LSN_A}"))
        if len(clients) < 3:
            assert client.sock.recv(1, 2)
    wait_until(
        lambda: bench.counts("pageserver_compute_commands_total") == {"{command=Fullbackup}": 3}
    )
    if is_fair:
        assert kinds(clients[0].until("Z")) == "HdcCZ"
    assert kinds(clients[2].until("Z")) == "HdcCZ"
    assert kinds(clients[1].until("Z")) == "HdcCZ"
    if not is_fair:
        assert "c" not in kinds(cut_off(clients[0]))


def test_builds_of_one_tenant_keep_another_waiting_for_one(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """The next worker that is free builds for the tenant that has none."""
    bench = make_bench()
    bench.harness.settings["prepare_concurrency"] = 2
    shared = Shared(bench, tmp_path)
    built: list[TenantId] = []
    with Gate() as gate:
        first_gate = Gate()

        def build(tenant: MemoryTenant, at: Gate) -> MemoryTimeline:
            timeline = tenant.add_timeline(LSN_A)

            def send(writer: TarballWriter, lsn: Lsn) -> None:
                built.append(tenant.tenant_id)
                at()
                writer.write(timeline.tarball(lsn))

            timeline.on_send = send
            client = shared.client(tenant)
            command = shared.command(tenant.tenant_id, timeline.timeline_id, LSN_A, "gzip")
            client.send(wire.query(command))
            clients.append(client)
            return timeline

        clients: list[WireClient] = []
        for at in (first_gate, gate):
            build(shared.greedy, at)
            at.wait_for()
        for number in range(5):
            build(shared.greedy, gate)
            wait_until(lambda number=number: waiting_callers() == 3 + number)  # type: ignore[misc]  # of this turn
        build(shared.modest, gate)
        wait_until(lambda: waiting_callers() == 8)
        first_gate.open()
        gate.wait_for()
        assert built == [shared.greedy.tenant_id] * 2 + [shared.modest.tenant_id]
        gate.open()
        for client in clients:
            assert kinds(client.until("Z")) == "HdcCZ"


def cut_off(client: WireClient) -> list[wire.Reply]:
    """What came before the end, whole messages or not."""
    data = b""
    while piece := client.sock.recv(1 << 20):
        data += piece
    return wire.split(data)[0]


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than four threads of the service can be begun."""
    allow_threads(monkeypatch, 4)


def allow_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let so many threads of the service begin."""
    start, left = threading.Thread.start, iter(range(count))

    def start_some(thread: threading.Thread) -> None:
        if thread.name.startswith("bbcache-client") and next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)


@pytest.mark.usefixtures("few_threads")
def test_readers_that_stop_when_threads_are_short(bench: Bench) -> None:
    """They go for clients that have logged in; new clients are refused and told why."""
    large = bench.harness.prepared(size_bytes=30 * MIB)
    small = bench.harness.prepared()
    old = [bench.logged_in() for _ in range(3)]
    lazy = [bench.logged_in() for _ in range(4)]
    for client in lazy:
        client.send(wire.query(bench.command(large, LSN_A, "gzip")))
        assert client.sock.recv(1, 2)
    old[0].send(wire.query(bench.command(small, LSN_A, "gzip")))
    with suppress(ConnectionError):  # closed on what it has said
        end = bench.client().log_in()[-1]
        assert end.kind == "Z" or end.fields()["C"] == "53300"  # whether a reader has gone yet
    assert kinds(old[0].until("Z")) == "HdcCZ"
    for client in old:
        assert kinds(client.ask(bench.command(small, LSN_A, "gzip"))) == "HdcCZ"


@pytest.mark.usefixtures("few_threads")
def test_waits_of_one_tenant_when_threads_are_short(
    make_bench: Callable[[], Bench], tmp_path: Path
) -> None:
    """A tenant that has more of them than its share gives one to another tenant."""
    shared = Shared(make_bench(), tmp_path)
    bench = shared.bench
    timeline = bench.harness.timeline(LSN_A)
    other = shared.modest.add_timeline(LSN_A)
    modest = shared.client(shared.modest)
    waiting = [shared.client(shared.greedy) for _ in range(4)]
    for client in waiting:
        client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(lambda: waiting_callers() == 4)
    command = shared.command(shared.modest.tenant_id, other.timeline_id, "gzip")
    assert copied(modest.ask(command))
    timeline.advance(LSN_B)
    answers = [kinds(client.until("Z")) for client in waiting]
    assert sorted(answers) == ["E", "HdcCZ", "HdcCZ", "HdcCZ"]


class Stranger:
    """A session that has not logged in, and is over at its first turn."""

    is_logged_in = False

    def serve(self) -> Turn:
        """End."""
        return Turn.OVER


def test_strangers_without_end_when_threads_are_short(
    make_bench: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only thread looks after clients that wait for it, however many strangers it meets."""
    allow_threads(monkeypatch, 1)
    bench = make_bench()
    bench.serve()
    client = bench.logged_in()
    with monkeypatch.context() as patch:
        patch.setattr(Poller, "take", lambda *_: Stranger())
        for _ in range(3):
            assert kinds(client.ask("BEGIN")) == "CZ"
