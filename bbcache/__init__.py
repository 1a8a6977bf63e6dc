"""Basebackups of serverless Postgres, made ahead of need and kept on local disk.

Everything public is named here; `bbcache.postgres`, `bbcache.pageserver` and
`bbcache.testing` are imported by their own names.
"""

from bbcache._version import __version__
from bbcache.cache import BasebackupCache
from bbcache.config import BasebackupCacheConfig
from bbcache.errors import (
    BackingOffError,
    BbcacheError,
    ClosingError,
    ConfigError,
    DirectoryLockedError,
    FillError,
    FillTimeoutError,
    NotReadyError,
    StoreError,
)
from bbcache.host import Tenant, TenantManager, TenantState, Timeline
from bbcache.ids import Lsn, TenantId, TenantShardId, TenantTimelineId, TimelineId
from bbcache.storage.files import BasebackupFile
from bbcache.storage.index import EntryInfo

__all__ = [
    "BackingOffError",
    "BasebackupCache",
    "BasebackupCacheConfig",
    "BasebackupFile",
    "BbcacheError",
    "ClosingError",
    "ConfigError",
    "DirectoryLockedError",
    "EntryInfo",
    "FillError",
    "FillTimeoutError",
    "Lsn",
    "NotReadyError",
    "StoreError",
    "Tenant",
    "TenantId",
    "TenantManager",
    "TenantShardId",
    "TenantState",
    "TenantTimelineId",
    "Timeline",
    "TimelineId",
    "__version__",
]
