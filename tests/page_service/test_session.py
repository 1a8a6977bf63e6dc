"""A session by itself: `serve` makes the answer, `finish` sends it, and then it has ended."""

from __future__ import annotations

import gzip
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from page_service import wire
from page_service.certificates import certificate
from page_service.wire import WireClient, copied, kinds
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A, Worker

from bbcache.page_service.command_log import CommandLog, EndedCommand
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.connections import Connections
from bbcache.page_service.errors import ShutdownError
from bbcache.page_service.metrics import Result, ServiceMetrics
from bbcache.page_service.session import Session
from bbcache.page_service.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from page_service.conftest import Bench


class Recorder(CommandLog):
    """Keeps what has ended.

    Attributes:
        ended: the commands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[EndedCommand] = []

    def add(self, ended: EndedCommand) -> None:
        """Keep it."""
        self.ended.append(ended)


class Scene(NamedTuple):
    """A session that has let its client in, without any thread.

    Attributes:
        session: the session.
        connections: that it is one of.
        client: the other end of its socket.
        commands: what has ended.
        hit: a command for an archive that the cache has.
        tarball: what is in it.
    """

    session: Session
    connections: Connections
    client: WireClient
    commands: Recorder
    hit: bytes
    tarball: bytes

    def results(self) -> list[tuple[Result, int]]:
        """How the commands ended, and with how many bytes of an archive."""
        return [(ended.result, ended.sent_bytes) for ended in self.commands.ended]


@pytest.fixture
def scene(bench: Bench) -> Iterator[Scene]:
    """One with a small archive in the cache."""
    timeline = bench.harness.prepared()
    ours, theirs = socket.socketpair()
    connections = Connections(2)
    connection = connections.add(Transport(ours, DEADLINE_S), "peer", time.monotonic())
    commands = Recorder()
    session = Session(
        connection,
        connections,
        bench.source(),
        PageServiceConfig(),
        ServiceMetrics(CollectorRegistry(), lambda: 1),
        commands,
        None,
        None,
    )
    with theirs:
        hit = wire.query(bench.command(timeline, LSN_A, "gzip"))
        scene = Scene(
            session, connections, WireClient(theirs), commands, hit, timeline.tarball(LSN_A)
        )
        scene.client.send(wire.startup(0, user="u"))
        assert session.serve()
        assert session.finish() is not None
        assert scene.client.until("Z")
        yield scene
        if session.fileno() != -1:
            session.close()


def test_the_answer_waits_for_finish(scene: Scene) -> None:
    """Nothing is sent before, and nothing is counted."""
    scene.client.send(scene.hit)
    assert scene.session.serve()
    scene.client.sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        scene.client.sock.recv(1)
    assert not scene.results()
    scene.client.sock.settimeout(DEADLINE_S)
    assert scene.session.finish() == scene.session.deadline_s
    replies = scene.client.until("Z")
    assert kinds(replies) == "HdcCZ"
    assert gzip.decompress(copied(replies)) == scene.tarball
    assert scene.results() == [(Result.OK, len(copied(replies)))]


def test_an_answer_that_cannot_be_sent(scene: Scene) -> None:
    """The command has failed, by the client's fault, and nothing of the archive was sent."""
    scene.client.send(scene.hit)
    assert scene.session.serve()
    scene.client.close()
    assert scene.session.finish() is None
    assert scene.session.fileno() == -1
    assert scene.results() == [(Result.CLIENT_ERROR, 0)]
    assert len(scene.connections) == 0


def test_many_commands_at_once(scene: Scene) -> None:
    """Each has its answer, in order, and ends by itself."""
    scene.client.send(scene.hit, scene.hit, wire.query("nonsense"), scene.hit)
    assert scene.session.serve()
    assert [result for result, _ in scene.results()] == [Result.OK] * 2
    assert scene.session.finish() is not None
    for wanted in ("HdcCZ", "HdcCZ", "EZ", "HdcCZ"):
        assert kinds(scene.client.until("Z")) == wanted
    assert [result for result, _ in scene.results()] == [Result.OK] * 3


def test_rubbish_behind_a_command(scene: Scene) -> None:
    """The client has its archive all the same, then the reason why it must go."""
    scene.client.send(scene.hit, b"?\0\0\0\4")
    assert not scene.session.serve()
    replies = scene.client.rest()
    assert kinds(replies) == "HdcCZE"
    assert gzip.decompress(copied(replies)) == scene.tarball
    assert scene.results() == [(Result.OK, len(copied(replies)))]


def test_good_bye_behind_a_command(scene: Scene) -> None:
    """The answer is sent before the end."""
    scene.client.send(scene.hit, wire.TERMINATE)
    assert not scene.session.serve()
    assert kinds(scene.client.rest()) == "HdcCZ"
    assert [result for result, _ in scene.results()] == [Result.OK]


def test_an_interruption_before_finish(scene: Scene) -> None:
    """A drain lets the answer out, and then the client must go."""
    scene.client.send(scene.hit)
    assert scene.session.serve()
    reason = ShutdownError("shutdown")
    scene.connections.end(reason)
    assert scene.session.finish() is None
    assert reason.__traceback__ is None  # all clients share it, and it would keep their frames
    assert kinds(scene.client.rest()) == "HdcCZE"
    assert [result for result, _ in scene.results()] == [Result.OK]


def test_tls_is_heard_a_record_at_a_time(bench: Bench, tmp_path: Path) -> None:
    """All of one, however large; others have their turn before the next one."""
    server, trusting = certificate(tmp_path)
    ours, theirs = socket.socketpair()
    connections = Connections(1)
    session = Session(
        connections.add(Transport(ours, DEADLINE_S), "peer", time.monotonic()),
        connections,
        bench.source(),
        PageServiceConfig(),
        ServiceMetrics(CollectorRegistry(), lambda: 1),
        Recorder(),
        None,
        server,
    )
    theirs.sendall(wire.ssl_request())
    theirs.settimeout(DEADLINE_S)

    def shake_hands() -> WireClient:
        assert theirs.recv(1) == b"S"
        return WireClient(trusting.wrap_socket(theirs, server_hostname="127.0.0.1"))

    shaking = Worker(shake_hands)
    assert session.serve()
    client = shaking.result()
    assert isinstance(client, WireClient)
    client.send(wire.startup(0, user="u"))
    assert session.serve()
    assert session.finish() is not None
    record = wire.FLUSH * 3276
    client.send(record)
    client.send(record)
    for _ in range(2):
        before = session._conversation.message_count
        assert session.serve()
        assert session._conversation.message_count == before + 3276
    client.close()
    session.close()
