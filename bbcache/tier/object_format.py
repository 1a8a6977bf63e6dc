"""The bytes and the name of one object: a signed preamble, then the archive as it is on disk.

The seal of an archive proves that it is whole, not who wrote it: xxh3 has no secret. So the
preamble has an HMAC-SHA256 over the epoch, the key of the archive, its size and its bytes.

| offset | bytes | what |
| --- | --- | --- |
| 0 | 3 | ``BBT`` |
| 3 | 1 | version of the preamble: 1 |
| 4 | 4 | id of the signing key; zeros if unsigned |
| 8 | 8 | bytes of the archive, little-endian |
| 16 | 32 | HMAC-SHA256; zeros if unsigned |
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bbcache.errors import ArchiveError
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.tier.keys import KEY_ID_SIZE_BYTES

if TYPE_CHECKING:
    from bbcache.tier.keys import Key, KeyRing

_MAGIC: Final = b"BBT"
_VERSION: Final = 1
_HEAD: Final = struct.Struct(f"<3sB{KEY_ID_SIZE_BYTES}sQ")
_MAC_SIZE_BYTES: Final = 32
_UNSIGNED: Final = b"\0" * KEY_ID_SIZE_BYTES
PREAMBLE_SIZE_BYTES: Final = _HEAD.size + _MAC_SIZE_BYTES


class BadObjectError(ArchiveError):
    """An object is not what a cache has signed under its name."""


@dataclass(frozen=True, slots=True)
class Address:
    """An archive and the epoch it belongs to: by these an object is named and signed."""

    epoch: str
    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn

    @property
    def name(self) -> str:
        """The name of the object below the prefix of the bucket."""
        return f"{self.epoch}/{self.tenant_id}/{self.timeline_id}/{self.lsn:016X}"

    @classmethod
    def of_name(cls, name: str) -> Address | None:
        """The address in a name; None for a name of another form."""
        try:
            epoch, tenant, timeline, lsn = name.split("/")
            found = cls(
                epoch, TenantId.from_str(tenant), TimelineId.from_str(timeline), Lsn(int(lsn, 16))
            )
        except ValueError:
            return None
        return found if found.name == name else None

    def new_mac(self, key: Key, size_bytes: int) -> hmac.HMAC:
        """An HMAC that has all but the bytes of the archive."""
        epoch = self.epoch.encode()
        head = _HEAD.pack(_MAGIC, _VERSION, key.id, size_bytes)
        place = self.tenant_id + self.timeline_id + self.lsn.to_bytes(8, "little")
        data = head + len(epoch).to_bytes(2, "little") + epoch + place
        return hmac.new(key.secret, data, hashlib.sha256)


def sign(buffer: bytearray, address: Address, key: Key | None) -> None:
    """Write the preamble of an object.

    Args:
        buffer: room for the preamble, then the archive.
        address: the archive.
        key: the signing key; None leaves the object unsigned.
    """
    size_bytes = len(buffer) - PREAMBLE_SIZE_BYTES
    if key is None:
        head, mac = _HEAD.pack(_MAGIC, _VERSION, _UNSIGNED, size_bytes), b"\0" * _MAC_SIZE_BYTES
    else:
        hasher = address.new_mac(key, size_bytes)
        with memoryview(buffer) as view, view[PREAMBLE_SIZE_BYTES:] as archive:
            hasher.update(archive)
        head, mac = _HEAD.pack(_MAGIC, _VERSION, key.id, size_bytes), hasher.digest()
    buffer[:PREAMBLE_SIZE_BYTES] = head + mac


class ObjectCheck:
    """Checks an object while its bytes arrive. For one thread.

    Args:
        address: the archive that the object must have.
        object_size_bytes: the size that the store gives.
        keys: verify the signature.
        allow_unsigned: whether an object without signature is accepted.
    """

    def __init__(
        self, address: Address, object_size_bytes: int, keys: KeyRing, *, allow_unsigned: bool
    ) -> None:
        self._address = address
        self._archive_bytes = object_size_bytes - PREAMBLE_SIZE_BYTES
        self._keys = keys
        self._allow_unsigned = allow_unsigned
        self._preamble = b""
        self._mac: hmac.HMAC | None = None
        self._wanted = b""
        self._seen_bytes = 0

    def archive_part(self, data: bytes) -> bytes:
        """Take the next bytes of the object; returns those of the archive.

        Raises:
            BadObjectError: the preamble is wrong, or there are too many bytes.
        """
        missing = PREAMBLE_SIZE_BYTES - len(self._preamble)
        if missing:
            self._preamble += data[:missing]
            data = data[missing:]
            if len(self._preamble) == PREAMBLE_SIZE_BYTES:
                self._read_preamble()
        self._seen_bytes += len(data)
        if self._seen_bytes > self._archive_bytes:
            raise BadObjectError("it has more bytes than the store says")
        if self._mac is not None:
            self._mac.update(data)
        return data

    def finish(self) -> None:
        """Verify the signature, once all bytes have arrived.

        Raises:
            BadObjectError: it is wrong, or bytes are missing.
        """
        if self._seen_bytes != self._archive_bytes:
            raise BadObjectError("it has fewer bytes than the store says")
        if self._mac is not None and not hmac.compare_digest(self._mac.digest(), self._wanted):
            raise BadObjectError("its signature is wrong")

    def _read_preamble(self) -> None:
        magic, version, key_id, size_bytes = _HEAD.unpack_from(self._preamble)
        if magic != _MAGIC or version != _VERSION:
            raise BadObjectError("it does not begin with a preamble that is known here")
        if size_bytes != self._archive_bytes:
            raise BadObjectError(
                f"its preamble says {size_bytes} bytes, but it has {self._archive_bytes}"
            )
        self._wanted = self._preamble[_HEAD.size :]
        key = self._keys.find(key_id)
        if key is not None:
            self._mac = self._address.new_mac(key, size_bytes)
        elif not (self._allow_unsigned and key_id == _UNSIGNED):
            is_signed = key_id != _UNSIGNED
            raise BadObjectError("its key is not known here" if is_signed else "it is not signed")
