"""Where scripts are played: to the protocol's own layers, to a session, to a whole service.

Each way to play ends in an AssertionError where a promise is broken: something other than a
`PageServiceError` comes out, the answer is not made of whole messages, it depends on how the
stream was cut, the log has a traceback or a piece of a token, or a client gets bytes of an
archive that it may not have.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import tarfile
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from fuzz.scripts import ClientKind, Vocabulary
from page_service import wire
from page_service.tokens import Signer
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Harness
from support.helpers import count_descriptors, wait_until

from bbcache import TenantId, TimelineId
from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.clients import Clients
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.errors import PageServiceError
from bbcache.page_service.metrics import ServiceMetrics
from bbcache.page_service.protocol import conversation as c
from bbcache.page_service.protocol.command import BasebackupCommand, parse_command
from bbcache.page_service.server import PageService
from bbcache.page_service.service import Service
from bbcache.page_service.session import Session, Turn
from bbcache.page_service.source import CacheSource

if TYPE_CHECKING:
    from pathlib import Path

    from fuzz.scripts import Script

    from bbcache.page_service.auth.permission import Permission

CONTENT: Final = b"what only its owner may see " * 8
_SEND_TIMEOUT_S: Final = 60.0
_PATIENCE_S: Final = 0.01
_PIECE_CHARACTERS: Final = 8  # of the token: as many as no line has by chance
_COPY_KINDS: Final = frozenset("HdcC")


class Log(logging.Handler):
    """Keeps what is logged with a traceback, as an error, or with a piece of the token."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.bad: list[str] = []
        self.token = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        text = self.format(record)
        if record.exc_info or record.levelno >= logging.ERROR or self._has_token(text):
            self.bad.append(text)

    def _has_token(self, text: str) -> bool:
        pieces = range(0, len(self.token) - _PIECE_CHARACTERS, _PIECE_CHARACTERS)
        return any(self.token[at : at + _PIECE_CHARACTERS] in text for at in pieces)


class _Verifier:
    """Proves tokens, but the one that is in every other script only once: it takes long."""

    def __init__(self, keys: TokenKeys, token: str) -> None:
        self._keys = keys
        self._token = token
        self._permission = keys.verify(token)

    def verify(self, token: str) -> Permission:
        """What the token opens."""
        return self._permission if token == self._token else self._keys.verify(token)


_POOLS: Final = ("bbcache-client", "bbcache-login")


class FuzzHarness:
    """A host with one basebackup in a cache, sessions over it, and services. A context manager.

    Args:
        directory: an empty one.

    Attributes:
        counts: inputs by kind, and how they ended.
        vocabulary: makes scripts of bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._directory = directory
        self._harness = Harness(directory / "cache", prepare_concurrency=1)
        self._log = Log()
        self._opened = ExitStack()
        self._config = PageServiceConfig(
            listen=Address("127.0.0.1", 0),
            send_timeout_s=_SEND_TIMEOUT_S,
            wait_lsn_timeout_s=1e-4,
        )

    def __enter__(self) -> Self:
        """Prepare the archive, and start the services."""
        logger = logging.getLogger("bbcache")
        logger.addHandler(self._log)
        self._opened.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.DEBUG)
        self._opened.callback(logger.removeHandler, self._log)
        self._opened.enter_context(self._harness)
        timeline = self._harness.timeline()
        timeline.tarball = lambda _: tarfile.TarInfo("secret").tobuf() + CONTENT
        self._harness.prepare(timeline)
        self._archive = self._harness.path(timeline).read_bytes()
        signer = Signer()
        tenant_id = self._harness.shard_of(timeline).tenant_id
        self._source = CacheSource(
            self._harness.host,
            self._harness.cache,
            self._config,
        )
        token = signer.sign(scope="tenant", tenant_id=str(TenantId.generate()))
        keys = TokenKeys(signer.write_public(self._directory / "key.pem"))
        self._verifier = _Verifier(keys, token)
        self._log.token = token
        self.vocabulary = Vocabulary(_commands(tenant_id, timeline.timeline_id), token)
        self._metrics = ServiceMetrics(CollectorRegistry(), lambda: 0)
        self._clients = Clients(1000, 1000)
        self._services = {client: self._service(client) for client in ClientKind}
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._opened.close()

    def _service(self, client: ClientKind) -> PageService:
        verifier = None if client is ClientKind.ANYONE else self._verifier
        service = PageService(
            self._source, self._config, verifier=verifier, registry=CollectorRegistry()
        )
        service.start()
        self._opened.callback(service.close, DEADLINE_S)
        return service

    def play(self, data: bytes, *, is_over_tcp: bool = False) -> None:
        """Play what some bytes stand for in every way; over TCP only where asked to."""
        script = self.vocabulary.script(data)
        self.counts["inputs"] += 1
        self.counts["messages"] += len(script.messages)
        self.converse(script)
        self.serve(script)
        if is_over_tcp:
            self.connect(script)

    def converse(self, script: Script) -> None:
        """To the conversation alone: as it is cut, and all at once."""
        cut = self._conversed(script.client, script.pieces())
        whole = self._conversed(script.client, [b"".join(script.messages)])
        if b"S" not in (cut[:1], whole[:1]):  # TLS, which nobody goes on with here
            assert cut == whole, f"the answer depends on the cuts: {cut!r}, {whole!r}"

    def _conversed(self, client: ClientKind, pieces: list[bytes]) -> bytes:
        conversation = c.Conversation(
            wants_token=client is not ClientKind.ANYONE,
            has_tls=False,
            process_id=1,
            secret=b"1234",
        )
        said = bytearray()
        for piece in pieces:
            if conversation.is_closed:
                break
            conversation.feed(piece)
            try:
                self._answer_all(conversation, client, said)
            except PageServiceError as error:
                conversation.fail(error)
                assert conversation.is_closed
            said += conversation.take_output()
        _check_whole(bytes(said))
        return bytes(said)

    def _answer_all(
        self, conversation: c.Conversation, client: ClientKind, said: bytearray
    ) -> None:
        while (event := conversation.next_event()) is not None:
            self.counts[type(event).__name__] += 1
            if isinstance(event, c.TlsRequested):
                assert not conversation.answer_tls()
            elif isinstance(event, c.LoginRequested):
                if event.token is not None:
                    self._verifier.verify(event.token)
                    assert client is ClientKind.NEIGHBOUR, "a token that nobody has signed is good"
                assert event.token is not None or client is ClientKind.ANYONE
                conversation.let_in()
            elif isinstance(event, c.CommandGiven):
                assert conversation.is_let_in
                assert client is not ClientKind.STRANGER, "a stranger has given a command"
                self._obey(conversation, event.text, said)

    def _obey(self, conversation: c.Conversation, text: str, said: bytearray) -> None:
        try:
            command = parse_command(text)
            if not isinstance(command, BasebackupCommand):
                conversation.complete(command)
                return
            conversation.check_transaction()
        except PageServiceError as error:
            conversation.fail(error)
            return
        self.counts["commands understood"] += 1
        assert parse_command(str(command)) == command
        said += b"".join(conversation.copy_frame())

    def serve(self, script: Script) -> None:
        """To a whole session, over a pair of sockets, in this thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b"".join(script.messages))
            theirs.shutdown(socket.SHUT_WR)
            service = Service(
                source=self._source,
                config=self._config,
                metrics=self._metrics,
                clients=self._clients,
                verifier=None if script.client is ClientKind.ANYONE else self._verifier,
                tls_context=None,
                must_yield=lambda *_, **__: False,
            )
            session = Session(service, ours, "fuzz")
            self._clients.add(session)
            while session.serve() is not Turn.OVER:
                pass  # the script has sent all, and the end of the stream
            assert ours.fileno() == -1, "the socket was left open"
            self._check_answer(script.client, _received(theirs))

    def connect(self, script: Script) -> None:
        """To a whole service, over TCP, in the pieces of the script."""
        self.counts["over TCP"] += 1
        address = self._services[script.client].address
        with socket.create_connection((address.host, address.port), DEADLINE_S) as sock:
            with contextlib.suppress(OSError):  # it may have had enough in between
                for piece in script.pieces():
                    sock.sendall(piece)
            answer = _received(sock, _PATIENCE_S)  # a client that says no more is taken to be gone
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            self._check_answer(script.client, answer + _received(sock))

    def _check_answer(self, client: ClientKind, answer: bytes) -> None:
        assert not self._log.bad, self._log.bad
        replies = _check_whole(answer)
        kinds = Counter(reply.kind for reply in replies)
        self.counts["errors told"] += kinds["E"]
        self.counts["archives given"] += kinds["c"]
        if client is not ClientKind.ANYONE:
            assert not _COPY_KINDS & kinds.keys() or client is ClientKind.NEIGHBOUR, kinds
            assert not kinds["d"], "bytes of a copy for a client without the right to them"
            assert self._archive[-40:] not in answer
            assert CONTENT[:20] not in answer

    def check_quiet(self) -> None:
        """Nothing is left of all that was played."""
        wait_until(lambda: not any(each.connection_count for each in self._services.values()))
        assert len(self._clients) == 0
        assert not self._log.bad, self._log.bad
        self._harness.wait_idle()

    def traces(self) -> tuple[int, int]:
        """How many threads and descriptors there are, but for the pools of the services.

        A pool takes another thread for a client that comes before the last one's thread is
        back, and keeps it: how many there are then is chance, up to the limit of connections.
        """
        self.check_quiet()
        names = [thread.name for thread in threading.enumerate()]
        return sum(not name.startswith(_POOLS) for name in names), count_descriptors()


def _commands(tenant_id: TenantId, timeline_id: TimelineId) -> list[str]:
    ids = f"{tenant_id} {timeline_id}"
    return [
        f"basebackup {ids} {LSN_A} --gzip",
        f"basebackup {ids} {LSN_A}",
        f"basebackup {ids} latest gzip replica;",
        f"basebackup {ids} {LSN_B} --gzip",
        f"fullbackup {ids}",
        f"basebackup {tenant_id} {TimelineId.generate()} {LSN_A} --gzip",
        f"basebackup {TenantId.generate()} {timeline_id} {LSN_A} --gzip",
        *("begin", "rollback", "rollback to s", "commit", ""),
    ]


def _received(sock: socket.socket, patience_s: float | None = None) -> bytes:
    """All that comes, up to the end or a silence; a reset is an end, too."""
    sock.settimeout(patience_s or DEADLINE_S)
    answer = bytearray()
    expected = (ConnectionError, *[TimeoutError] * (patience_s is not None))
    with contextlib.suppress(*expected):
        while piece := sock.recv(1 << 16):
            answer += piece
    return bytes(answer)


def _check_whole(answer: bytes) -> list[wire.Reply]:
    """The messages in an answer, behind what a request for encryption is answered with."""
    replies, left = wire.split(answer.lstrip(b"N"))
    assert not left, f"an answer ends within a message: {left!r}"
    return replies
