"""Where the archives of the service come from: the cache, one build for all, or the host."""

from __future__ import annotations

import functools
import gzip
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from page_service import wire
from page_service.wire import copied, kinds
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    Gate,
    Worker,
    noise,
    stop_while_sending,
)
from support.fill_helpers import all_waiting, fills, unpublished_bytes, waiting_callers
from support.helpers import wait_until

from bbcache import BasebackupCache, Lsn, TenantState
from bbcache.errors import ArchiveError, PostgresError, PrepareError
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.errors import ShutdownError
from bbcache.page_service.protocol.command import BasebackupCommand
from bbcache.page_service.source import CacheSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from page_service.conftest import Bench
    from page_service.wire import Reply, WireClient

    from bbcache.host import Buffer, TarballWriter
    from bbcache.testing import MemoryTimeline

CLIENTS = 500


def ask_all(bench: Bench, timeline: MemoryTimeline, count: int) -> list[WireClient]:
    """So many clients that all wait for one build."""
    clients = [bench.logged_in() for _ in range(count)]
    command = wire.query(bench.command(timeline, LSN_A, "gzip"))
    all_waiting(functools.partial(client.send, command) for client in clients)
    return clients


def test_five_hundred_clients_cause_one_build(bench: Bench) -> None:
    """Each asks over its own socket for a missing archive: one build, and every byte is right."""
    timeline = bench.harness.timeline()
    timeline.tarball = lambda at: noise(100_000, int(at))
    builds: list[Lsn] = []
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            gate()
            writer.write(timeline.tarball(lsn))

        timeline.on_send = send
        clients = ask_all(bench, timeline, CLIENTS)
        gate.open()
        archives = [copied(client.until("Z")) for client in clients]
    assert builds == [LSN_A]
    assert set(archives) == {bench.harness.path(timeline).read_bytes()}
    assert gzip.decompress(archives[0]) == noise(100_000, int(LSN_A))
    bench.wait_queries({"ok built": 1, "ok joined": CLIENTS - 1})
    assert bench.harness.counts() == {"ok": 1}
    print(f"[{len(archives)} clients, {len(builds)} build]", end="")  # noqa: T201 - the count is a result
    assert kinds(clients[0].ask(bench.command(timeline, LSN_A, "gzip"))) == "HdcCZ"
    bench.wait_queries({"ok built": 1, "ok joined": CLIENTS - 1, "ok hit": 1})


def failing_at(gate: Gate, error: BaseException) -> Callable[[TarballWriter, Lsn], None]:
    """A host whose build stops at a gate, and fails."""

    def send(writer: TarballWriter, _: Lsn) -> None:
        writer.write(b"half of")
        gate()
        raise error

    return send


def test_a_failing_build_fails_everyone_and_rests(bench: Bench) -> None:
    """Each is told the cause, and the next client when to try again; no client gets a byte."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        timeline.on_send = failing_at(gate, PostgresError("base/5/1259 is cut short"))
        clients = ask_all(bench, timeline, 3)
        gate.open()
        answers = [client.until("Z") for client in clients]
    assert {kinds(answer) for answer in answers} == {"EZ"}
    assert {answer[0].fields()["M"] for answer in answers} == {
        "cannot build the basebackup: base/5/1259 is cut short"
    }
    for words in ([LSN_A], ["latest"]):
        error, ready = clients[0].ask(bench.command(timeline, *words, "gzip"))
        assert (error.fields()["C"], ready.kind) == ("XX000", "Z")
        assert error.fields()["M"].startswith("the basebackup is not tried before 2")
        assert error.fields()["M"].endswith("it has failed 1 times in a row")
        assert error.fields()["H"].startswith("Ask again in ")
    assert fills(bench.harness) == {"error": 3, "backing_off": 2}
    bench.wait_queries({"error none": 5})


def test_what_the_host_says_of_itself_stays_in_the_log(bench: Bench) -> None:
    """A foreign exception's text reaches no client, also not as the cause of a pause."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        gate.open()
        timeline.on_send = failing_at(gate, RuntimeError("secret"))
        client = bench.logged_in()
        for _ in range(2):
            error = client.ask(bench.command(timeline, "gzip"))[0]
            assert "secret" not in str(error.fields())


def test_a_client_that_goes_leaves_the_build_to_others(bench: Bench) -> None:
    """It is noticed while it waits; the build goes on, and is published."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        (client,) = ask_all(bench, timeline, 1)
        gate.wait_for()
        client.close()
        bench.wait_gone()
        bench.wait_queries({"client_error none": 1})
        gate.open()
        bench.harness.wait_idle()
    assert bench.harness.get(timeline) == timeline.tarball(LSN_A)
    assert fills(bench.harness) == {"cancelled": 1}


def test_a_command_that_waits_for_a_build_can_be_cancelled(bench: Bench) -> None:
    """The connection lives on, and so does the build."""
    timeline = bench.harness.timeline()
    client = bench.client()
    key = next(reply.body for reply in client.log_in() if reply.kind == "K")
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        client.send(wire.query(bench.command(timeline, LSN_A, "gzip")))
        gate.wait_for()
        bench.client().send(wire.cancel_request(key))
        error, _ = client.until("Z")
        assert error.fields()["C"] == "57014"
        gate.open()
        bench.harness.wait_idle()
    replies = client.ask(bench.command(timeline, LSN_A, "gzip"))
    assert copied(replies) == bench.harness.path(timeline).read_bytes()


def test_an_end_of_the_service_waits_for_no_build(bench: Bench) -> None:
    """Drained, it lets the client wait on; closed, it does not."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        ask_all(bench, timeline, 1)
        assert not bench.service.drain(0)
        assert waiting_callers() == 1
        bench.service.close(DEADLINE_S)
        assert waiting_callers() == 0
        assert bench.service.connection_count == 0


def test_a_drain_lets_a_build_end(bench: Bench) -> None:
    """A client that asked before the drain gets all bytes, and then the end."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        (client,) = ask_all(bench, timeline, 1)
        assert not bench.service.drain(0)
        gate.open()
        replies = client.rest()
    assert kinds(replies) == "HdcCZE"
    assert copied(replies) == bench.harness.path(timeline).read_bytes()


def test_a_cache_that_closes(bench: Bench) -> None:
    """The client is told that the service ends, at once, and must go."""
    timeline = bench.harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        (client,) = ask_all(bench, timeline, 1)
        gate.wait_for()
        closing = Worker(bench.harness.cache.close, DEADLINE_S)
        (error,) = client.rest()
        gate.open()
        closing.result()
    assert (error.fields()["S"], error.fields()["C"]) == ("FATAL", "57P01")
    assert error.fields()["M"].startswith("shutdown")


@pytest.mark.parametrize(
    "settings", [{"max_entry_size_bytes": 500}, {"max_total_size_bytes": 500}], ids=str
)
def test_what_cannot_be_published(
    make_bench: Callable[[], Bench], settings: dict[str, int]
) -> None:
    """It is built once for all clients that wait, and sent without being published."""
    bench = make_bench()
    bench.harness.settings.update(settings)
    bench.serve()
    timeline = bench.harness.timeline()
    timeline.tarball = lambda at: noise(5000, int(at))
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        clients = ask_all(bench, timeline, 3)
        gate.open()
        for client in clients:
            assert gzip.decompress(copied(client.until("Z"))) == timeline.tarball(LSN_A)
    bench.wait_queries({"ok built": 1, "ok joined": 2})
    assert bench.harness.cache.entries() == []
    wait_until(lambda: unpublished_bytes(bench.harness) == 0)


def test_an_lsn_that_the_timeline_has_passed(bench: Bench) -> None:
    """A host that can still build it is asked to; it is not published."""
    timeline = bench.harness.timeline(LSN_B)
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A, "gzip"))
    assert gzip.decompress(copied(replies)) == timeline.tarball(LSN_A)
    assert bench.harness.cache.entries() == []


def test_who_is_ahead_holds_no_worker(make_bench: Callable[[], Bench]) -> None:
    """Clients that wait for LSNs leave the one worker to the others."""
    bench = make_bench()
    bench.harness.settings["prepare_concurrency"] = 1
    bench.serve()
    timelines = [bench.harness.timeline(LSN_A) for _ in range(3)]
    ahead = [bench.logged_in() for _ in timelines]
    for client, timeline in zip(ahead, timelines, strict=True):
        client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(
        lambda: bench.counts("pageserver_compute_commands_total") == {"{command=Basebackup}": 3}
    )
    other = bench.logged_in()
    assert kinds(other.ask(bench.command(bench.harness.timeline(), "gzip"))) == "HdcCZ"
    for client, timeline in zip(ahead, timelines, strict=True):
        timeline.advance(LSN_B)
        assert gzip.decompress(copied(client.until("Z"))) == timeline.tarball(LSN_B)


def test_who_is_ahead_and_goes_ends_its_wait(bench: Bench) -> None:
    """The cache waits for the LSN no longer than a client does."""
    timeline = bench.harness.timeline()
    clients = [bench.logged_in() for _ in range(2)]
    for client in clients:
        client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(lambda: waiting_callers() == 2)
    for client in clients:
        client.close()
    bench.wait_gone()
    bench.harness.wait_idle()
    assert bench.harness.skips == {"cancelled": 1}
    bench.wait_queries({"client_error none": 2})


def test_one_read_is_counted_for_each_command(bench: Bench) -> None:
    """A miss is one miss, and a hit one hit, whether the LSN is named or not."""
    timeline = bench.harness.timeline()
    client = bench.logged_in()
    client.ask(bench.command(timeline, LSN_A, "gzip"))
    assert bench.harness.reads == {"miss": 1}
    client.ask(bench.command(timeline, LSN_A, "gzip"))
    client.ask(bench.command(timeline, "latest", "gzip"))
    assert bench.harness.reads == {"miss": 1, "hit": 2}


class Aliased:
    """A timeline of the host at which one position has two names."""

    def __init__(self, timeline: MemoryTimeline) -> None:
        self._timeline = timeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timeline, name)

    def canonical_lsn(self, lsn: Lsn) -> Lsn:
        """The place behind a page's header is called by the page's start."""
        return Lsn(lsn - 24) if lsn % 8192 == 24 else lsn


@pytest.mark.parametrize("is_named", [True, False])
def test_either_name_of_a_position_hits(bench: Bench, *, is_named: bool) -> None:
    """The client's name, or the tip's, is looked up as the host's own."""
    boundary, behind = Lsn(0x4000), Lsn(0x4018)
    timeline = bench.harness.prepared(boundary)
    bench.harness.tenant.timelines[timeline.timeline_id] = Aliased(timeline)  # type: ignore[assignment]  # as good as one
    timeline.advance(behind)
    words = [behind] if is_named else []
    replies = bench.logged_in().ask(bench.command(timeline, *words, "gzip"))
    assert copied(replies) == bench.harness.path(timeline, boundary).read_bytes()
    bench.wait_queries({"ok hit": 1})


def test_a_tip_that_goes_on_meanwhile(bench: Bench) -> None:
    """A request for the tip gets the new one, if the host cannot build the old one."""
    timeline = bench.harness.timeline(LSN_A)
    built = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        built.append(lsn)
        if lsn == LSN_A:
            timeline.advance(LSN_B)
            raise PrepareError("the directory is at another LSN by now")
        writer.write(timeline.tarball(lsn))

    timeline.on_send = send
    replies = bench.logged_in().ask(bench.command(timeline, "latest", "gzip"))
    assert gzip.decompress(copied(replies)) == timeline.tarball(LSN_B)
    assert built == [LSN_A, LSN_B]


def test_a_tip_that_always_goes_on(bench: Bench) -> None:
    """It is not chased for ever."""
    timeline = bench.harness.timeline(LSN_A)

    def send(_: TarballWriter, lsn: Lsn) -> None:
        timeline.advance(Lsn(lsn + 8))
        raise PrepareError("the directory is at another LSN by now")

    timeline.on_send = send
    error, _ = bench.logged_in().ask(bench.command(timeline, "latest", "gzip"))
    assert error.fields()["M"].startswith("invalid basebackup lsn: the directory")
    assert timeline.get_last_record_lsn() == LSN_A + 24


@pytest.mark.parametrize("state", [TenantState.ATTACHING, TenantState.BROKEN])
def test_a_tenant_that_is_not_active(bench: Bench, state: TenantState) -> None:
    """The client is told its state, also where its timelines are not known yet."""
    timeline = bench.harness.timeline()
    command, tenant_id = bench.command(timeline, "gzip"), bench.harness.tenant.tenant_id
    bench.harness.tenant.state = state
    client = bench.logged_in()
    error = client.ask(command)[0].fields()["M"]
    assert error == f"cannot build the basebackup: the tenant is {state}, not {TenantState.ACTIVE}"
    bench.harness.tenant.timelines.clear()
    error = client.ask(command)[0].fields()["M"]
    assert error.startswith(f"tenant {tenant_id} is {state.value}")


def test_a_host_that_gives_up_before_its_time(bench: Bench) -> None:
    """It is asked again after a pause, not in a busy loop."""
    timeline = bench.harness.timeline(LSN_A)
    asked = []

    def wait(_: Lsn, timeout_s: float) -> None:
        asked.append(timeout_s)
        if len(asked) < 3:
            raise TimeoutError

    timeline.on_wait = wait
    started_s = time.monotonic()
    source = bench.source()
    ids = bench.harness.tenant.tenant_id, timeline.timeline_id
    source.open(BasebackupCommand(*ids, LSN_B), lambda: None).file.close()
    assert time.monotonic() - started_s >= 2 * asked[0] * 0.9


def test_a_wait_that_fails(bench: Bench) -> None:
    """The client is told that it failed, by its kind alone."""
    timeline = bench.harness.timeline(LSN_A)

    def wait(*_: object) -> None:
        raise RuntimeError("secret")

    timeline.on_wait = wait
    error, _ = bench.logged_in().ask(bench.command(timeline, LSN_B, "gzip"))
    assert error.fields()["M"] == "cannot build the basebackup: RuntimeError"


def test_a_timeline_that_does_not_know_where_it_stands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for its tip fails, and says why."""
    timeline = bench.harness.timeline()

    def fail() -> Lsn:
        raise PrepareError("a takeover has failed\nhint: Mend the disk.")

    monkeypatch.setattr(timeline, "get_last_record_lsn", fail)
    error, _ = bench.logged_in().ask(bench.command(timeline, "latest", "gzip"))
    assert error.fields()["M"] == "where the timeline stands is not known: a takeover has failed"
    assert error.fields()["H"] == "Mend the disk."


class TestOwnBuilds:
    """What the cache does not build."""

    def full(self, bench: Bench, timeline: MemoryTimeline) -> list[Reply]:
        """The answer to a fullbackup."""
        return bench.logged_in().ask(bench.command(timeline, LSN_A, name="fullbackup"))

    def test_a_fullbackup_is_built_each_time(self, bench: Bench) -> None:
        """Whatever is held, and nothing of it is published, read or counted as a read."""
        timeline = bench.harness.prepared()
        built = []

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            built.append(lsn)
            writer.write(timeline.tarball(LSN_C))

        timeline.on_send = send
        for _ in range(2):
            assert copied(self.full(bench, timeline)) == timeline.tarball(LSN_C)
        assert built == [LSN_A, LSN_A]
        assert bench.harness.reads == {}
        assert bench.harness.counts() == {"ok": 1}

    def test_a_few_at_a_time(self, bench: Bench) -> None:
        """The next one waits, and can be cut off while it does."""
        timeline = bench.harness.timeline()
        with Gate() as gate:
            stop_while_sending(timeline, gate)
            first = [Worker(self.full, bench, timeline) for _ in range(2)]
            gate.wait_for(2)
            third = bench.logged_in()
            third.send(wire.query(bench.command(timeline, LSN_A, name="fullbackup")))
            assert not gate.has_arrived(0.3)
            third.close()
            bench.wait_queries({"client_error none": 1})
            gate.open()
            for worker in first:
                replies: Any = worker.result()
                assert copied(replies) == timeline.tarball(LSN_A)

    def test_one_that_nobody_waits_for_ends(self, bench: Bench) -> None:
        """A build that no client waits for ends at its next write."""
        timeline = bench.harness.timeline()
        has_failed = threading.Event()

        def send(writer: TarballWriter, _: Lsn) -> None:
            try:
                writer.write(timeline.tarball(LSN_A))
                while True:
                    writer.write(b"x" * 100)
            except BaseException:
                has_failed.set()
                raise

        timeline.on_send = send
        client = bench.logged_in()
        client.send(wire.query(bench.command(timeline, LSN_A, name="fullbackup")))
        client.close()
        assert has_failed.wait(DEADLINE_S)
        bench.wait_queries({"client_error none": 1})

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (PrepareError("gone on"), "cannot build the basebackup: gone on"),
            (OSError(28, "/secret"), "cannot build the basebackup: OSError"),
        ],
        ids=["PrepareError", "OSError"],
    )
    def test_one_that_fails(self, bench: Bench, error: Exception, text: str) -> None:
        """The client gets an error and not a byte, and the next one its archive."""
        timeline = bench.harness.timeline()
        with Gate() as gate:
            gate.open()
            timeline.on_send = failing_at(gate, error)
            replies = self.full(bench, timeline)
        assert kinds(replies) == "EZ"
        assert replies[0].fields()["M"] == text
        timeline.on_send = None
        assert copied(self.full(bench, timeline)) == timeline.tarball(LSN_A)

    @pytest.mark.parametrize(
        "pieces",
        [
            [gzip.compress(bytes(10_240))],
            [b"x"] * 600,
            [b"short"],
            [memoryview(bytes(10_240))],
            [],
        ],
        ids=["gzip", "bytes", "short", "zeros", "nothing"],
    )
    def test_what_is_no_tar_is_refused(
        self, bench: Bench, pieces: list[Buffer], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As the cache refuses it, also where the host swallows what the writer raises."""
        timeline = bench.harness.timeline()

        def send(writer: TarballWriter, _: Lsn) -> None:
            for piece in pieces:
                with suppress(ArchiveError):
                    writer.write(piece)

        timeline.on_send = send
        replies = self.full(bench, timeline)
        assert kinds(replies) == "EZ"
        assert replies[0].fields()["M"].startswith("cannot build the basebackup")
        assert "the host wrote" in caplog.text
        timeline.on_send = None
        assert copied(self.full(bench, timeline)) == timeline.tarball(LSN_A)

    def test_one_that_is_ahead_waits(self, make_bench: Callable[[], Bench]) -> None:
        """Until the LSN is reached, or its time is up."""
        bench = make_bench()
        bench.serve(wait_lsn_timeout_s=0.3)
        timeline = bench.harness.timeline()
        client = bench.logged_in()
        ahead = bench.command(timeline, LSN_B, name="fullbackup")
        assert client.ask(ahead)[0].fields()["M"] == (
            f"timed out after 0.3 s of waiting for LSN {LSN_B}; the timeline is at {LSN_A}"
        )
        with Gate() as gate:
            timeline.on_wait = gate
            worker = Worker(client.ask, ahead)
            gate.wait_for()
            gate.open()
            replies: Any = worker.result()
        assert copied(replies) == timeline.tarball(LSN_B)

    def test_without_a_cache_everything_is(self, make_bench: Callable[[], Bench]) -> None:
        """Without a cache every archive is built, as by Neon's pageserver without one."""
        bench = make_bench()
        cache = BasebackupCache.spawn(bench.harness.dir, None, bench.harness.host)
        bench.serve(CacheSource(bench.harness.host, cache, PageServiceConfig()))
        timeline, archive = bench.harness.timeline(), b""
        for _ in range(2):
            archive = copied(bench.logged_in().ask(bench.command(timeline, LSN_A, "gzip")))
            assert gzip.decompress(archive) == timeline.tarball(LSN_A)
        bench.harness.prepare(timeline)
        assert archive == bench.harness.path(timeline).read_bytes()  # with the same seal
        bench.wait_queries({"ok built": 2})


def test_a_source_may_be_asked_after_the_end(bench: Bench) -> None:
    """A client of a closed cache is told that the service shuts down."""
    timeline = bench.harness.timeline()
    bench.harness.cache.close(DEADLINE_S)
    ids = bench.harness.tenant.tenant_id, timeline.timeline_id
    with pytest.raises(ShutdownError):
        bench.source().open(BasebackupCommand(*ids, LSN_A), lambda: None)
