"""No byte of a password reaches the log, a client, or the text of an object."""

from __future__ import annotations

import logging
import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_service import wire
from page_service.tokens import Signer

from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.errors import BadTokenError, ProtocolError
from bbcache.page_service.protocol import conversation as c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from page_service.conftest import Bench

    from bbcache.page_service.auth.permission import Permission

_PIECE_BYTES = 4
_SECRETS = {
    "ascii": b"Tr0ub4dor&3-correct-horse",
    "not UTF-8": b"Tr0ub4\xff\xfe\x80dor&3-correct",
    "latin-1": "Trøüb4døré&3-cörrect".encode("latin-1"),
    "UTF-8": "Trøüb4døré&3-cörrect-馬".encode(),
    "controls": b"Tr0ub4\x1b[31mdor\r\n&3-correct",
    "a lone surrogate": b"Tr0ub4\xed\xa0\x80dor&3-correct",
    "a JWT": Signer().sign(scope="tenant", tenant_id="00" * 16).encode(),
    "half a JWT": b"eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6InRlbmFudCJ9",
}


def framed(body: bytes, size_bytes: int | None = None) -> bytes:
    """A password message with this body, which says that it is so long."""
    return b"p" + struct.pack("!I", 4 + (len(body) if size_bytes is None else size_bytes)) + body


_FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "whole": lambda secret: framed(secret + b"\0"),
    "without its NUL": framed,
    "with a NUL inside": lambda secret: framed(secret[:8] + b"\0" + secret[8:] + b"\0"),
    "cut by its length": lambda secret: framed(secret + b"\0", 8),
    "longer than it may be": lambda secret: framed(secret + b"\0", 1 << 20),
    "with a length below 4": lambda secret: b"p\0\0\0\1" + secret,
    "without a frame": lambda secret: secret + b"\0" * 8,
    "as a query": lambda secret: wire.query("x").replace(b"x", secret),
    "as a query of its length": lambda secret: (
        b"Q" + struct.pack("!I", 5 + len(secret)) + secret + b"\0"
    ),
    "with an unknown type": lambda secret: b"!" + framed(secret + b"\0")[1:],
}


def traces_of(secret: bytes, text: str) -> list[str]:
    """The pieces of a secret that are in a text, in any spelling that a log may use."""
    found = []
    for at in range(len(secret) - _PIECE_BYTES + 1):
        piece = secret[at : at + _PIECE_BYTES]
        spellings = {
            piece.decode("latin-1"),
            piece.decode(errors="replace"),
            piece.decode(errors="surrogateescape"),
            repr(piece)[2:-1],
            ascii(piece.decode("latin-1"))[1:-1],
            piece.hex(),
            f" {int.from_bytes(piece, 'big')} ",
        }
        found += [each for each in spellings if each.strip("\ufffd") and each in text]
    return found


class Everything(logging.Handler):
    """All that is logged at any level, with tracebacks and what they chain."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, and the values that it was made from."""
        self.text += f"{self.format(record)}\n{record.args!r}\n"


@pytest.fixture
def log() -> Iterator[Everything]:
    """The whole log of a test."""
    handler, root = Everything(), logging.getLogger()
    levels = root.level, logging.getLogger("bbcache").level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("bbcache").setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(levels[0])
    logging.getLogger("bbcache").setLevel(levels[1])


def check(bench: Bench, log: Everything, secret: bytes, *messages: bytes) -> None:
    """Send it, and look for it in the log and the answer."""
    client = bench.client()
    client.send(*messages)
    replies = client.rest()
    client.close()
    bench.wait_gone()
    said = "".join(reply.body.decode("latin-1") for reply in replies)
    assert traces_of(secret, log.text + said) == []
    assert "connection of" in log.text


@pytest.mark.parametrize("kind", _SECRETS)
@pytest.mark.parametrize("frame", _FRAMES)
def test_a_password_that_is_wanted(
    make_bench: Callable[[], Bench], tmp_path: Path, log: Everything, kind: str, frame: str
) -> None:
    """However it is spelled and framed, the log and the answer have no piece of it."""
    bench, secret = make_bench(), _SECRETS[kind]
    bench.serve(verifier=TokenKeys(Signer().write_public(tmp_path / "key.pem")))
    check(bench, log, secret, wire.startup(user="u"), _FRAMES[frame](secret), wire.packed(b"X"))


@pytest.mark.parametrize("kind", _SECRETS)
@pytest.mark.parametrize("where", ["password", "name", "value"])
def test_a_password_that_is_not_wanted(
    make_bench: Callable[[], Bench], log: Everything, kind: str, where: str
) -> None:
    """Nor where a client sends it unasked, or among its parameters."""
    bench, secret = make_bench(), _SECRETS[kind]
    bench.serve()
    if where == "password":
        check(bench, log, secret, wire.startup(user="u"), framed(secret + b"\0"))
        return
    pair = secret + b"\0x\0" if where == "name" else b"password\0" + secret + b"\0"
    body = struct.pack("!HH", 3, 0) + b"user\0u\0" + pair + b"\0"
    check(bench, log, secret, struct.pack("!I", len(body) + 4) + body, wire.packed(b"?"))


@settings(max_examples=300, deadline=None, database=None)
@given(seed=st.integers(0, 2**32), size_bytes=st.integers(8, 60), frame=st.sampled_from([*_FRAMES]))
def test_any_password(seed: int, size_bytes: int, frame: str) -> None:
    """No error of the conversation has a piece of what came instead of a good password."""
    secret = random.Random(seed).randbytes(size_bytes)
    conversation = c.Conversation(wants_token=True, has_tls=False, process_id=1, secret=b"1234")
    conversation.feed(wire.startup(user="u") + _FRAMES[frame](secret) + wire.packed(b"X"))
    said = ""
    try:
        while (event := conversation.next_event()) is not None:
            said += repr(event)
            conversation.fail(BadTokenError("no"))
    except ProtocolError as error:
        said += f"{error!r} {error.__cause__!r}"
    assert traces_of(secret, said) == []


def test_a_verifier_that_fails(make_bench: Callable[[], Bench], log: Everything) -> None:
    """Its exception may have the token in its text, so only its type is logged; the login fails."""

    class Failing:
        def verify(self, token: str) -> Permission:
            raise LookupError(token)

    bench, secret = make_bench(), _SECRETS["ascii"]
    bench.serve(verifier=Failing())
    check(bench, log, secret, wire.startup(user="u"), framed(secret + b"\0"))
    assert "the token cannot be verified: LookupError" in log.text
    assert bench.endings() == {"unauthorized": 1}


def test_no_object_tells_what_it_keeps() -> None:
    """A repr in a traceback, a debugger or a log of another one has no secret."""
    secret = _SECRETS["ascii"].decode()
    assert secret not in repr(c.LoginRequested(secret))


def test_the_search_finds_what_there_is() -> None:
    """A test that looks for nothing would pass."""
    for secret in _SECRETS.values():
        for text in (
            repr(secret),
            secret.decode("latin-1"),
            secret.hex(),
            ascii(secret.decode("latin-1")),
            f"has {int.from_bytes(secret[4:8], 'big')} bytes",
        ):
            assert traces_of(secret, text)
