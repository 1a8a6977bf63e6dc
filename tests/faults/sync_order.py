"""The order of the steps by which an archive comes into being, read from recorded calls.

Created exclusively, body written, seal patched in, synced, closed, renamed; and nothing
else in between, but that it may be opened once more and read for a caller that waits.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from faults import fixed_host

from bbcache.archive.format import HEADER_SIZE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from faults.calls import Call

_ORDER: Final = re.compile("open (write )+(patch )+fsync close rename ")

_READS: Final = ("pread", "read", "stat", "statvfs", "lseek")


def violations(calls: list[Call], data_dir: Path) -> list[str]:
    """The faults in the order of calls that made each published archive."""
    steps: defaultdict[str, list[Call]] = defaultdict(list)
    found = []
    for call in calls:
        if call.error or os.path.dirname(call.path) != str(data_dir / "tmp"):
            continue
        if call.op in _READS or (call.op == "open" and not call.offset & os.O_CREAT):
            continue
        steps[call.path].append(call)
        if call.op == "rename" and fixed_host.parse_name(os.path.basename(call.path2)):
            found += _violations_of(steps.pop(call.path), call.path2)
    return found


def published(calls: list[Call], data_dir: Path) -> int:
    """How many archives were published."""
    renames = [call for call in calls if call.op == "rename" and not call.error]
    tmp_dir = str(data_dir / "tmp")
    return sum(os.path.dirname(call.path) == tmp_dir for call in renames)


def _violations_of(steps: list[Call], entry_path: str) -> list[str]:
    order = "".join(("patch" if call.op == "pwrite" else call.op) + " " for call in steps)
    if not _ORDER.fullmatch(order):
        return [f"{os.path.basename(entry_path)}: {order}"]
    patches = [call for call in steps if call.op == "pwrite"]
    at = 0
    for patch in patches:
        if patch.offset != at:
            return [f"{os.path.basename(entry_path)}: patched at {patch.offset}"]
        at += patch.result
    if at != HEADER_SIZE_BYTES:
        return [f"{os.path.basename(entry_path)}: {at} bytes patched"]
    flags = steps[0].offset
    if flags & (os.O_CREAT | os.O_EXCL) != os.O_CREAT | os.O_EXCL:
        return [f"{os.path.basename(entry_path)}: created with flags {flags:#o}"]
    return []
