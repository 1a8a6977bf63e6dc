"""Basebackups of serverless Postgres, made ahead of need and kept on local disk.

The names of the cache and of its host are here. `bbcache.postgres`, `bbcache.pageserver`,
`bbcache.page_service`, `bbcache.fetch` and `bbcache.testing` have names of their own.
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
from bbcache.host import TarballWriter, Tenant, TenantManager, TenantState, Timeline
from bbcache.ids import Lsn, TenantId, TenantShardId, TenantTimelineId, TimelineId
from bbcache.simple_host import SimpleTenant, SimpleTenantManager
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
    "SimpleTenant",
    "SimpleTenantManager",
    "StoreError",
    "TarballWriter",
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
