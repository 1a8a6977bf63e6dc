"""What clients say is understood, and nothing that they can send does harm."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_service import wire

from bbcache.page_service.errors import ProtocolError
from bbcache.page_service.protocol import conversation as c
from bbcache.page_service.protocol.conversation import Conversation

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
KINDS = st.sampled_from([bytes([kind]) for kind in b"pQPBDECSHdcfXFRZ\0"])


def texts(*values: str) -> bytes:
    """Texts as the protocol has them."""
    return b"".join(value.encode() + b"\0" for value in values)


def first(code: int, rest: bytes = b"") -> bytes:
    """The body of a first message."""
    return struct.pack("!I", code) + rest


def make() -> Conversation:
    """A conversation that has not begun, and asks for no token."""
    return Conversation(wants_token=False, has_tls=False, process_id=7, secret=b"abcd")


def begun() -> Conversation:
    """A conversation with a client that was let in, and has a statement."""
    conversation = make()
    conversation.feed(wire.startup(user="u") + wire.parse("q", "s"))
    assert conversation.next_event() == c.LoginRequested(None)
    conversation.let_in()
    assert conversation.next_event() is None
    conversation.take_output()
    return conversation


def told(body: bytes, kind: bytes = b"") -> c.Event | None:
    """The event of a message: the first one, or one after the login."""
    conversation = begun() if kind else make()
    conversation.feed(wire.packed(kind, body))
    return conversation.next_event()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (first(80877103), c.TlsRequested()),
        (first(80877104), None),
        (first(80877102, b"\0\0\0\7abcd"), c.CancelRequested(7, b"abcd")),
        (first(196608, b"\0"), c.LoginRequested(None)),
        (
            first(196610, texts("user", "u", "options", "-c a=b") + b"\0"),
            c.LoginRequested(None),
        ),
    ],
)
def test_first_messages(body: bytes, wanted: c.Event | None) -> None:
    """Each is told by its code."""
    assert told(body) == wanted


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "cut short"),
        (first(0x00020000), r"protocol version 2\.0 is not supported"),
        (first(0x00040000), r"protocol version 4\.0 is not supported"),
        (first(196608), "has no end"),
        (first(196608, texts("user")), "has no end"),
        (first(196608, texts("user", "u") + b"\0\0"), "longer than its fields"),
        (first(196608, b"\xff\0\0\0"), "not UTF-8"),
        (first(80877103, b"x"), "longer than its fields"),
        (first(80877102), "cut short"),
    ],
)
def test_bad_first_messages(body: bytes, text: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ProtocolError, match=text):
        told(body)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (b"P", texts("s", "q") + b"\0\1\0\0\0\x17", "1"),
        (b"B", texts("p", "s") + b"\0\0\0\0\0\0", "2"),
        (b"B", texts("p", "s") + b"\0\1\0\1\0\0\0\1\0\0", "2"),
        (b"B", texts("p", "s") + b"\0\0\0\2\0\0\0\1x\xff\xff\xff\xff\0\0", "E"),
        (b"D", b"S" + texts("s"), "tn"),
        (b"C", b"P" + texts("p"), "3"),
        (b"S", b"", "Z"),
        (b"H", b"", ""),
        (b"d", b"anything", ""),
        (b"c", b"", ""),
        (b"f", texts("why"), ""),
        (b"X", b"", ""),
    ],
)
def test_messages(kind: bytes, body: bytes, said: str) -> None:
    """Each is told by its type, whatever optional fields it has."""
    conversation = begun()
    conversation.feed(wire.packed(kind, body))
    assert conversation.next_event() is None
    assert wire.kinds(wire.split(conversation.take_output())[0]) == said
    assert conversation.is_closed == (kind == b"X")


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (b"?", b"", r"no message has the type b'\?'"),
        (b"F", b"", "no message has the type b'F'"),
        (b"p", texts("secret"), "no password is wanted now"),
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
        told(body, kind)


@given(text=TEXTS)
def test_queries_come_through(text: str) -> None:
    """Any text that the protocol can hold is the query's."""
    assert told(texts(text), b"Q") == c.CommandGiven(text)


@given(kind=KINDS | st.just(b""), body=st.binary(max_size=60))
def test_hostile_bytes(kind: bytes, body: bytes) -> None:
    """Any body is a message or a ProtocolError."""
    try:
        told(body, kind)
    except ProtocolError as error:
        assert len(str(error)) < 300  # noqa: PT017 - a message, too, is fine


@given(
    code=st.sampled_from([80877102, 80877103, 80877104, 196608, 196610]),
    rest=st.binary(max_size=60),
)
def test_hostile_first_messages(code: int, rest: bytes) -> None:
    """Behind a good code, too."""
    try:
        told(first(code, rest))
    except ProtocolError as error:
        assert error.is_fatal  # noqa: PT017 - a message, too, is fine
