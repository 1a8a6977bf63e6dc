"""Where a run took place: hardware, file system, and versions of all that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

_PACKAGES: Final = (
    *("bbcache", "isal", "xxhash", "filelock", "prometheus-client"),
    *("cramjam", "deflate", "diskcache", "zlib-ng"),
)
_TOOLS: Final = ("tar", "gzip", "igzip")
_TIMEOUT_S: Final = 10.0
_GB: Final = 1e9


def describe_machine(directory: Path) -> dict[str, str]:
    """The hardware, the system, and the file system of a directory; no name, no address."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}, {_cpu_model()}",
        "memory": f"{memory_bytes / _GB:.1f} GB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": _file_system(directory),
        "load at the start": load,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def describe_versions() -> dict[str, str]:
    """Versions of bbcache, of what it stands on, and of its peers, as far as they are here."""
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    for tool in _TOOLS:
        if path := shutil.which(tool):
            versions[tool] = _tool_version(path)
    return versions


def _tool_version(path: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a program as found
            [path, "--version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if lines else "unknown"


def _cpu_model() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
        if match is not None:
            return match[1].strip()
    return platform.processor() or "unknown"


def _file_system(directory: Path) -> str:
    """The type of the file system that holds a directory: that of the longest mount above it."""
    path = str(directory.resolve())
    best, kind = "", "unknown"
    with suppress(OSError):
        for line in _read("/proc/self/mounts").splitlines():
            _, mount, name, *_ = line.split(" ")
            is_above = path == mount or path.startswith(mount.rstrip("/") + "/")
            if is_above and len(mount) >= len(best):
                best, kind = mount, name
    return kind


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace")
