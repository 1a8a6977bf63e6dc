"""Check the first block of a tarball, so that a body of another kind is refused early.

Pure functions, so thread-safe. The layout is that of POSIX.1-1988 (ustar), which all later
formats keep: the checksum is at offset 148, in octal digits.
"""

from __future__ import annotations

from typing import Final

from bbcache.errors import ArchiveError

BLOCK_SIZE_BYTES: Final = 512

_CHECKSUM: Final = slice(148, 156)
_MOST_SHOWN: Final = 32
_HINT: Final = "hint: Write the tar itself, uncompressed, from its first header on."
_MAGICS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"07070", "cpio"),
)


def check_tar_head(block: bytes) -> None:
    """Check the first block that a host has written.

    Args:
        block: its first `BLOCK_SIZE_BYTES` bytes, or all of them if there are fewer.

    Raises:
        ArchiveError: it is not the beginning of a tar, or the tar has no members. The text
            says what it looks like.
    """
    if len(block) == BLOCK_SIZE_BYTES and _has_checksum(block):
        return
    if not block.strip(b"\0"):
        raise ArchiveError(
            "the host wrote an empty basebackup: zeros instead of the first member of a tar"
        )
    raise ArchiveError(f"the host wrote no tar, but {_looks_like(block)}\n{_HINT}")


def _has_checksum(block: bytes) -> bool:
    try:
        stated = int(block[_CHECKSUM].strip(b"\0 "), 8)
    except ValueError:
        return False
    return stated == sum(block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :])


def _looks_like(block: bytes) -> str:
    for magic, name in _MAGICS:
        if block.startswith(magic):
            return f"what looks like {name}"
    text = block.decode("utf-8", "ignore")
    is_text = all(each.isprintable() or each.isspace() for each in text)
    kind = "text" if is_text and len(text.encode()) > len(block) - 4 else "other bytes"
    return f"{kind}: {block[:_MOST_SHOWN]!r}{'...' if len(block) > _MOST_SHOWN else ''}"
