"""For the tests of programs that embed bbcache: a host in memory, `check_host`, a pytest plugin.

Use the plugin with ``pytest -p bbcache.testing.plugin`` or, in the top-level
``conftest.py``, ``pytest_plugins = ["bbcache.testing.plugin"]``. Each class has a lock of its own,
which guards memory only. Must not import the services or `bbcache.pageserver`.
"""

from bbcache.testing.clock import MovableClock
from bbcache.testing.host import (
    MemoryHost,
    MemoryTenant,
    MemoryTimeline,
    make_tarball,
)
from bbcache.testing.host_rules import HostRuleError, check_host
from bbcache.testing.tier import MemoryTier

__all__ = [
    "HostRuleError",
    "MemoryHost",
    "MemoryTenant",
    "MemoryTier",
    "MemoryTimeline",
    "MovableClock",
    "check_host",
    "make_tarball",
]
