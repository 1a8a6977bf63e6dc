"""The names of entries' files, which are exactly Neon's.

A name has tenant, timeline and LSN (``entry_filename`` in Neon's ``basebackup_cache.rs``), in
one canonical spelling. Thread-safe.
"""

from __future__ import annotations

from binascii import unhexlify
from struct import unpack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX: Final = "basebackup_"
_SIZE_CHARS: Final = 100
# Formats of `struct` for the parts of a name: the digits of the ids, those of the LSN, the rest.
_IDS: Final = "11x 32s x 32s 24x"
_LSN: Final = "77x 16s 7x"
_FIXED: Final = "11s 32x 1s 32x 1s 16x 7s"
_FIXED_TEXT: Final = b"basebackup___.tar.gz"


def parse_entry_names(names: list[str]) -> tuple[Sequence[bytes], Sequence[int]] | None:
    """Parse many names at once, which is much faster than one by one.

    Returns:
        Keys and LSNs; None unless each name is one that `Store.path_of` makes.
    """
    count, text = len(names), "".join(names)
    if not text.isascii() or {*map(len, names)} != {_SIZE_CHARS}:
        return None
    data = text.encode()
    ids, lsns = b"".join(unpack(count * _IDS, data)), b"".join(unpack(count * _LSN, data))
    fixed = b"".join(unpack(count * _FIXED, data))
    if fixed != count * _FIXED_TEXT or ids != ids.lower() or lsns != lsns.upper():
        return None
    try:
        return unpack(count * "32s", unhexlify(ids)), unpack(f">{count}Q", unhexlify(lsns))
    except ValueError:  # not hexadecimal
        return None
