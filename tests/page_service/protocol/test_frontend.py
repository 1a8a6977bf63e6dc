"""What clients say is understood, and nothing that they can send does harm."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.page_service.errors import ProtocolError
from bbcache.page_service.protocol import frontend
from bbcache.page_service.protocol.frames import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
KINDS = st.sampled_from([bytes([kind]) for kind in b"pQPBDECSHdcfXFRZ\0"])


def texts(*values: str) -> bytes:
    """Texts as the protocol has them."""
    return b"".join(value.encode() + b"\0" for value in values)


def startup(code: int, rest: bytes = b"") -> Frame:
    """A first message."""
    return Frame(b"", struct.pack("!I", code) + rest)


@pytest.mark.parametrize(
    ("frame", "wanted"),
    [
        (startup(80877103), frontend.SslRequest()),
        (startup(80877104), frontend.GssEncRequest()),
        (startup(80877102, b"\0\0\0\7abcd"), frontend.CancelRequest(7, b"abcd")),
        (startup(196608, b"\0"), frontend.StartupMessage(0, {})),
        (
            startup(196610, texts("user", "u", "options", "-c a=b") + b"\0"),
            frontend.StartupMessage(2, {"user": "u", "options": "-c a=b"}),
        ),
    ],
)
def test_first_messages(frame: Frame, wanted: frontend.StartupRequest) -> None:
    """Each is told by its code."""
    assert frontend.parse_startup(frame) == wanted


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Frame(b"", b""), "cut short"),
        (startup(0x00020000), r"protocol version 2\.0 is not supported"),
        (startup(0x00040000), r"protocol version 4\.0 is not supported"),
        (startup(196608), "has no end"),
        (startup(196608, texts("user")), "has no end"),
        (startup(196608, texts("user", "u") + b"\0\0"), "longer than its fields"),
        (startup(196608, b"\xff\0\0\0"), "not UTF-8"),
        (startup(80877103, b"x"), "longer than its fields"),
        (startup(80877102), "cut short"),
    ],
)
def test_bad_first_messages(frame: Frame, text: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ProtocolError, match=text):
        frontend.parse_startup(frame)


@pytest.mark.parametrize(
    ("kind", "body", "wanted"),
    [
        (b"p", texts("secret"), frontend.PasswordMessage("secret")),
        (b"Q", texts("select 1"), frontend.Query("select 1")),
        (b"P", texts("s", "q") + b"\0\1\0\0\0\x17", frontend.Parse("s", "q")),
        (b"B", texts("p", "s") + b"\0\0\0\0\0\0", frontend.Bind("p", "s", 0)),
        (
            b"B",
            texts("p", "s") + b"\0\1\0\1\0\2\0\0\0\1x\xff\xff\xff\xff\0\1\0\0",
            frontend.Bind("p", "s", 2),
        ),
        (b"D", b"S" + texts("s"), frontend.Describe(is_portal=False, name="s")),
        (b"D", b"P" + texts("p"), frontend.Describe(is_portal=True, name="p")),
        (b"C", b"P" + texts("p"), frontend.Close(is_portal=True, name="p")),
        (b"E", texts("p") + b"\0\0\0\0", frontend.Execute("p")),
        (b"S", b"", frontend.Sync()),
        (b"H", b"", frontend.Flush()),
        (b"d", b"anything", frontend.CopyIn()),
        (b"c", b"", frontend.CopyIn()),
        (b"f", texts("why"), frontend.CopyIn()),
        (b"X", b"", frontend.Terminate()),
    ],
)
def test_messages(kind: bytes, body: bytes, wanted: frontend.Message) -> None:
    """Each is told by its type."""
    assert frontend.parse_message(Frame(kind, body)) == wanted


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (b"?", b"", r"no message has the type b'\?'"),
        (b"F", b"", "no message has the type b'F'"),
        (b"Q", b"select 1", "has no end"),
        (b"Q", texts("select 1", "more"), "longer than its fields"),
        (b"S", b"x", "longer than its fields"),
        (b"P", texts("s", "q") + b"\xff\xff", "cut short"),
        (b"B", texts("p", "s") + b"\0\0\0\1\x7f\xff\xff\xff", "cut short"),
        (b"D", b"X" + texts("s"), "is about b'X'"),
        (b"D", b"", "cut short"),
        (b"E", texts("p"), "cut short"),
    ],
)
def test_bad_messages(kind: bytes, body: bytes, text: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ProtocolError, match=text):
        frontend.parse_message(Frame(kind, body))


@given(text=TEXTS)
def test_queries_come_through(text: str) -> None:
    """Any text that the protocol can hold is the query's."""
    assert frontend.parse_message(Frame(b"Q", texts(text))) == frontend.Query(text)


@pytest.mark.parametrize("parse", [frontend.parse_startup, frontend.parse_message])
@given(kind=KINDS, body=st.binary(max_size=60))
def test_hostile_bytes(parse: Callable[[Frame], object], kind: bytes, body: bytes) -> None:
    """Any body is a message or a ProtocolError."""
    try:
        parse(Frame(kind, body))
    except ProtocolError as error:
        assert len(str(error)) < 300  # noqa: PT017 - a message, too, is fine


@given(
    code=st.sampled_from([80877102, 80877103, 80877104, 196608, 196610]),
    rest=st.binary(max_size=60),
)
def test_hostile_first_messages(code: int, rest: bytes) -> None:
    """Behind a good code, too."""
    try:
        frontend.parse_startup(startup(code, rest))
    except ProtocolError as error:
        assert error.is_fatal  # noqa: PT017 - a message, too, is fine
