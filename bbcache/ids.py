"""Tenant, timeline and shard ids, and positions in the WAL: immutable, hence thread-safe."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from bbcache.arguments import with_article, wrong_type
from bbcache.errors import ParseError, safe_repr

ID_SIZE_BYTES = 16
_HEX_ID = re.compile(r"[0-9a-fA-F]{32}")
_HEX_LSN = re.compile(r"([0-9a-fA-F]{1,8})/([0-9a-fA-F]{1,8})")
_HEX_SHARD = re.compile(r"([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_MAX_LSN = 2**64 - 1
_MAX_SHARD = 255


class _Id(bytes):
    """Sixteen bytes that print as 32 lower-case hex digits.

    A subclass of `bytes`, so that ids are joined to a key in C. Ids of different kinds never
    compare equal.
    """

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        """Check type and length.

        Raises:
            ParseError: (a `ValueError`) for another length; an `ArgumentError` for another type.
        """
        _check_bytes(cls, value)
        data = bytes(value)
        if len(data) != ID_SIZE_BYTES:
            raise ParseError(f"{cls.__name__} takes {ID_SIZE_BYTES} bytes, not {safe_repr(value)}")
        return super().__new__(cls, data)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse exactly 32 hex digits of either case.

        Raises:
            ParseError: (a `ValueError`) for another text; an `ArgumentError` for another type.
        """
        _check_text(cls, text)
        if not _HEX_ID.fullmatch(text):
            raise ParseError(f"{cls.__name__} takes 32 hex digits, not {safe_repr(text)}")
        return bytes.__new__(cls, bytes.fromhex(text))

    @classmethod
    def generate(cls) -> Self:
        """A new random id."""
        return cls(os.urandom(ID_SIZE_BYTES))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}.from_str({self.hex()!r})"

    def __format__(self, spec: str) -> str:
        return format(self.hex(), spec)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


class TenantId(_Id):
    """A tenant: one customer's Postgres, with all its branches."""

    __slots__ = ()


class TimelineId(_Id):
    """A timeline: one branch of a tenant's history."""

    __slots__ = ()


class TenantTimelineId(NamedTuple):
    """A timeline with its tenant."""

    tenant_id: TenantId
    timeline_id: TimelineId

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.timeline_id}"


@dataclass(frozen=True, slots=True, order=True)
class TenantShardId:
    """One shard of a tenant; a count of 0 means that the tenant is not sharded.

    Printed as in Neon (libs/utils/src/shard.rs): the tenant alone if it is not sharded,
    else ``<tenant>-NNCC`` with number and count as two hex digits each.
    """

    tenant_id: TenantId
    shard_number: int = 0
    shard_count: int = 0

    def __post_init__(self) -> None:
        check_type("tenant_id", self.tenant_id, TenantId)
        for name in ("shard_number", "shard_count"):
            value = getattr(self, name)
            if type(value) is not int:
                raise wrong_type(name, value, f"an int from 0 to {_MAX_SHARD}")
            if not 0 <= value <= _MAX_SHARD:
                raise ParseError(f"{name} is an int from 0 to {_MAX_SHARD}, not {safe_repr(value)}")
        if self.shard_number >= max(self.shard_count, 1):
            raise ParseError(
                f"shard_number {self.shard_number} is out of range for {self.shard_count} shards"
            )

    @property
    def is_shard_zero(self) -> bool:
        """Whether basebackups are taken on this shard."""
        return self.shard_number == 0

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse ``<tenant>`` or ``<tenant>-NNCC``.

        Raises:
            ParseError: (a `ValueError`) for another text; an `ArgumentError` for another type.
        """
        _check_text(cls, text)
        tenant, dash, shard = text.partition("-")
        tenant_id = TenantId.from_str(tenant)
        if not dash:
            return cls(tenant_id)
        match = _HEX_SHARD.fullmatch(shard)
        if match is None or match[2] == "00":
            raise ParseError(f"TenantShardId takes <tenant>-NNCC in hex, not {safe_repr(text)}")
        return cls(tenant_id, int(match[1], 16), int(match[2], 16))

    def __str__(self) -> str:
        if self.shard_count == 0:
            return str(self.tenant_id)
        return f"{self.tenant_id}-{self.shard_number:02x}{self.shard_count:02x}"


class Lsn(int):
    """A position in the WAL: an int from 0 to 2^64-1, printed ``0/16B5A50``.

    Compares and adds as an int; the sum is an `Lsn`, a difference a plain int of
    bytes. An f-string with a format spec formats the int (``f"{lsn:016X}"``).
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Check type and range.

        Raises:
            ParseError: (a `ValueError`) out of range; an `ArgumentError` for another type.
        """
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type("value of Lsn", value, "an int", _way_to(cls, value))
        if not 0 <= value <= _MAX_LSN:
            raise ParseError(f"Lsn is from 0 to 2^64-1, not {safe_repr(int(value))}")
        return super().__new__(cls, value)

    @classmethod
    def of_valid(cls, value: int) -> Self:
        """Make an LSN of an int known to be in range; takes half the time of a checked one."""
        return int.__new__(cls, value)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse two hex numbers of up to 32 bits with one slash between them.

        Raises:
            ParseError: (a `ValueError`) for another text; an `ArgumentError` for another type.
        """
        _check_text(cls, text)
        match = _HEX_LSN.fullmatch(text)
        if match is None:
            raise ParseError(f"Lsn takes a text such as 0/16B5A50, not {safe_repr(text)}")
        return cls.of_valid(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn(0x{int(self):X})"

    def __format__(self, spec: str) -> str:
        return int.__format__(self, spec) if spec else str(self)

    def __add__(self, other: int) -> Lsn:
        total = int.__add__(self, other)
        return total if total is NotImplemented else Lsn(total)

    __radd__ = __add__


def check_ids(tenant_id: object, timeline_id: object, lsn: object) -> None:
    """Check the arguments of a call for a tenant; raises `ArgumentError` (a `TypeError`)."""
    if (
        isinstance(lsn, Lsn)
        and isinstance(timeline_id, TimelineId)
        and isinstance(tenant_id, TenantId)
    ):
        return  # each miss comes here: three calls would be a tenth of its time
    check_type("tenant_id", tenant_id, TenantId)
    check_type("timeline_id", timeline_id, TimelineId)
    check_type("lsn", lsn, Lsn)


def check_shard_ids(tenant_shard_id: object, timeline_id: object, lsn: object) -> None:
    """Check the arguments of a call for a shard; raises `ArgumentError` (a `TypeError`)."""
    check_type("tenant_shard_id", tenant_shard_id, TenantShardId)
    check_type("timeline_id", timeline_id, TimelineId)
    check_type("lsn", lsn, Lsn)


def check_type(name: str, value: object, wanted: type) -> None:
    """Check that an argument is an id or an LSN of the wanted class.

    Raises:
        ArgumentError: (a `TypeError`) it is not; says how to convert it.
    """
    if not isinstance(value, wanted):
        raise wrong_type(name, value, with_article(wanted.__name__), _way_to(wanted, value))


def _check_bytes(cls: type, value: object) -> None:
    if not isinstance(value, bytes | bytearray | memoryview):
        wanted = f"{ID_SIZE_BYTES} bytes"
        raise wrong_type(f"value of {cls.__name__}", value, wanted, _way_to(cls, value))


def _check_text(cls: type, text: object) -> None:
    if not isinstance(text, str):
        name = f"text of {cls.__name__}.from_str"
        raise wrong_type(name, text, "a str", _way_to(cls, text))


def _way_to(wanted: type, value: object) -> str:
    """How to make the wanted id or LSN of a value, as a sentence; empty if that is unclear."""
    name = wanted.__name__
    part = "timeline_id" if wanted is TimelineId else "tenant_id"
    owner = "tenant_shard_id." if isinstance(value, TenantShardId) else "its "
    is_id = issubclass(wanted, _Id)
    if isinstance(value, bool | type):
        return ""
    ways = (
        (isinstance(value, wanted), f"It is {with_article(name)} already."),
        (isinstance(value, str), f"Use {name}.from_str(text)."),
        (isinstance(value, TenantId) and wanted is TenantShardId, "Pass TenantShardId(tenant_id)."),
        (is_id and isinstance(getattr(value, part, None), wanted), f"Pass {owner}{part}."),
        (isinstance(value, _Id), "Pass the tenant's id before the timeline's."),
        (is_id and isinstance(value, bytes | bytearray | memoryview), f"Use {name}(data)."),
        (wanted is Lsn and isinstance(value, int), "Use Lsn(number)."),
        (wanted is Lsn and hasattr(type(value), "__index__"), "Use Lsn(int(number))."),
    )
    return next((hint for applies, hint in ways if applies), "")
