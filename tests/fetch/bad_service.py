"""A server on loopback that does what it is told: one script for each connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from bbcache.page_service.protocol import backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENCRYPTION: Final = (80877103, 80877104)
_DEADLINE_S: Final = 60.0
_CHUNK_BYTES: Final = 256 * 1024


class Peer:
    """A client that has connected, from the server's side."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(_DEADLINE_S)
        self.parameters: list[str] = []

    def send(self, *messages: bytes) -> None:
        """Send messages."""
        self.sock.sendall(b"".join(messages))

    def take(self, size_bytes: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < size_bytes:
            piece = self.sock.recv(size_bytes - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def message(self, kind_bytes: int = 1) -> bytes:
        """The body of a message."""
        self.take(kind_bytes)
        (length,) = struct.unpack("!I", self.take(4))
        return self.take(length - 4)

    def begin(self) -> None:
        """Hear who it is; there is no TLS."""
        while True:
            body = self.message(0)
            if struct.unpack_from("!I", body)[0] not in _ENCRYPTION:
                break
            self.sock.sendall(b"N")
        self.parameters = body[4:].decode().split("\0")

    def let_in(self) -> str:
        """Let it in; return its command."""
        self.begin()
        self.send(
            backend.AUTHENTICATION_OK,
            backend.parameter_status("client_encoding", "UTF8"),
            backend.READY_FOR_QUERY,
        )
        return self.message().rstrip(b"\0").decode()

    def copy(self, data: bytes) -> None:
        """Begin a copy, and send bytes of it."""
        self.let_in()
        self.send(backend.COPY_OUT)
        for at in range(0, len(data), _CHUNK_BYTES):
            piece = data[at : at + _CHUNK_BYTES]
            self.send(backend.copy_data_head(len(piece)), piece)

    def end_copy(self) -> None:
        """End it well, and wait for the client to go."""
        self.send(backend.COPY_DONE, backend.command_complete("SELECT 1"), backend.READY_FOR_QUERY)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Wait until the client closes."""
        with contextlib.suppress(OSError):
            while self.sock.recv(4096):
                pass


class BadService:
    """A server; leaving its block ends it, and raises what a script has not expected.

    Args:
        scripts: what it does to its clients, one after the other; the last one again
            and again.
    """

    def __init__(self, *scripts: Callable[[Peer], None]) -> None:
        self._scripts = scripts
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._peers: list[Peer] = []
        self.commands: list[str] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"postgresql://127.0.0.1:{self._socket.getsockname()[1]}/"

    @property
    def count(self) -> int:
        """How many clients have connected."""
        return len(self._peers)

    def listen(self) -> None:
        """Serve; until then, connections are refused."""
        self._socket.listen()
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for script in self._endless():
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            peer = Peer(sock)
            self._peers.append(peer)
            self._spawn(self._serve, script, peer)

    def _endless(self) -> Iterator[Callable[[Peer], None]]:
        yield from self._scripts
        while True:
            yield self._scripts[-1]

    def _serve(self, script: Callable[[Peer], None], peer: Peer) -> None:
        try:
            with peer.sock:
                script(peer)
        except OSError:
            return  # the client has gone
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self._failures.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_DEADLINE_S)
            assert not thread.is_alive()
        for failure in self._failures:
            raise failure


def error(text: str, sqlstate: str = "XX000", severity: str = "ERROR") -> bytes:
    """An ErrorResponse."""
    return backend.error_response(severity, sqlstate, text)


def says(text: str, sqlstate: str = "XX000", severity: str = "ERROR") -> Callable[[Peer], None]:
    """Let the client in, and answer its command with an error."""

    def script(peer: Peer) -> None:
        peer.let_in()
        peer.send(error(text, sqlstate, severity), backend.READY_FOR_QUERY)
        peer.wait_gone()

    return script


def greets_with(text: str, sqlstate: str) -> Callable[[Peer], None]:
    """Refuse the client before it is let in."""

    def script(peer: Peer) -> None:
        peer.begin()
        peer.send(error(text, sqlstate, "FATAL"))

    return script


def hangs_up(_: Peer) -> None:
    """Close at once."""


def serves(data: bytes) -> Callable[[Peer], None]:
    """Give these bytes, and say that it is all."""

    def script(peer: Peer) -> None:
        peer.copy(data)
        peer.end_copy()

    return script


def breaks_off(data: bytes, *last_words: bytes) -> Callable[[Peer], None]:
    """Give these bytes, say this, and close."""

    def script(peer: Peer) -> None:
        peer.copy(data)
        peer.send(*last_words)

    return script


def falls_silent(data: bytes, event: threading.Event | None = None) -> Callable[[Peer], None]:
    """Give these bytes and no more, with the connection open; then set the event."""

    def script(peer: Peer) -> None:
        peer.copy(data)
        if event is not None:
            event.set()
        peer.wait_gone()

    return script
