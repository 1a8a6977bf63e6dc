"""Where a run took place: hardware, file system, and the versions of all that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import PostgresBinaries

_PACKAGES: Final = (
    *("bbcache", "isal", "xxhash", "filelock", "prometheus-client"),
    *("cramjam", "deflate", "diskcache", "zlib-ng"),
)
_TOOLS: Final = ("tar", "gzip", "igzip")
_GB: Final = 1e9


def describe_machine(directory: Path) -> dict[str, str]:
    """Describe hardware, system, and the file system of a directory; no name, no address."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kind = _said(["stat", "--file-system", "--format=%T", str(directory)])
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}, {_cpu_model()}",
        "memory": f"{memory_bytes / _GB:.1f} GB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": kind,
        "load at the start": load,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of bbcache, its dependencies and its peers, where they are installed."""
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    for tool in _TOOLS:
        if path := shutil.which(tool):
            versions[tool] = _said([path, "--version"])
    with suppress(PostgresError):
        versions["PostgreSQL"] = PostgresBinaries.find().version
    return versions


def _said(command: list[str]) -> str:
    """Return the first line that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if lines else "unknown"


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
