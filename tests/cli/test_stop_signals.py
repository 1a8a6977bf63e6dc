"""Signals that ask to stop, as exceptions."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from bbcache.cli.stop_signals import STOP_SIGNALS, Stopped, stop_signals_raise

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signal handlers as a shell's foreground process has them; put back at the end."""
    before = [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(STOP_SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_raises_and_more_do_not(number: signal.Signals) -> None:
    """The clean-up is done in peace, and the handlers are put back after it."""
    cleaned: list[int] = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            for each in STOP_SIGNALS:
                signal.raise_signal(each)
                cleaned.append(each)

    with pytest.raises(Stopped) as caught, stop_signals_raise():
        work()
    assert caught.value.number == number
    assert cleaned == [*STOP_SIGNALS]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_raises_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that Python dropped, as it does in a destructor, can be had again."""
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with stop_signals_raise():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        now_s += 9.9
        signal.raise_signal(signal.SIGTERM)
        now_s += 0.2
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_stays_so(number: signal.Signals) -> None:
    """As under nohup, and as the Ctrl-C of a background job."""
    signal.signal(number, signal.SIG_IGN)
    with stop_signals_raise():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_an_ignored_sigterm_ends_a_command() -> None:
    """A supervisor that ignored it itself could not stop what it started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(Stopped), stop_signals_raise():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_blocked_signal_ends_a_command(number: signal.Signals) -> None:
    """Also one that was sent before; the mask is put back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        signal.raise_signal(number)
        with pytest.raises(Stopped) as caught, stop_signals_raise():
            pass
        assert caught.value.number == number
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | set(STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
