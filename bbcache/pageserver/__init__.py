"""The reference host: a small pageserver whose timelines are PGDATA directories.

It is an example to copy from: `tenants` and `timeline` implement the protocols of
`bbcache.host`, `compute` follows the WAL of a running compute node, and `pageserver`
ties them to a cache. `PgdataTimeline` and `ComputeNode` also work alone. The lock of a timeline
guards memory only. Must not import the services or `bbcache.testing`.
"""

from bbcache.pageserver.compute import ComputeNode
from bbcache.pageserver.pageserver import Basebackup, Pageserver, make_root
from bbcache.pageserver.tenants import PgdataTenant, PgdataTenantManager
from bbcache.pageserver.timeline import PgdataTimeline

__all__ = [
    "Basebackup",
    "ComputeNode",
    "Pageserver",
    "PgdataTenant",
    "PgdataTenantManager",
    "PgdataTimeline",
    "make_root",
]
