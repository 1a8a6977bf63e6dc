"""One thread waits for all, whoever takes long is left to another, and nobody is forgotten."""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S
from support.helpers import count_descriptors, wait_until

from bbcache.page_service import lookout
from bbcache.page_service.lookout import Lookout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "test-lookout"


class Guest:
    """A client whose other end the test has. It is served by a callback.

    Attributes:
        threads: who has served it.
        is_closed: whether it is over.
    """

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.settimeout(0)
        self._answer = b""
        self.threads: list[int] = []
        self.is_closed = False
        self.timeout_s = DEADLINE_S
        self.on_word: Callable[[], None] = lambda: None
        self.on_answer: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        """The descriptor."""
        return self._ours.fileno()

    def serve(self) -> bool:
        """Take what it has said; it is over at its end, or when it is late."""
        self.threads.append(threading.get_ident())
        try:
            data = self._ours.recv(1000)
        except BlockingIOError:
            data = b""
        if not data:
            self.close()
            return False
        self.on_word()
        self._answer = data
        return True

    def finish(self) -> float | None:
        """Give it back."""
        self.on_answer()
        self._ours.send(self._answer)
        return time.monotonic() + self.timeout_s

    def close(self) -> None:
        """Close its end."""
        self.is_closed = True
        self._ours.close()

    def ask(self, word: bytes = b"x") -> None:
        """Say something, and have it back."""
        self.theirs.send(word)
        self.theirs.settimeout(DEADLINE_S)
        assert self.theirs.recv(1000) == word


class Inn:
    """A lookout and its guests."""

    def __init__(self, most_away: int = 4, when_quiet: Callable[[], None] = lambda: None) -> None:
        self.lookout = Lookout(most_away, time.monotonic, NAME, when_quiet)
        self.lookout.start()
        self.guests: list[Guest] = []

    def guest(self, timeout_s: float = DEADLINE_S) -> Guest:
        """One more."""
        guest = Guest()
        guest.timeout_s = timeout_s
        self.guests.append(guest)
        self.lookout.add(guest, time.monotonic() + timeout_s)
        return guest

    def close(self) -> None:
        """All guests go, and the lookout ends."""
        for guest in self.guests:
            guest.theirs.close()
        self.lookout.close(DEADLINE_S)
        assert not threads()


def threads() -> list[str]:
    """The threads of lookouts."""
    return [each.name for each in threading.enumerate() if each.name.startswith(NAME)]


@contextmanager
def opened(most_away: int = 4, when_quiet: Callable[[], None] = lambda: None) -> Iterator[Inn]:
    """An inn that is closed at the end."""
    inn = Inn(most_away, when_quiet)
    try:
        yield inn
    finally:
        inn.close()


@pytest.fixture
def inn() -> Iterator[Inn]:
    """One with room for four who take long."""
    with opened() as inn:
        yield inn


def test_one_thread_serves_all(inn: Inn) -> None:
    """As long as nobody takes long."""
    guests = [inn.guest() for _ in range(50)]
    for _ in range(3):
        for guest in guests:
            guest.ask()
    assert len({thread for guest in guests for thread in guest.threads}) == 1
    assert len(threads()) == 1


def test_some_are_served_before_they_are_answered() -> None:
    """Of those that are heard at once, and so many that the first does not wait for long."""
    steps: list[tuple[str, int]] = []
    with opened() as inn:
        busy = inn.guest()
        guests = [inn.guest() for _ in range(lookout._MOST_AT_ONCE + 2)]
        is_busy, check_cancelled = threading.Event(), threading.Event()

        def keep_the_thread() -> None:
            is_busy.set()
            assert check_cancelled.wait(DEADLINE_S)

        busy.on_word = keep_the_thread
        busy.theirs.send(b"x")
        assert is_busy.wait(DEADLINE_S)
        for number, guest in enumerate(guests):
            guest.on_word = partial(steps.append, ("serve", number))
            guest.on_answer = partial(steps.append, ("finish", number))
            guest.theirs.send(b"x")
        check_cancelled.set()
        wait_until(lambda: len(steps) == 2 * len(guests))
    order = [number for step, number in steps if step == "serve"]
    some, others = order[: lookout._MOST_AT_ONCE], order[lookout._MOST_AT_ONCE :]
    assert steps == [
        *((step, number) for step in ("serve", "finish") for number in some),
        *((step, number) for step in ("serve", "finish") for number in others),
    ]


def test_who_takes_long_does_not_keep_the_answers_of_others(inn: Inn) -> None:
    """Those that were served before it are answered by the thread that waits on."""
    busy, slow = inn.guest(), inn.guest()
    guests = [inn.guest() for _ in range(4)]
    is_busy, check_cancelled, is_slow, end = (threading.Event() for _ in range(4))

    def keep_the_thread() -> None:
        is_busy.set()
        assert check_cancelled.wait(DEADLINE_S)

    def take_long() -> None:
        inn.lookout.leave()
        is_slow.set()
        assert end.wait(DEADLINE_S)

    busy.on_word, slow.on_word = keep_the_thread, take_long
    busy.theirs.send(b"x")
    assert is_busy.wait(DEADLINE_S)
    for guest in (*guests[:2], slow, *guests[2:]):
        guest.theirs.send(b"x")
    check_cancelled.set()
    assert is_slow.wait(DEADLINE_S)
    for guest in guests:
        guest.theirs.settimeout(DEADLINE_S)
        assert guest.theirs.recv(1) == b"x"
    end.set()
    slow.theirs.settimeout(DEADLINE_S)
    assert slow.theirs.recv(1) == b"x"


@pytest.mark.parametrize("is_away", [True, False])
def test_who_takes_long_to_answer(inn: Inn, *, is_away: bool) -> None:
    """It may leave only then, and is heard again; also one that has left before."""
    slow, other = inn.guest(), inn.guest()
    is_slow, check_cancelled = threading.Event(), threading.Event()

    def take_long() -> None:
        inn.lookout.leave()
        is_slow.set()
        assert check_cancelled.wait(DEADLINE_S)

    if is_away:
        slow.on_word = inn.lookout.leave
    slow.on_answer = take_long
    slow.theirs.send(b"x")
    assert is_slow.wait(DEADLINE_S)
    other.ask()
    check_cancelled.set()
    slow.theirs.settimeout(DEADLINE_S)
    assert slow.theirs.recv(1) == b"x"
    slow.ask()


def test_who_takes_long_is_left(inn: Inn) -> None:
    """Others are served meanwhile, and it is heard again when it is back."""
    slow, other = inn.guest(), inn.guest()
    is_slow, check_cancelled = threading.Event(), threading.Event()

    def take_long() -> None:
        inn.lookout.leave()
        inn.lookout.leave()  # once is enough
        is_slow.set()
        assert check_cancelled.wait(DEADLINE_S)

    slow.on_word = take_long
    slow.theirs.send(b"long")
    assert is_slow.wait(DEADLINE_S)
    slow.theirs.send(b"more")  # is not heard while it is served
    for _ in range(3):
        other.ask()
    assert len(slow.threads) == 1
    check_cancelled.set()
    slow.theirs.settimeout(DEADLINE_S)
    assert slow.theirs.recv(4) == b"long"
    assert slow.theirs.recv(4) == b"more"
    slow.on_word = lambda: None
    slow.ask()
    assert slow.threads[0] not in other.threads


def test_who_takes_long_and_is_over(inn: Inn) -> None:
    """It is forgotten, and its descriptor may be another's at once."""
    before = count_descriptors()
    for _ in range(20):
        guest = inn.guest()

        def end(guest: Guest = guest) -> None:
            inn.lookout.leave()
            guest.theirs.shutdown(socket.SHUT_WR)

        guest.on_word = end
        guest.ask()
        wait_until(lambda guest=guest: guest.is_closed)  # type: ignore[misc]  # of this turn
        guest.theirs.close()
    assert count_descriptors() == before


def test_leave_in_any_other_thread(inn: Inn) -> None:
    """It does nothing."""
    inn.lookout.leave()
    inn.guest().ask()
    assert len(threads()) == 1


def test_no_thread_is_left_over() -> None:
    """Where all are at something long, others wait until one is done, and lose nothing."""
    with opened(most_away=1) as inn:
        gates = [threading.Event(), threading.Event()]
        slow = [inn.guest(), inn.guest()]
        for guest, gate in zip(slow, gates, strict=True):

            def take_long(gate: threading.Event = gate) -> None:
                inn.lookout.leave()
                assert gate.wait(DEADLINE_S)

            guest.on_word = take_long
            guest.theirs.send(b"x")
        wait_until(lambda: all(guest.threads for guest in slow))
        other = inn.guest()
        other.theirs.send(b"y")
        assert not other.threads
        gates[0].set()
        other.theirs.settimeout(DEADLINE_S)
        assert other.theirs.recv(1) == b"y"
        gates[1].set()
        assert len(threads()) <= 2


def test_no_thread_can_be_begun(inn: Inn, caplog: pytest.LogCaptureFixture) -> None:
    """Others wait until who takes long is done, and lose nothing."""
    slow, other = inn.guest(), inn.guest()
    is_slow, check_cancelled = threading.Event(), threading.Event()

    def take_long() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            inn.lookout.leave()
        is_slow.set()
        assert check_cancelled.wait(DEADLINE_S)

    slow.on_word = take_long
    slow.theirs.send(b"x")
    assert is_slow.wait(DEADLINE_S)
    assert caplog.messages == ["no thread can be begun to wait for clients: no more"]
    other.theirs.send(b"y")
    check_cancelled.set()
    other.theirs.settimeout(DEADLINE_S)
    assert other.theirs.recv(1) == b"y"
    slow.on_word = lambda: None
    assert slow.theirs.recv(1) == b"x"
    slow.ask()


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("no more")


def test_no_thread_to_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left open, and a close waits for nothing."""
    before = count_descriptors()
    begun = Lookout(1, time.monotonic, NAME)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(RuntimeError, match="no more"):
            begun.start()
    begun.close(None)
    assert count_descriptors() == before


def test_who_is_silent_is_served_at_its_deadline(inn: Inn) -> None:
    """Whoever else talks or has more time; also one that has been at something long."""
    talker = inn.guest()
    silent, patient = inn.guest(0.02), inn.guest()

    def talk_until_it_is_closed() -> bool:
        talker.ask()
        return silent.is_closed

    wait_until(talk_until_it_is_closed)
    back = inn.guest(0.02)
    back.on_word = inn.lookout.leave
    back.ask()
    wait_until(lambda: back.is_closed)
    assert not patient.threads
    assert not talker.is_closed


def test_who_cannot_be_waited_for(inn: Inn, caplog: pytest.LogCaptureFixture) -> None:
    """It is closed, and the log says why."""
    guest = Guest()
    ours = guest._ours
    with tempfile.TemporaryFile() as file:  # no epoll takes a regular file
        guest.fileno = file.fileno  # type: ignore[method-assign]  # which no socket would be
        inn.lookout.add(guest, time.monotonic() + DEADLINE_S)
        wait_until(lambda: guest.is_closed)
    wait_until(lambda: bool(caplog.messages))
    assert caplog.messages == ["a client cannot be waited for: Operation not permitted"]
    assert ours.fileno() == -1
    guest.theirs.close()
    inn.guest().ask()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["on_word", "on_answer"])
@pytest.mark.parametrize("is_away", [True, False])
def test_who_cannot_be_served(
    inn: Inn, caplog: pytest.LogCaptureFixture, error: BaseException, step: str, *, is_away: bool
) -> None:
    """Whatever is raised costs that client alone."""
    guest = inn.guest()

    def fail() -> None:
        if is_away:
            inn.lookout.leave()
        raise error

    setattr(guest, step, fail)
    guest.theirs.send(b"x")
    wait_until(lambda: guest.is_closed)
    inn.guest().ask()
    wait_until(lambda: "a client could not be served" in caplog.messages)


def test_what_is_put_off(caplog: pytest.LogCaptureFixture) -> None:
    """It is called when nobody says anything; that it fails harms nobody."""
    calls: list[int] = []

    def when_quiet() -> None:
        calls.append(threading.get_ident())
        raise ValueError("x")

    with opened(when_quiet=when_quiet) as inn:
        wait_until(lambda: calls)
        guest = inn.guest()
        guest.ask()
        before = len(calls)
        guest.ask()
        wait_until(lambda: len(calls) > before)
        assert set(calls) == set(guest.threads)
    assert "what was put off has failed" in caplog.messages


def test_a_log_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that something is said about are closed even so, and others are served."""
    said: list[str] = []

    class Failing(logging.Handler):
        """Takes nothing."""

        def emit(self, record: logging.LogRecord) -> None:
            """Fail."""
            said.append(record.getMessage())
            raise ValueError("no")

    def fail() -> None:
        raise ValueError("x")

    monkeypatch.setattr(lookout.log, "handlers", [Failing()])
    with opened(when_quiet=fail) as inn:
        stranger = Guest()
        with tempfile.TemporaryFile() as file:
            stranger.fileno = file.fileno  # type: ignore[method-assign]  # as above
            inn.lookout.add(stranger, time.monotonic() + DEADLINE_S)
            wait_until(lambda: stranger.is_closed)
        stranger.theirs.close()
        guest = inn.guest()
        guest.on_word = fail
        guest.theirs.send(b"x")
        wait_until(lambda: guest.is_closed)
        inn.guest().ask()
    assert {text.split()[0] for text in said} == {"what", "a"}


def test_close_waits_for_the_last_one() -> None:
    """And for no longer than it may."""
    inn = Inn()
    guest = inn.guest()
    guest.ask()
    inn.lookout.close(0.01)
    guest.ask()
    guest.theirs.close()
    inn.lookout.close(DEADLINE_S)
    assert guest.is_closed
    assert not threads()


def test_an_end_that_nobody_waits_for(inn: Inn) -> None:
    """It comes when the last client is over, and who comes later is closed."""
    guest = inn.guest()
    guest.ask()
    inn.lookout.begin_close()
    guest.ask()
    guest.theirs.close()
    wait_until(inn.lookout._has_ended.is_set)
    late = inn.guest()
    assert late.is_closed


def test_close_before_the_start() -> None:
    """It does nothing, and neither does a second one."""
    before = count_descriptors()
    closed = Lookout(1, time.monotonic, NAME)
    closed.close(None)
    closed.start()
    closed.close(None)
    closed.close(None)
    assert count_descriptors() == before
