"""What an error of the disk says, and what an operator can do about it."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bbcache.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINTS: Final = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or close archives sooner.",
    errno.ENFILE: "The machine is out of open files; raise fs.file-max.",
    errno.ENOMEM: "The process is out of memory; raise its limit, or lower prepare_concurrency.",
    errno.ENOSPC: "Free space on the file system, or lower max_total_size_bytes.",
    errno.EDQUOT: "Raise the disk quota, or lower max_total_size_bytes.",
    errno.EROFS: "Remount the file system read-write; prepares work again by themselves.",
    errno.EACCES: "Give the user of this process read, write and search permission.",
    errno.EPERM: "Give the user of this process permission, and clear immutable flags.",
    errno.ENOENT: "Restore or remount the cache directory; prepares work again by themselves.",
    errno.EISDIR: "A directory has the name of a basebackup; move it away.",
    errno.EIO: "The disk or its file system is failing; look at the kernel log.",
}


def hint_for(error: BaseException) -> str:
    """What to do about a disk error: a line break and a hint, or an empty text.

    The text of a `StoreError` has a hint already.
    """
    if isinstance(error, StoreError):
        return ""
    hint = _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"\nhint: {hint}" if hint else ""


@contextmanager
def disk_step(doing: str, path: str) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` with path and hint.

    Args:
        doing: what the block does, such as ``write``.
        path: the file or directory.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        text = f"cannot {doing} {path}: {error.strerror}{hint_for(error)}"
        raise StoreError(text, errno=error.errno) from error
