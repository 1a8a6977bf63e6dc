"""One thread watches all connections, and tells of each one once."""

from __future__ import annotations

import errno
import math
import queue
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S
from support.helpers import count_descriptors, wait_until

from bbcache.serving.listening import Address, address_of, open_listeners
from bbcache.serving.poller import REST_S, Poller

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "test-poller"


class Guest:
    """A connection whose other end the test has."""

    def __init__(self, deadline_s: float = math.inf) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.deadline_s = deadline_s

    def fileno(self) -> int:
        """The descriptor."""
        return self.ours.fileno()


class Watch:
    """A poller, its guests, and what it has told; closed at the end."""

    def __init__(self) -> None:
        self.ready: queue.Queue[Guest] = queue.Queue()
        self.accepted: queue.Queue[socket.socket] = queue.Queue()
        self.failures: list[Exception] = []
        self.poller: Poller[Guest] = Poller(self.ready.put, self._accept, NAME)
        self._opened = ExitStack()
        (self.listener,) = open_listeners([Address("127.0.0.1", 0)])
        self.address = address_of(self.listener)

    def start(self, listener: socket.socket | None = None) -> None:
        """Begin to watch."""
        self.poller.start([listener or self.listener])

    def guest(self, timeout_s: float = math.inf) -> Guest:
        """Watch one more."""
        guest = Guest(time.monotonic() + timeout_s)
        self._opened.callback(guest.ours.close)
        self._opened.callback(guest.theirs.close)
        self.poller.watch(guest)
        return guest

    def next_ready(self) -> Guest:
        """The next one that is told of."""
        return self.ready.get(timeout=DEADLINE_S)

    def connect(self) -> socket.socket:
        """A client's socket."""
        address = (self.address.host, self.address.port)
        return self._opened.enter_context(socket.create_connection(address, DEADLINE_S))

    def close(self) -> None:
        """Close everything."""
        self._opened.close()
        self.poller.close(DEADLINE_S)
        self.listener.close()
        while not self.accepted.empty():
            self.accepted.get().close()

    def _accept(self, sock: socket.socket, _: str) -> None:
        if self.failures:
            raise self.failures.pop()
        self.accepted.put(sock)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A poller that leaves nothing open."""
    before = count_descriptors()
    watch = Watch()
    yield watch
    watch.close()
    assert not [each for each in threading.enumerate() if each.name == NAME]
    assert count_descriptors() <= before


def test_input_is_told_of_once(watch: Watch) -> None:
    """And again only when the connection is watched again."""
    watch.start()
    guest, other = watch.guest(), watch.guest()
    guest.theirs.send(b"x")
    assert watch.next_ready() is guest
    guest.theirs.send(b"y")
    other.theirs.send(b"x")
    assert watch.next_ready() is other
    assert watch.ready.empty()
    watch.poller.watch(guest)
    assert watch.next_ready() is guest


def test_an_end_is_input(watch: Watch) -> None:
    """A client that goes is told of."""
    watch.start()
    guest = watch.guest()
    guest.theirs.close()
    assert watch.next_ready() is guest


def test_a_deadline_is_told_of(watch: Watch) -> None:
    """In the order of the deadlines, also where the earliest comes last."""
    watch.start()
    patient, second, first = watch.guest(), watch.guest(0.1), watch.guest(0.01)
    assert watch.next_ready() is first
    assert watch.next_ready() is second
    patient.theirs.send(b"x")
    assert watch.next_ready() is patient


def test_a_worker_takes_a_connection(watch: Watch) -> None:
    """Each one is taken, or told of, but never both."""
    watch.start()
    taken: list[Guest] = []

    def take_one() -> None:
        while (guest := watch.poller.take(DEADLINE_S)) is None:
            pass
        taken.append(guest)

    guest = watch.guest()
    worker = threading.Thread(target=take_one)
    worker.start()
    guest.theirs.send(b"x")
    while worker.is_alive():
        worker.join(0.01)
        if not watch.ready.empty():
            assert not taken
            watch.poller.watch(watch.next_ready())  # the thread was late
    assert taken == [guest]
    assert watch.ready.empty()


def test_a_worker_that_waits_holds_up_nobody(watch: Watch) -> None:
    """What it does not take is told of, although it has taken connections before."""
    watch.start()
    first = watch.guest()
    first.theirs.send(b"x")
    while watch.poller.take(0) is not first:
        with suppress(queue.Empty):
            watch.poller.watch(watch.ready.get(timeout=0.01))
    others = [watch.guest() for _ in range(3)]
    for other in others:
        other.theirs.send(b"x")
    assert {watch.next_ready() for _ in others} == set(others)


def test_a_worker_that_finds_no_input_takes_no_more(watch: Watch) -> None:
    """The thread of the poller goes on watching."""
    watch.start()
    guest = watch.guest()
    assert watch.poller.take(0) is None
    guest.theirs.send(b"x")
    assert watch.next_ready() is guest


def test_nothing_is_taken_after_a_close(watch: Watch) -> None:
    """The call returns at once."""
    watch.start()
    watch.guest().theirs.send(b"x")
    watch.poller.close(DEADLINE_S)
    assert watch.poller.take(DEADLINE_S) is None


def test_resting_connections_go_on_one_at_a_time(watch: Watch) -> None:
    """Each in its turn, with a pause between them, however many there are."""
    watch.start()
    guests = [Guest() for _ in range(10)]
    started_s = time.monotonic()
    for guest in guests:
        watch.poller.rest(guest)
    assert [watch.next_ready() for _ in guests] == guests
    assert time.monotonic() - started_s >= 9 * REST_S
    for guest in guests:
        guest.ours.close()
        guest.theirs.close()


def test_a_descriptor_that_cannot_be_watched(watch: Watch) -> None:
    """The caller is told, and nothing is left behind."""
    watch.start()
    guest = Guest()
    with tempfile.TemporaryFile() as file:  # no epoll takes a regular file
        guest.fileno = file.fileno  # type: ignore[method-assign]  # which no socket has
        with pytest.raises(OSError, match="Operation not permitted"):
            watch.poller.watch(guest)
    guest.ours.close()
    guest.theirs.close()


def test_clients_are_accepted(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """Where one cannot be served, its socket is closed, and the next one is accepted."""
    watch.failures.append(RuntimeError("no"))
    watch.start()
    assert watch.connect().recv(1) == b""
    watch.connect()
    watch.accepted.get(timeout=DEADLINE_S).close()
    assert "cannot serve a connection" in caplog.messages


def test_an_accept_that_fails(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """As for want of descriptors: it is logged once a second at most, and tried again."""

    class Scarce(socket.socket):
        """A socket whose first accepts fail."""

        left = 3

        def accept(self) -> tuple[socket.socket, object]:
            """Fail, for some time."""
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    scarce = Scarce(fileno=watch.listener.detach())
    scarce.settimeout(0)
    watch.start(scarce)
    watch.connect()
    watch.accepted.get(timeout=DEADLINE_S).close()
    assert caplog.messages[0] == "cannot accept a connection: Too many open files"


def test_no_more_clients(watch: Watch) -> None:
    """Watched connections are served on after the listening sockets are closed."""
    watch.start()
    guest = watch.guest()
    states = [watch.poller.is_accepting]
    watch.poller.stop_accepting()
    states.append(watch.poller.is_accepting)
    assert states == [True, False]
    wait_until(lambda: watch.listener.fileno() == -1)
    guest.theirs.send(b"x")
    assert watch.next_ready() is guest


def test_no_thread_to_start_with(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left open, and a close waits for nothing."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="no more"):
            watch.start()
    watch.poller.close(None)
