"""The standard streams of a command, which may be closed, full, or without a reader."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class _Named:
    """A wrapper of a text stream that adds the name of the stream to its errors."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        with self._writing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._writing():
            self._stream.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a broken pipe keeps its class
            raise OSError(error.errno, error.strerror, self._name) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lasting(_Named):
    """A wrapper of a text stream that ignores errors of writing."""

    has_failed = False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: it is closed
            self.has_failed = True


@contextmanager
def named_stdout() -> Iterator[None]:
    """Make errors of stdout name it, in a block."""
    with contextlib.redirect_stdout(cast("TextIO", _Named(sys.stdout, "standard output"))):
        yield


@contextmanager
def lasting_stdout() -> Iterator[None]:
    """Ignore errors of stdout in a block, for a command that goes on without a reader."""
    with _lasting(sys.stdout) as stream, contextlib.redirect_stdout(stream):
        yield


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """Ignore errors of stderr in a block."""
    with _lasting(sys.stderr) as stream, contextlib.redirect_stderr(stream):
        yield


@contextmanager
def _lasting(stream: TextIO) -> Iterator[TextIO]:
    lasting = _Lasting(stream, "")
    try:
        yield cast("TextIO", lasting)
    finally:
        lasting.flush()
        if lasting.has_failed:
            _lead_nowhere(stream)


def open_standard_streams() -> None:
    """Open /dev/null in the place of each standard stream that was closed at the start.

    Otherwise the next file or socket gets the descriptor of the closed stream, and the
    messages of a library or a child process go into it. Text that a stream cannot encode is
    escaped.
    """
    for fd, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            try:
                os.fstat(fd)  # it may have been opened since
            except OSError:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the lowest that is free: this one
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_unwritten(stream: TextIO) -> None:
    """Drop the buffered output of a stream, so that the interpreter's exit does not fail on it."""
    try:
        stream.flush()
    except OSError:
        _lead_nowhere(stream)


def _lead_nowhere(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that its buffered output is written without an error."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, stream.fileno())
        os.close(fd)
