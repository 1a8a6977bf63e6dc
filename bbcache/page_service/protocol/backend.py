"""The backend messages of PostgreSQL's protocol 3, as bytes.

Layouts are those of PostgreSQL's manual, "Message Formats". Pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

PROTOCOL_3_0: Final = 196608

_HEAD: Final = struct.Struct("!cI")
_LENGTH_SIZE_BYTES: Final = 4

ENCRYPTION_GRANTED: Final = b"S"
ENCRYPTION_REFUSED: Final = b"N"


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(body) + _LENGTH_SIZE_BYTES) + body


AUTHENTICATION_OK: Final = _message(b"R", struct.pack("!I", 0))
CLEARTEXT_PASSWORD_WANTED: Final = _message(b"R", struct.pack("!I", 3))
READY_FOR_QUERY: Final = _message(b"Z", b"I")  # idle
READY_IN_TRANSACTION: Final = _message(b"Z", b"T")
READY_IN_FAILED_TRANSACTION: Final = _message(b"Z", b"E")
PARSE_COMPLETE: Final = _message(b"1")
BIND_COMPLETE: Final = _message(b"2")
CLOSE_COMPLETE: Final = _message(b"3")
NO_PARAMETERS: Final = _message(b"t", struct.pack("!H", 0))
NO_DATA: Final = _message(b"n")
EMPTY_QUERY: Final = _message(b"I")
COPY_OUT: Final = _message(b"H", struct.pack("!bH", 0, 0))  # text, no columns, as Neon has it
COPY_DONE: Final = _message(b"c")


def parameter_status(name: str, value: str) -> bytes:
    """Tell the client a setting."""
    return _message(b"S", _text(name) + _text(value))


def backend_key_data(process_id: int, secret: bytes) -> bytes:
    """Tell the client what it cancels its commands with."""
    return _message(b"K", struct.pack("!I", process_id) + secret)


def negotiate_protocol_version(unknown_options: Iterable[str]) -> bytes:
    """Offer protocol 3.0, without these options.

    The message has the whole version, not the minor alone, as libpq 18 expects it.
    """
    names = b"".join(map(_text, unknown_options))
    count = names.count(b"\0")
    return _message(b"v", struct.pack("!II", PROTOCOL_3_0, count) + names)


def command_complete(tag: str) -> bytes:
    """Say that a command has succeeded."""
    return _message(b"C", _text(tag))


def copy_data_head(size_bytes: int) -> bytes:
    """Return the head of a message with `size_bytes` bytes of a copy."""
    return _HEAD.pack(b"d", size_bytes + _LENGTH_SIZE_BYTES)


def error_response(
    severity: str, sqlstate: str, text: str, *, detail: str | None = None, hint: str | None = None
) -> bytes:
    """Say that a command, or the whole connection, has failed.

    Args:
        severity: ``ERROR``, or ``FATAL`` where the connection is closed after it.
        sqlstate: five characters.
        text: the message.
        detail: more of it.
        hint: what to do about it.
    """
    fields = {b"S": severity, b"C": sqlstate, b"M": text, b"D": detail, b"H": hint}
    body = b"".join(key + _text(value) for key, value in fields.items() if value is not None)
    return _message(b"E", body + b"\0")


def _text(value: str) -> bytes:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace") + b"\0"
