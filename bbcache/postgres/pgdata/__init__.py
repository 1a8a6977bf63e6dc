"""Data directories: what is in them, as a tarball and back.

`tarball` inspects and sends one, `walk` decides what of it is sent, `settings` makes its
configuration portable, and `restore` unpacks a tarball again. No lock; nothing here starts
a server. Must not import `bbcache.postgres.server` or the cache. The names here are the
public ones.
"""

from bbcache.postgres.pgdata.control_file import ClusterState, ControlFile
from bbcache.postgres.pgdata.settings import make_portable
from bbcache.postgres.pgdata.tarball import (
    TarballSummary,
    check_sendable,
    inspect_pgdata,
    restore_tarball,
    send_pgdata_tarball,
)

__all__ = [
    "ClusterState",
    "ControlFile",
    "TarballSummary",
    "check_sendable",
    "inspect_pgdata",
    "make_portable",
    "restore_tarball",
    "send_pgdata_tarball",
]
