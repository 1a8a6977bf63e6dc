"""PostgreSQL's own programs: found, run as a user that may run them, started and stopped.

`binaries` finds an installation, `cluster` is one data directory with its server, and
`start_check` tries whether a copy of one starts. Must not import the cache. The names here
are the public ones.
"""

from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.start_check import check_starts

__all__ = ["Cluster", "PostgresBinaries", "check_starts"]
