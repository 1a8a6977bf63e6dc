"""For the tests of those who embed bbcache: a host in memory, and a pytest plugin.

Use the plugin with ``pytest -p bbcache.testing.plugin`` or, in the top-level
``conftest.py``, ``pytest_plugins = ["bbcache.testing.plugin"]``.
"""

from bbcache.testing.host import (
    MemoryHost,
    MemoryTenant,
    MemoryTimeline,
    make_tarball,
)

__all__ = ["MemoryHost", "MemoryTenant", "MemoryTimeline", "make_tarball"]
