"""The fields of a frontend message of PostgreSQL's protocol 3.

Field layouts are those of PostgreSQL's manual, "Message Formats".
"""

from __future__ import annotations

import struct
from contextlib import suppress

from bbcache.page_service.errors import ProtocolError
from bbcache.page_service.protocol.frames import Frame


class Fields:
    """Reads the fields of a message, one after the other. Not thread-safe.

    Each method raises `ProtocolError` where the message has another form.
    """

    def __init__(self, frame: Frame) -> None:
        self._kind, self._body = frame
        self._at = 0

    @property
    def _what(self) -> str:
        return f"a message of type {self._kind!r}" if self._kind else "the first message"

    def number(self, layout: str = "!I") -> int:
        """Read a number with a layout of `struct`."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def count(self) -> int:
        """Read how many fields follow."""
        return self.number("!H")

    def take(self, size_bytes: int) -> bytes:
        """Read so many bytes."""
        piece = self._body[self._at : self._at + size_bytes]
        if len(piece) < size_bytes:
            raise ProtocolError(f"{self._what} is cut short")
        self._at += size_bytes
        return piece

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(len(self._body) - self._at)

    def text(self) -> str:
        """Read a text that ends with a zero byte."""
        end = self._body.find(b"\0", self._at)
        if end < 0:
            raise ProtocolError(f"a text in {self._what} has no end")
        raw = self._body[self._at : end]
        self._at = end + 1
        with suppress(UnicodeDecodeError):
            return raw.decode()
        # Outside of the handler, and without the text: it may be a password.
        raise ProtocolError(f"a text in {self._what} is not UTF-8")

    def last_text(self) -> str:
        """Read a text that is the last field."""
        text = self.text()
        self.end()
        return text

    def pairs(self) -> dict[str, str]:
        """Read names and values, up to an empty name at the very end."""
        found: dict[str, str] = {}
        while name := self.text():
            found[name] = self.text()
        self.end()
        return found

    def portal_or_statement(self) -> tuple[bool, str]:
        """Read whether the message is about a portal, and the name, which is the last field."""
        kind = self.take(1)
        if kind not in (b"S", b"P"):
            raise ProtocolError(f"{self._what} is about {kind!r}, not a statement or portal")
        return kind == b"P", self.last_text()

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._body):
            raise ProtocolError(f"{self._what} is longer than its fields")
