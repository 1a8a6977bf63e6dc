"""The conversation goes as PostgreSQL's protocol and Neon's pageserver have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_service import wire

from bbcache.page_service.errors import (
    BadTokenError,
    CommandError,
    NotFoundError,
    PageServiceError,
    ProtocolError,
    ShutdownError,
    TlsRequiredError,
    UnauthorizedError,
)
from bbcache.page_service.protocol import conversation as c
from bbcache.page_service.protocol.command import NoOpCommand, parse_command
from bbcache.page_service.protocol.conversation import Conversation

GOOD = c.LoginRequested("good")
KEY = b"\0\0\0\7abcd"


def make(*, wants_token: bool = False, has_tls: bool = False) -> Conversation:
    """A conversation that has not begun."""
    return Conversation(wants_token=wants_token, has_tls=has_tls, process_id=7, secret=b"abcd")


def said(conversation: Conversation) -> str:
    """The types of the messages to send now."""
    replies, rest = wire.split(conversation.take_output())
    assert rest == b""
    return wire.kinds(replies)


def begun() -> Conversation:
    """A conversation with a client that was let in."""
    conversation = make()
    conversation.feed(wire.startup(user="u"))
    let_in(conversation)
    conversation.take_output()
    return conversation


def let_in(conversation: Conversation) -> None:
    """Let a client in that asks for it without a token."""
    assert conversation.next_event() == c.LoginRequested(None)
    assert not conversation.is_let_in
    conversation.let_in()
    assert conversation.is_let_in


def test_trust() -> None:
    """A client that need not prove anything is let in, and told what Neon tells it."""
    conversation = make()
    conversation.feed(wire.startup(user="u", options="-c neon.compute_mode=primary"))
    let_in(conversation)
    replies, _ = wire.split(conversation.take_output())
    settings = [reply.body for reply in replies if reply.kind == "S"]
    assert wire.kinds(replies) == "RSSSSSKZ"
    assert settings == [
        wire.text("client_encoding", "UTF8"),
        wire.text("in_hot_standby", "off"),
        wire.text("default_transaction_read_only", "off"),
        wire.text("integer_datetimes", "on"),
        wire.text("server_version", "14.1"),
    ]


def test_token() -> None:
    """The password is the token; before it is found good, nothing else is taken."""
    conversation = make(wants_token=True)
    conversation.feed(wire.startup(user="u") + wire.password("a.b.c"))
    assert conversation.next_event() == c.LoginRequested("a.b.c")
    assert not conversation.is_let_in
    assert conversation.take_output() == b"R\0\0\0\x08\0\0\0\3"
    conversation.let_in()
    assert said(conversation) == "RSSSSSKZ"


@pytest.mark.parametrize(
    "message", [wire.query("basebackup"), wire.SYNC, wire.parse("x"), wire.FLUSH, wire.execute()]
)
def test_nothing_before_the_token(message: bytes) -> None:
    """A client that sends a command in place of the token is disconnected."""
    conversation = make(wants_token=True)
    conversation.feed(wire.startup(user="u") + message)
    with pytest.raises(ProtocolError, match="a password is wanted"):
        conversation.next_event()


def test_bad_token() -> None:
    """It is refused with Neon's words and no more, and that is the end."""
    conversation = make(wants_token=True)
    conversation.feed(wire.startup(user="u") + wire.password("x"))
    conversation.next_event()
    conversation.take_output()
    conversation.fail(BadTokenError("it has expired"))
    (reply,), _ = wire.split(conversation.take_output())
    assert reply.fields() == {"S": "FATAL", "C": "XX000", "M": "JWT authentication error"}
    assert conversation.is_closed
    conversation.feed(wire.query("basebackup"))
    assert conversation.next_event() is None


def test_without_tls() -> None:
    """Both kinds of encryption are refused, once each, and the client goes on."""
    conversation = make()
    conversation.feed(wire.gss_request() + wire.ssl_request())
    assert conversation.next_event() == c.TlsRequested()
    assert not conversation.answer_tls()
    assert conversation.take_output() == b"NN"
    conversation.feed(wire.ssl_request())
    with pytest.raises(ProtocolError, match="asked for before"):
        conversation.next_event()


def test_with_tls() -> None:
    """It is granted; within it, it cannot be asked for again."""
    conversation = make(has_tls=True)
    conversation.feed(wire.ssl_request())
    assert conversation.next_event() == c.TlsRequested()
    assert conversation.answer_tls()
    assert conversation.take_output() == b"S"
    conversation.feed(wire.gss_request())
    with pytest.raises(ProtocolError, match="asked for before"):
        conversation.next_event()


def test_tls_is_a_must_where_it_is_there() -> None:
    """A client that goes on in clear is sent away."""
    conversation = make(has_tls=True)
    conversation.feed(wire.startup(user="u"))
    with pytest.raises(TlsRequiredError) as raised:
        conversation.next_event()
    conversation.fail(raised.value)
    (reply,), _ = wire.split(conversation.take_output())
    assert reply.fields()["M"] == "must connect with TLS"
    assert conversation.is_closed


def test_bytes_behind_the_request_for_tls() -> None:
    """Bytes sent in the clear must not be taken for bytes sent through TLS."""
    conversation = make(has_tls=True)
    conversation.feed(wire.ssl_request() + wire.startup(user="u"))
    conversation.next_event()
    with pytest.raises(ProtocolError, match="after the request"):
        conversation.answer_tls()


@pytest.mark.parametrize("has_tls", [True, False])
def test_tls_that_nobody_asked_for(*, has_tls: bool) -> None:
    """A TLS hello where none is expected is called that, whether there is a certificate or not."""
    conversation = make(has_tls=has_tls)
    conversation.feed(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    with pytest.raises(ProtocolError) as raised:
        conversation.next_event()
    assert "the client begins TLS without a request for it" in str(raised.value)
    assert ("no certificate" in str(raised.value)) != has_tls


def test_direct_tls() -> None:
    """A client that has begun with TLS need not ask for it, and may not."""
    conversation = make(has_tls=True)
    conversation.begin_direct_tls()
    conversation.feed(wire.startup(user="u"))
    let_in(conversation)
    conversation = make(has_tls=True)
    conversation.begin_direct_tls()
    conversation.feed(wire.ssl_request())
    with pytest.raises(ProtocolError, match="asked for before"):
        conversation.next_event()


TRANSACTIONS = [
    ("begin, commit", "TI"),
    ("start transaction, end", "TI"),
    ("begin, rollback", "TI"),
    ("commit", "I"),
    ("begin, savepoint a, release a, commit", "TTTI"),
    ("begin, savepoint a, wrong, rollback to savepoint a, commit", "TTETI"),
    ("begin, wrong, , set x to 1, rollback", "TEEEI"),
    ("begin, wrong, begin, commit", "TEEI"),
    ("wrong, begin", "IT"),
]


@pytest.mark.parametrize(("texts", "statuses"), TRANSACTIONS)
def test_the_status_of_the_transaction(texts: str, statuses: str) -> None:
    """BEGIN, COMMIT and errors move it as PostgreSQL does, so that drivers can nest them."""
    conversation = begun()
    found = ""
    for text in texts.split(", "):
        conversation.feed(wire.query(text))
        assert conversation.next_event() == c.CommandGiven(text)
        try:
            command = parse_command(text)
            assert isinstance(command, NoOpCommand)
            conversation.complete(command)
        except PageServiceError as error:
            conversation.fail(error)
        replies, _ = wire.split(conversation.take_output())
        found += replies[-1].body.decode()
    assert found == statuses


def test_a_commit_of_a_failed_transaction_is_a_rollback() -> None:
    """Its tag says so, and a command before it has the SQLSTATE of PostgreSQL."""
    conversation = begun()
    conversation.complete(NoOpCommand("BEGIN"))
    conversation.fail(CommandError("wrong"))
    with pytest.raises(PageServiceError) as raised:
        conversation.check_transaction()
    assert raised.value.sqlstate == "25P02"
    conversation.take_output()
    conversation.complete(NoOpCommand("COMMIT"))
    (complete, ready), _ = wire.split(conversation.take_output())
    assert (complete.body, ready.body) == (b"ROLLBACK\0", b"I")


def test_some_messages_at_a_time() -> None:
    """The owner says how many messages are one turn."""
    conversation = begun()
    conversation.feed(wire.SYNC * 5 + wire.SYNC[:3])
    for most, wanted in ((2, "ZZ"), (5, "ZZZ")):
        assert conversation.next_event(most) is None
        assert said(conversation) == wanted
    assert conversation.message_count == 1 + 5
    assert conversation.is_within_message


@pytest.mark.parametrize("kind", ["names", "texts", "portals", "wide characters"])
def test_names_and_texts_have_a_limit(kind: str) -> None:
    """However they are spread, a connection keeps no more than 16 KiB of them."""
    conversation, kept_bytes = begun(), 0
    for number in range(16):
        name, text = f"s{number}", "x" * 3000
        if kind == "names":
            name, text = name + text, "x"
        elif kind == "wide characters":
            text = "\N{GRINNING FACE}" * 700
        message = wire.parse(text, name)
        if kind == "portals":
            message = wire.parse("x", name) + wire.bind(name, "p" * 3000 + name)
        conversation.feed(message + wire.FLUSH)
        assert conversation.next_event() is None
        replies, _ = wire.split(conversation.take_output())
        if replies[-1].kind == "E":
            assert "16384 bytes at most" in replies[-1].fields()["M"]
            break
        kept_bytes += 3000
    assert 0 < kept_bytes <= 16384


def test_newer_protocol() -> None:
    """A newer minor version and unknown options are talked down, and the client goes on."""
    conversation = make()
    conversation.feed(wire.startup(2, user="u", **{"_pq_.x": "1"}))
    let_in(conversation)
    replies, _ = wire.split(conversation.take_output())
    assert wire.kinds(replies) == "vRSSSSSKZ"
    assert replies[0].body == b"\0\3\0\0\0\0\0\1_pq_.x\0"


def test_cancel_request() -> None:
    """It has an event and no answer."""
    conversation = make(wants_token=True)
    conversation.feed(wire.cancel_request(KEY))
    assert conversation.next_event() == c.CancelRequested(7, b"abcd")
    assert conversation.is_closed
    assert conversation.take_output() == b""


def test_simple_query() -> None:
    """A copy and its end, then ready for the next."""
    conversation = begun()
    conversation.feed(wire.query("one") + wire.query("two"))
    assert conversation.next_event() == c.CommandGiven("one")
    head, tail = conversation.copy_frame()
    assert wire.kinds(wire.split(head)[0]) == "H"
    assert tail.startswith(b"c\0\0\0\4C\0\0\0\x0dSELECT 1\0Z")
    assert conversation.next_event() == c.CommandGiven("two")
    conversation.complete(NoOpCommand(""))
    assert said(conversation) == "IZ"
    assert conversation.next_event() is None


def test_extended_query() -> None:
    """As rust-postgres has it: named and described, then run, and ready at each Sync only."""
    conversation = begun()
    conversation.feed(wire.parse("one", "s0") + wire.describe("s0") + wire.SYNC)
    assert conversation.next_event() is None
    assert said(conversation) == "1tnZ"
    conversation.feed(wire.bind("s0") + wire.execute() + wire.SYNC)
    assert conversation.next_event() == c.CommandGiven("one")
    assert wire.kinds(wire.split(b"".join(conversation.copy_frame()))[0]) == "2HcC"
    assert conversation.next_event() is None
    assert said(conversation) == "Z"


def test_a_failed_extended_query_is_over_at_the_sync() -> None:
    """All up to the Sync is passed over, and the next query is good."""
    conversation = begun()
    conversation.feed(
        wire.parse("one") + wire.bind() + wire.execute() + wire.execute() + wire.query("no")
    )
    conversation.next_event()
    conversation.take_output()
    conversation.fail(CommandError("no"))
    assert conversation.next_event() is None
    assert said(conversation) == "E"
    conversation.feed(wire.SYNC + wire.query("yes"))
    assert conversation.next_event() == c.CommandGiven("yes")
    assert said(conversation) == "Z"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (wire.bind("nobody"), "there is no statement 'nobody'"),
        (wire.describe("nobody"), "there is no statement 'nobody'"),
        (wire.packed(b"D", b"Pnobody\0"), "there is no portal 'nobody'"),
        (wire.execute("nobody"), "there is no portal 'nobody'"),
        (
            wire.parse("one") + wire.packed(b"B", b"\0\0\0\0\0\1\xff\xff\xff\xff\0\0"),
            "takes no parameters, not 1",
        ),
        (
            b"".join(wire.parse("x", f"s{number}") for number in range(17)),
            "a connection has 16 named statements at most",
        ),
    ],
)
def test_wrong_extended_queries(messages: bytes, complaint: str) -> None:
    """The error says what is wrong, and the error state ends at the Sync."""
    conversation = begun()
    conversation.feed(messages + wire.SYNC)
    assert conversation.next_event() is None
    replies, _ = wire.split(conversation.take_output())
    assert wire.kinds(replies).endswith("EZ")
    assert complaint in replies[-2].fields()["M"]
    assert conversation.is_let_in


def test_portals_end_with_the_sync_and_statements_when_closed() -> None:
    """A name means nothing afterwards."""
    conversation = begun()
    conversation.feed(wire.parse("one") + wire.bind() + wire.SYNC + wire.execute() + wire.SYNC)
    conversation.next_event()
    assert said(conversation) == "12ZEZ"
    conversation.feed(wire.packed(b"C", b"S\0") + wire.bind() + wire.SYNC)
    conversation.next_event()
    assert said(conversation) == "3EZ"


def caused(error: PageServiceError, cause: BaseException) -> PageServiceError:
    """An error with a cause."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "simple", "extended"),
    [
        (NotFoundError("timeline is archived"), "not found", "Not found: timeline is archived"),
        (
            UnauthorizedError("Tenant id mismatch. Permission denied"),
            "JWT authentication error",
            "Unauthorized: Tenant id mismatch. Permission denied",
        ),
        (
            caused(CommandError("invalid basebackup lsn"), CommandError("too old")),
            "invalid basebackup lsn: too old",
            "invalid basebackup lsn",
        ),
        (
            caused(CommandError("cannot build"), ValueError("/secret/path")),
            "cannot build: ValueError",
            "cannot build",
        ),
    ],
)
def test_errors_in_both_protocols(error: PageServiceError, simple: str, extended: str) -> None:
    """The words are Neon's, in the one and in the other."""
    conversation = begun()
    conversation.feed(wire.query("x"))
    conversation.next_event()
    conversation.fail(error)
    (reply, ready), _ = wire.split(conversation.take_output())
    assert (reply.fields()["M"], reply.fields()["C"]) == (simple, "XX000")
    assert ready.kind == "Z"
    conversation.feed(wire.parse("x") + wire.bind() + wire.execute())
    conversation.next_event()
    conversation.take_output()
    conversation.fail(error)
    (reply,), _ = wire.split(conversation.take_output())
    assert (reply.fields()["M"], reply.fields()["C"]) == (extended, "XX000")


def test_a_hint_is_a_field_of_its_own() -> None:
    """Clients show it as they show PostgreSQL's."""
    conversation = begun()
    conversation.feed(wire.query("x"))
    conversation.next_event()
    conversation.fail(CommandError("no\nhint: Try again."))
    reply = wire.split(conversation.take_output())[0][0]
    assert reply.fields() == {"S": "ERROR", "C": "XX000", "M": "no", "H": "Try again."}


def test_shutdown_ends_the_conversation() -> None:
    """The error is the last that is said, in the middle of a copy, too."""
    conversation = begun()
    conversation.feed(wire.query("x"))
    conversation.next_event()
    conversation.copy_frame()
    conversation.fail(ShutdownError("the service ends"))
    (reply,), _ = wire.split(conversation.take_output())
    assert (reply.fields()["C"], reply.fields()["M"]) == ("57P01", "shutdown")
    assert conversation.is_closed


def test_good_bye() -> None:
    """Terminate ends it without an answer."""
    conversation = begun()
    conversation.feed(wire.TERMINATE + wire.query("x"))
    assert conversation.next_event() is None
    assert conversation.is_closed
    assert conversation.take_output() == b""


MESSAGES = st.sampled_from(
    [
        *(wire.startup(user="u"), wire.startup(7), wire.ssl_request(), wire.gss_request()),
        *(wire.cancel_request(KEY), wire.password("good"), wire.password("bad"), wire.query("x")),
        *(wire.parse("x"), wire.bind(), wire.describe(), wire.execute(), wire.SYNC, wire.FLUSH),
        *(wire.TERMINATE, wire.packed(b"d", b"x"), wire.packed(b"C", b"S\0")),
    ]
)


@given(
    pieces=st.lists(MESSAGES | st.binary(max_size=30), max_size=20),
    wants_token=st.booleans(),
    has_tls=st.booleans(),
)
def test_hostile_clients(pieces: list[bytes], *, wants_token: bool, has_tls: bool) -> None:
    """In any order of messages, a client that was not admitted gives no command."""
    conversation = make(wants_token=wants_token, has_tls=has_tls)
    has_proved = not wants_token
    is_encrypted = False
    for piece in pieces:
        conversation.feed(piece)
        try:
            while (event := conversation.next_event()) is not None:
                if isinstance(event, c.TlsRequested):
                    is_encrypted = conversation.answer_tls()
                elif isinstance(event, c.LoginRequested) and (event == GOOD or not wants_token):
                    has_proved = True
                    conversation.let_in()
                elif isinstance(event, c.LoginRequested):
                    conversation.fail(BadTokenError("no"))
                elif isinstance(event, c.CommandGiven):
                    assert has_proved
                    assert is_encrypted or not has_tls
                    conversation.complete(NoOpCommand("X"))
        except PageServiceError as error:
            assert error.is_fatal  # noqa: PT017 - no error is fine, too
            conversation.fail(error)
        if conversation.is_closed:
            return
        assert not conversation.is_let_in or has_proved
