"""Basebackups of serverless Postgres, made ahead of need and kept on local disk.

The names of the cache and of its host are here. `bbcache.postgres`, `bbcache.pageserver`,
`bbcache.page_service`, `bbcache.fetch` and `bbcache.testing` have names of their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from bbcache._version import __version__
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
from bbcache.host import PinningTenant, TarballWriter, Tenant, TenantManager, TenantState, Timeline
from bbcache.ids import Lsn, TenantId, TenantShardId, TenantTimelineId, TimelineId
from bbcache.tier_config import TierConfig

if TYPE_CHECKING:
    from bbcache.cache import BasebackupCache
    from bbcache.explanation import Explanation
    from bbcache.second_tier import Tier
    from bbcache.simple_host import SimpleTenant, SimpleTenantManager
    from bbcache.storage.files import BasebackupFile
    from bbcache.storage.index import EntryInfo

# Imported when they are first used: Prometheus' client and file locks take longer to import than
# all else, and a program that works with `bbcache.postgres` alone has no use for them.
_HOMES: Final = {
    "BasebackupCache": "bbcache.cache",
    "BasebackupFile": "bbcache.storage.files",
    "EntryInfo": "bbcache.storage.index",
    "Explanation": "bbcache.explanation",
    "SimpleTenant": "bbcache.simple_host",
    "SimpleTenantManager": "bbcache.simple_host",
    "Tier": "bbcache.second_tier",
}

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
    "Explanation",
    "FillError",
    "FillTimeoutError",
    "Lsn",
    "NotReadyError",
    "PinningTenant",
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
    "Tier",
    "TierConfig",
    "Timeline",
    "TimelineId",
    "__version__",
]

if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Import the module of a name when the name is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
