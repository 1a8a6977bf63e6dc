"""The names of entries' files, which are exactly Neon's.

A name tells tenant, timeline and LSN (``entry_filename`` in Neon's
``basebackup_cache.rs``); only the one canonical spelling is a name. Thread-safe.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PREFIX: Final = "basebackup_"
_SUFFIX: Final = ".tar.gz"
_ONE: Final = r"basebackup_[0-9a-f]{32}_[0-9a-f]{32}_[0-9A-F]{16}\.tar\.gz"
_NAME: Final = re.compile(_ONE, re.ASCII)
_NAMES: Final = re.compile(f"(?:{_ONE})*", re.ASCII)
_SIZE_CHARS: Final = 100
_KEY_AND_LSN: Final = struct.Struct(">32sQ")


def is_entry_name(name: str) -> bool:
    """Whether `bbcache.store.Store.path_of` gives this very name to some entry."""
    return _NAME.fullmatch(name) is not None


def may_be_entry_name(name: str) -> bool:
    """A quick look; `is_entry_name` says for sure."""
    return len(name) == _SIZE_CHARS


def are_entry_names(names: list[str]) -> bool:
    """Whether all of them are, where each may be; at once, which is faster than one by one."""
    return _NAMES.fullmatch("".join(names)) is not None


def parse_entry_names(names: Iterable[str]) -> Iterator[tuple[bytes, int]]:
    """Key and LSN of each of these names of entries, in order."""
    digits = "".join(names).replace(PREFIX, "").replace(_SUFFIX, "").replace("_", "")
    return _KEY_AND_LSN.iter_unpack(bytes.fromhex(digits))
