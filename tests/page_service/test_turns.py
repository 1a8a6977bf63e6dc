"""A client gets a turn at a time, however much it has sent."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest
from page_service import wire
from page_service.certificates import certificate
from page_service.wire import WireClient, kinds
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A, Worker

from bbcache.page_service.clients import Clients
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.errors import ShutdownError
from bbcache.page_service.metrics import ServiceMetrics
from bbcache.page_service.service import Service
from bbcache.page_service.session import Session, Turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from page_service.conftest import Bench


class Scene(NamedTuple):
    """A session, served by the test itself.

    Attributes:
        session: the session.
        client: the other end of its socket.
        hit: a command for an archive that the cache has.
    """

    session: Session
    client: WireClient
    hit: bytes

    def serve(self, turn: Turn) -> None:
        """Serve a turn, which must end so."""
        assert self.session.serve() is turn


def make_scene(bench: Bench, opened: ExitStack, tls: ssl.SSLContext | None = None) -> Scene:
    """A session that has not begun."""
    timeline = bench.harness.prepared()
    ours, theirs = socket.socketpair()
    opened.enter_context(theirs)
    clients = Clients(2, 2)
    service = Service(
        source=bench.source(),
        config=PageServiceConfig(),
        metrics=ServiceMetrics(CollectorRegistry(), lambda: 1),
        clients=clients,
        verifier=None,
        tls_context=None if tls is None else lambda: tls,
        must_yield=lambda *_, **__: False,
    )
    session = Session(service, ours, "peer")
    clients.add(session)
    opened.callback(session.close)
    hit = wire.query(bench.command(timeline, LSN_A, "gzip"))
    return Scene(session, WireClient(theirs), hit)


@pytest.fixture
def scene(bench: Bench) -> Iterator[Scene]:
    """A session that has let its client in."""
    with ExitStack() as opened:
        scene = make_scene(bench, opened)
        scene.client.send(wire.startup(0, user="u"))
        scene.serve(Turn.WAIT)
        assert scene.client.until("Z")
        yield scene


@pytest.mark.parametrize(
    ("message", "answer", "kind"),
    [
        (wire.SYNC, "Z", "Z"),
        (wire.parse("x"), "1", "1"),
        (wire.query(""), "IZ", "Z"),
    ],
    ids=["Sync", "Parse", "empty query"],
)
def test_a_turn_has_a_limit(scene: Scene, message: bytes, answer: str, kind: str) -> None:
    """A client that pipelines without end has no more messages answered than that."""
    scene.client.send(message * 200)
    turns = []
    while (turn := scene.session.serve()) is Turn.MORE:
        turns.append(turn)
    assert turn is Turn.WAIT
    assert len(turns) >= 200 // 32
    for _ in range(200):
        assert kinds(scene.client.until(kind)) == answer


def test_commands_take_more_of_a_turn(scene: Scene) -> None:
    """Each is answered in order, and the answers of one turn are sent in it."""
    scene.client.send(scene.hit * 6)
    scene.serve(Turn.MORE)
    for _ in range(3):
        assert kinds(scene.client.until("Z")) == "HdcCZ"
    scene.serve(Turn.WAIT)
    for _ in range(3):
        assert kinds(scene.client.until("Z")) == "HdcCZ"


def test_bytes_take_more_of_a_turn(scene: Scene) -> None:
    """A client that sends without end rests after each piece, also within one message."""
    scene.client.send(wire.query("x" * 30_000)[:20_000])
    scene.serve(Turn.MORE)
    scene.serve(Turn.WAIT)


def test_rubbish_after_a_command(scene: Scene) -> None:
    """The client has its archive all the same, then the reason why it must go."""
    scene.client.send(scene.hit, b"?\0\0\0\4")
    scene.serve(Turn.OVER)
    assert kinds(scene.client.rest()) == "HdcCZE"


def test_good_bye_after_a_command(scene: Scene) -> None:
    """The answer is sent before the end."""
    scene.client.send(scene.hit, wire.TERMINATE)
    scene.serve(Turn.OVER)
    assert kinds(scene.client.rest()) == "HdcCZ"


def test_an_end_between_turns(scene: Scene) -> None:
    """What the client has sent is not begun, and it is told why."""
    scene.client.send(scene.hit)
    scene.session.end(ShutdownError("the page service ends"), is_immediate=False)
    scene.serve(Turn.OVER)
    (error,) = scene.client.rest()
    assert error.fields()["C"] == "57P01"


def test_a_client_that_has_gone(scene: Scene) -> None:
    """Its answer cannot be sent, and the session is over."""
    scene.client.send(scene.hit)
    scene.client.close()
    scene.serve(Turn.OVER)
    assert scene.session.fileno() == -1


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_tls_handshake_holds_no_thread(bench: Bench, tmp_path: Path, *, is_direct: bool) -> None:
    """Each step of it is a turn, which waits for nothing that the client has yet to send."""
    server, trusting = certificate(tmp_path)
    trusting.set_alpn_protocols(["postgresql"])
    server.set_alpn_protocols(["postgresql"])
    with ExitStack() as opened:
        scene = make_scene(bench, opened, server)
        scene.serve(Turn.WAIT)
        if not is_direct:
            scene.client.send(wire.ssl_request()[:4])
            scene.serve(Turn.WAIT)
            scene.client.send(wire.ssl_request()[4:])
            scene.serve(Turn.WAIT)
            assert scene.client.sock.recv(1) == b"S"
        shaking = Worker(_tls_client, trusting, scene.client.sock)
        while shaking.is_alive():
            select.select([scene.session], [], [], 0.1)
            scene.serve(Turn.WAIT)
        client = shaking.result()
        assert isinstance(client, WireClient)
        client.send(wire.startup(0, user="u"))
        assert select.select([scene.session], [], [], DEADLINE_S)[0]
        scene.serve(Turn.WAIT)
        assert client.until("Z")[-1].kind == "Z"
        client.send(wire.FLUSH * 3276)  # a whole record: more than a turn, and nothing is lost
        client.send(wire.SYNC)
        turn = Turn.MORE
        while turn is Turn.MORE or select.select([scene.session], [], [], 0.1)[0]:
            turn = scene.session.serve()
        assert client.until("Z")
        scene.session.close()
        assert client.receive() is None
        client.close()


def _tls_client(trusting: ssl.SSLContext, sock: socket.socket) -> WireClient:
    return WireClient(
        trusting.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    )
