"""Accepting goes on, whatever becomes of a connection."""

from __future__ import annotations

import errno
import logging
import socket
import threading

import pytest
from page_service.conftest import ANY_PORT
from support.cache_helpers import DEADLINE_S

from bbcache.page_service import listener as listener_module
from bbcache.page_service.listener import Listener

NAME = "test-accept"


def connect(listener: Listener) -> socket.socket:
    """A client's socket."""
    return socket.create_connection((listener.address.host, listener.address.port), DEADLINE_S)


def test_a_connection_that_cannot_be_taken(caplog: pytest.LogCaptureFixture) -> None:
    """It is closed, that is logged, and the next one is taken."""
    taken = threading.Event()
    failures = iter([RuntimeError("no")])

    def take(sock: socket.socket, _: str) -> None:
        for failure in failures:
            raise failure
        sock.close()
        taken.set()

    listener = Listener(ANY_PORT, take, NAME)
    listener.start()
    try:
        with connect(listener) as first:
            assert first.recv(1) == b""
        with connect(listener):
            assert taken.wait(DEADLINE_S)
    finally:
        listener.close(DEADLINE_S)
    assert "cannot serve a connection" in caplog.text


def test_an_accept_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """As for want of descriptors: it is logged, once a second at most, and tried again."""
    taken = threading.Event()

    def take(sock: socket.socket, _: str) -> None:
        sock.close()
        taken.set()

    now_s = [0.0]
    listener = Listener(ANY_PORT, take, NAME, lambda: now_s[0])

    class Scarce(socket.socket):
        """A socket whose first accepts fail."""

        failures = iter([0.0, 0.9, 1.0])  # when

        def accept(self) -> tuple[socket.socket, object]:
            """Fail, for some time."""
            for now_s[0] in self.failures:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_server", _scarce_server(Scarce))
        listener.start()
    try:
        with connect(listener):
            assert taken.wait(DEADLINE_S)
    finally:
        listener.close(DEADLINE_S)
    assert caplog.messages == ["cannot accept a connection: Too many open files"] * 2


def test_a_log_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next connection is taken all the same."""
    taken = threading.Event()
    failures = iter([RuntimeError("no")])

    class Failing(logging.Handler):
        """Takes nothing."""

        def emit(self, _: logging.LogRecord) -> None:
            """Fail."""
            raise ValueError("no")

    def take(sock: socket.socket, _: str) -> None:
        for failure in failures:
            raise failure
        sock.close()
        taken.set()

    monkeypatch.setattr(listener_module.log, "handlers", [Failing()])
    listener = Listener(ANY_PORT, take, NAME)
    listener.start()
    try:
        with connect(listener) as first, connect(listener):
            assert first.recv(1) == b""
            assert taken.wait(DEADLINE_S)
    finally:
        listener.close(DEADLINE_S)


def _scarce_server(kind: type[socket.socket]) -> object:
    def create(address: tuple[str, int], **_: object) -> socket.socket:
        sock = kind()
        sock.bind(address)
        sock.listen()
        return sock

    return create


def test_an_end() -> None:
    """It can be stopped and closed more than once, also before it was started."""
    listener = Listener(ANY_PORT, lambda *_: None, NAME)
    listener.close(DEADLINE_S)
    listener = Listener(ANY_PORT, lambda sock, _: sock.close(), NAME)
    listener.start()
    states = [listener.is_accepting]
    listener.stop()
    states.append(listener.is_accepting)
    assert states == [True, False]
    for _ in range(2):
        listener.close(DEADLINE_S)
    assert listener.address.port > 0
    assert not [each for each in threading.enumerate() if each.name == NAME]
