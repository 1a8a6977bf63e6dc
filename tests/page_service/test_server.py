"""Clients get the right bytes, or an error that says why not, and can go on."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any

import pytest
from page_service import wire
from page_service.wire import copied, kinds
from support.cache_helpers import LSN_A, LSN_B, MIB, Worker, noise
from support.helpers import wait_until

from bbcache.errors import PostgresError, PrepareError
from bbcache.ids import TenantId, TimelineId
from bbcache.outcomes import Source
from bbcache.page_service.source import OpenBasebackup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from page_service.conftest import Bench

    from bbcache.host import TarballWriter
    from bbcache.ids import Lsn
    from bbcache.page_service.protocol.command import BasebackupCommand


def test_a_hit(bench: Bench) -> None:
    """The client gets the file's own bytes, in the order of messages that Neon sends."""
    timeline = bench.harness.prepared()
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A, "--gzip"))
    assert kinds(replies) == "HdcCZ"
    assert replies[0].body == b"\0\0\0"
    assert replies[-2].body == b"SELECT 1\0"
    assert copied(replies) == bench.harness.path(timeline).read_bytes()
    assert bench.harness.reads == {"hit": 1}
    bench.wait_queries({"ok hit": 1})


def test_a_miss_is_built(bench: Bench) -> None:
    """What the cache does not have is built for the client."""
    timeline = bench.harness.timeline()
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A, "--gzip"))
    assert gzip.decompress(copied(replies)) == timeline.tarball(LSN_A)
    bench.wait_queries({"ok built": 1})


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("words", [["latest", "--gzip"], ["gzip"], [LSN_A, "gzip", "replica"]])
def test_latest_and_replicas_can_hit(bench: Bench, words: list[object], *, is_held: bool) -> None:
    """The tip is looked up like any LSN, and a replica's archive is a primary's."""
    timeline = bench.harness.prepared() if is_held else bench.harness.timeline()
    replies = bench.logged_in().ask(bench.command(timeline, *words))
    assert gzip.decompress(copied(replies)) == timeline.tarball(LSN_A)
    bench.wait_queries({f"ok {'hit' if is_held else 'built'}": 1})


@pytest.mark.parametrize("size_bytes", [1000, 5 * MIB])
def test_plain(bench: Bench, size_bytes: int) -> None:
    """Without gzip the tar itself comes."""
    timeline = bench.harness.prepared(size_bytes=size_bytes)
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A))
    assert copied(replies) == noise(size_bytes, int(LSN_A))
    assert kinds(replies) == "HdcCZ"
    bench.wait_queries({"ok hit": 1})


def test_fullbackup(bench: Bench) -> None:
    """It is plain, and never from the cache."""
    timeline = bench.harness.prepared()
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A, "0/10", name="fullbackup"))
    assert copied(replies) == timeline.tarball(LSN_A)
    bench.wait_queries({"ok built": 1})
    assert bench.counts("pageserver_compute_commands_total") == {"{command=Fullbackup}": 1}


def test_an_archive_of_many_pieces(bench: Bench) -> None:
    """Pieces have at most 1 MiB, and all bytes are there."""
    timeline = bench.harness.prepared(size_bytes=5 * MIB + 1)
    replies = bench.logged_in().ask(bench.command(timeline, LSN_A, "gzip"))
    sizes = [len(reply.body) for reply in replies if reply.kind == "d"]
    assert set(sizes[:-1]) == {MIB}
    assert copied(replies) == bench.harness.path(timeline).read_bytes()
    bench.wait_queries({"ok hit": 1})
    assert bench.counts("bbcache_page_service_copied_bytes_total") == {"": sum(sizes)}


def test_many_commands_of_one_client(bench: Bench) -> None:
    """They can be sent at once, and are answered in turn."""
    timelines = [bench.harness.prepared() for _ in range(3)]
    client = bench.logged_in()
    client.send(*(wire.query(bench.command(each, LSN_A, "gzip")) for each in timelines))
    for timeline in timelines:
        replies = client.until("Z")
        assert copied(replies) == bench.harness.path(timeline).read_bytes()
    client.send(wire.TERMINATE)
    assert client.rest() == []
    bench.wait_gone()
    assert bench.endings() == {"closed": 1}


def test_extended_protocol(bench: Bench) -> None:
    """As rust-postgres speaks it: no ready before the Sync."""
    timeline = bench.harness.prepared()
    client = bench.logged_in()
    client.send(wire.parse(bench.command(timeline, LSN_A, "gzip"), "s0"), wire.describe("s0"))
    client.send(wire.SYNC)
    assert kinds(client.until("Z")) == "1tnZ"
    client.send(wire.bind("s0"), wire.execute(), wire.SYNC)
    replies = client.until("Z")
    assert kinds(replies) == "2HdcCZ"
    assert copied(replies) == bench.harness.path(timeline).read_bytes()


def test_drivers_words(bench: Bench) -> None:
    """What drivers send around a command is answered, and means nothing."""
    client = bench.logged_in()
    for text, tag, status in (
        ("BEGIN", "BEGIN", b"T"),
        ("SET datestyle TO 'ISO'", "SET", b"T"),
        ("rollback;", "ROLLBACK", b"I"),
    ):
        complete, ready = client.ask(text)
        assert (complete.kind, complete.body) == ("C", tag.encode() + b"\0")
        assert ready.body == status
    assert kinds(client.ask(";")) == "IZ"


def test_waiting_for_an_lsn(bench: Bench) -> None:
    """A client that is ahead of the timeline gets its archive when the timeline is there."""
    timeline = bench.harness.timeline(LSN_A)
    asked = Worker(bench.logged_in().ask, bench.command(timeline, LSN_B, "gzip"))
    assert asked.is_alive()
    timeline.advance(LSN_B)
    replies: Any = asked.result()
    assert gzip.decompress(copied(replies)) == timeline.tarball(LSN_B)


def test_an_lsn_that_does_not_come(make_bench: Callable[[], Bench]) -> None:
    """It is waited for so long and no longer, and both positions are named."""
    bench = make_bench()
    bench.serve(wait_lsn_timeout_s=0.01)
    timeline = bench.harness.timeline(LSN_A)
    error, ready = bench.logged_in().ask(bench.command(timeline, LSN_B, "gzip"))
    assert error.fields()["M"] == (
        f"timed out after 0.01 s of waiting for LSN {LSN_B}; the timeline is at {LSN_A}"
    )
    assert ready.kind == "Z"
    bench.wait_queries({"error none": 1})


def test_what_is_not_here(bench: Bench) -> None:
    """Tenant or timeline, in Neon's words, and the connection lives on."""
    timeline = bench.harness.prepared()
    tenant_id = bench.harness.tenant.tenant_id
    client = bench.logged_in()
    for command in (
        f"basebackup {tenant_id} {TimelineId.generate()}",
        f"basebackup {TenantId.generate()} {timeline.timeline_id}",
    ):
        error, ready = client.ask(command)
        assert (error.fields()["C"], error.fields()["M"]) == ("XX000", "not found")
        assert "here" in error.fields()["D"]
        assert ready.kind == "Z"
        client.send(wire.parse(command), wire.bind(), wire.execute(), wire.SYNC)
        assert client.until("Z")[2].fields()["M"].startswith("Not found: ")
    assert kinds(client.ask(bench.command(timeline, "gzip"))) == "HdcCZ"


def test_tenants_that_are_not_known_yet(bench: Bench) -> None:
    """The client is told to try again; what the cache holds is served meanwhile."""
    timeline = bench.harness.prepared()
    bench.harness.host.is_ready = False
    client = bench.logged_in()
    error = client.ask(bench.command(timeline, "latest"))[0].fields()
    assert error["M"].startswith("the tenants are not known yet")
    assert error["H"] == "Try again soon."
    assert kinds(client.ask(bench.command(timeline, LSN_A, "gzip"))) == "HdcCZ"


def failing(error: BaseException) -> Callable[[TarballWriter, Lsn], None]:
    """A host whose build fails half-way."""

    def send(writer: TarballWriter, _: Lsn) -> None:
        writer.write(noise(1000))
        raise error

    return send


@pytest.mark.parametrize(
    ("error", "tip", "text"),
    [
        (PrepareError("gone on"), LSN_A, "cannot build the basebackup: gone on"),
        (PrepareError("gone on"), LSN_B, "invalid basebackup lsn: gone on"),
        (PostgresError("no file"), LSN_A, "cannot build the basebackup: no file"),
        (OSError(5, "/secret"), LSN_A, "cannot build the basebackup: OSError"),
        (RuntimeError("/secret"), LSN_A, "cannot build the basebackup: RuntimeError"),
    ],
)
def test_a_build_that_fails_half_way(
    bench: Bench, error: BaseException, tip: Lsn, text: str
) -> None:
    """The client gets an error and not a byte, and can go on."""
    timeline = bench.harness.timeline(tip)
    timeline.on_send = failing(error)
    client = bench.logged_in()
    replies = client.ask(bench.command(timeline, LSN_A, "gzip"))
    assert kinds(replies) == "EZ"
    assert (replies[0].fields()["C"], replies[0].fields()["M"]) == ("XX000", text)
    other = bench.harness.timeline()
    assert kinds(client.ask(bench.command(other, "gzip"))) == "HdcCZ"
    bench.wait_queries({"error none": 1, "ok built": 1})


class Lying:
    """A source whose files are not what it says."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes

    def open(self, command: BasebackupCommand, _: Callable[[], None]) -> OpenBasebackup:
        """The file, for any command."""
        del command
        return OpenBasebackup(self.path.open("rb"), self.size_bytes, Source.HIT)


@pytest.mark.parametrize("flags", ["--gzip", ""], ids=["gzip", "plain"])
@pytest.mark.parametrize("extended", [True, False], ids=["extended", "simple"])
def test_an_archive_that_is_cut_short(
    make_bench: Callable[[], Bench], tmp_path: Path, flags: str, *, extended: bool
) -> None:
    """The client gets an error and no end of the copy: never a shorter archive."""
    whole = gzip.compress(os.urandom(3 * MIB), 0)
    path = tmp_path / "archive"
    path.write_bytes(whole[: -MIB // 2])
    bench = make_bench()
    bench.serve(Lying(path, len(whole)))
    timeline = bench.harness.timeline()
    client = bench.logged_in()
    command = bench.command(timeline, LSN_A, flags)
    if extended:
        client.send(wire.parse(command), wire.bind(), wire.execute(), wire.SYNC)
        replies = client.until("Z")
        assert kinds(replies) == "12HdEZ"
    else:
        replies = client.ask(command)
        assert kinds(replies) == "HdEZ"
    text = replies[-2].fields()["M"]
    assert text.startswith("the basebackup cannot be read to its end")
    bench.wait_queries({"error hit": 1})
    path.write_bytes(whole)
    assert kinds(client.ask(command)) == "HdcCZ"


class Failing:
    """A source that raises SystemExit."""

    def open(
        self, command: BasebackupCommand, check_cancelled: Callable[[], None]
    ) -> OpenBasebackup:
        """End the interpreter, if that were up to it."""
        raise SystemExit(f"{command} {check_cancelled}")


def test_a_source_that_wants_to_end_it_all(
    make_bench: Callable[[], Bench], caplog: pytest.LogCaptureFixture
) -> None:
    """It costs the connection that it was asked for, and no other."""
    bench = make_bench()
    bench.serve(Failing())
    client, other = bench.logged_in(), bench.logged_in()
    client.send(wire.query(bench.command(bench.harness.timeline(), LSN_A)))
    assert client.rest() == []
    assert kinds(other.ask("BEGIN")) == "CZ"
    wait_until(lambda: "a connection could not be served" in caplog.messages)
    assert bench.service.connection_count == 1


@pytest.mark.parametrize("missing_bytes", [1, 999, 1000])
def test_a_small_archive_that_is_cut_short(
    make_bench: Callable[[], Bench], tmp_path: Path, missing_bytes: int
) -> None:
    """It is read whole before the client is told of a copy."""
    path = tmp_path / "archive"
    path.write_bytes(os.urandom(1000 - missing_bytes))
    bench = make_bench()
    bench.serve(Lying(path, 1000))
    replies = bench.logged_in().ask(bench.command(bench.harness.timeline(), LSN_A, "gzip"))
    assert kinds(replies) == "EZ"
    assert replies[0].fields()["M"].startswith("the basebackup cannot be read to its end")


@pytest.mark.parametrize("size_bytes", [1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 17])
def test_archives_about_as_big_as_one_send(
    make_bench: Callable[[], Bench], tmp_path: Path, size_bytes: int
) -> None:
    """Read whole or sent by `sendfile`, and one after the other, they arrive whole."""
    path = tmp_path / "archive"
    path.write_bytes(os.urandom(size_bytes))
    bench = make_bench()
    bench.serve(Lying(path, size_bytes))
    command = bench.command(bench.harness.timeline(), LSN_A, "gzip")
    client = bench.logged_in()
    client.send(wire.query(command), wire.query(command))
    for _ in range(2):
        replies = client.until("Z")
        assert kinds(replies) == "HdcCZ"
        assert copied(replies) == path.read_bytes()


def test_an_archive_that_is_damaged(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """Decompressed on its way, it is checked on its way."""
    data = bytearray(gzip.compress(os.urandom(3 * MIB), 0))
    data[len(data) // 2] ^= 1
    path = tmp_path / "archive"
    path.write_bytes(data)
    bench = make_bench()
    bench.serve(Lying(path, len(data)))
    replies = bench.logged_in().ask(bench.command(bench.harness.timeline(), LSN_A))
    assert kinds(replies) == "HdEZ"
    assert "not a valid gzip file" in replies[-2].fields()["M"]


def test_what_cannot_be_read_at_all(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """The client gets the error before a copy begins."""
    path = tmp_path / "archive"
    path.write_bytes(b"\x1f\x8b" + b"\xff" * 100)
    bench = make_bench()
    bench.serve(Lying(path, 102))
    assert kinds(bench.logged_in().ask(bench.command(bench.harness.timeline(), LSN_A))) == "EZ"


def test_wrong_commands(bench: Bench) -> None:
    """The error says what is wrong, in both protocols, and the connection goes on."""
    client = bench.logged_in()
    error = client.ask("select 1")[0].fields()
    assert error["C"] == "XX000"
    assert error["M"] == "unsupported command select in select 1"
    assert error["H"].startswith("Say `basebackup")
    client.send(wire.parse("select 1"), wire.bind(), wire.execute(), wire.SYNC)
    assert kinds(client.until("Z")) == "12EZ"
    bench.wait_queries({})


def test_a_client_that_goes_while_it_waits(bench: Bench) -> None:
    """The wait ends with the client, and counts as the client's own fault."""
    timeline = bench.harness.timeline(LSN_A)
    client = bench.logged_in()
    client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    client.close()
    bench.wait_gone()
    bench.wait_queries({"client_error none": 1})


def test_a_client_that_goes_in_the_middle_of_a_copy(bench: Bench) -> None:
    """No other client is harmed, and its file is closed."""
    timeline = bench.harness.prepared(size_bytes=20 * MIB)
    client = bench.logged_in()
    client.send(wire.query(bench.command(timeline, LSN_A, "gzip")))
    assert client.sock.recv(1000)
    client.close()
    bench.wait_gone()
    bench.wait_queries({"client_error hit": 1})
    held = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)
    ]
    assert str(bench.harness.path(timeline)) not in held


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_cancel(bench: Bench) -> None:
    """The right key ends a command, and nothing else; a wrong one does nothing."""
    timeline = bench.harness.timeline(LSN_A)
    client = bench.client()
    key = next(reply.body for reply in client.log_in() if reply.kind == "K")
    client.send(wire.query(bench.command(timeline, LSN_B, "gzip")))
    wait_until(lambda: bench.counts("pageserver_compute_commands_total"))
    for wrong in (key[:4] + b"xxxx", b"\0\0\xff\0" + key[4:]):
        stranger = bench.client()
        stranger.send(wire.cancel_request(wrong))
        assert stranger.rest() == []
    bench.client().send(wire.cancel_request(key))
    error, ready = client.until("Z")
    assert (error.fields()["C"], ready.kind) == ("57014", "Z")
    bench.wait_queries({"client_error none": 1})
    timeline.advance(LSN_B)
    for name in ("basebackup", "fullbackup"):  # the latter asks at each write
        assert kinds(client.ask(bench.command(timeline, LSN_B, name=name))) == "HdcCZ"


def test_many_clients_at_once(bench: Bench) -> None:
    """Each gets its own bytes."""
    timelines = [bench.harness.prepared(size_bytes=100_000 + number) for number in range(8)]

    def fetch(number: int) -> None:
        client = bench.logged_in()
        for turn in range(5):
            timeline = timelines[(number + turn) % len(timelines)]
            replies = client.ask(bench.command(timeline, LSN_A, "gzip"))
            assert copied(replies) == bench.harness.path(timeline).read_bytes()

    workers = [Worker(fetch, number) for number in range(16)]
    for worker in workers:
        worker.result()
    bench.wait_queries({"ok hit": 80})
