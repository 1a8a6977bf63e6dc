"""The arguments of `BasebackupCache.spawn`: checked before anything is touched."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from bbcache.arguments import check_methods, check_passable, wrong_type
from bbcache.config import BasebackupCacheConfig
from bbcache.errors import ConfigError, StoreError
from bbcache.storage.disk_errors import disk_step

if TYPE_CHECKING:
    from bbcache.second_tier import Tier


def check_spawn(
    data_dir: object, config: object, tenant_manager: object, registry: object, tier: object
) -> None:
    """Refuse arguments of a wrong type before anything is touched."""
    if not isinstance(data_dir, (str, os.PathLike)) or not isinstance(os.fspath(data_dir), str):
        hint = "Pass os.fsdecode(data_dir)." if isinstance(data_dir, bytes) else ""
        raise wrong_type("data_dir", data_dir, "a str or a path", hint)
    settings = check_config(config, "a BasebackupCacheConfig or None")
    methods = ("list", "get_attached_tenant_shard")
    check_methods("tenant_manager", tenant_manager, "a bbcache.TenantManager", methods)
    if registry is not None:
        wanted = "a prometheus_client.CollectorRegistry or None"
        check_methods("registry", registry, wanted, ("register", "unregister"))
    if tier is not None:
        check_methods("tier", tier, "a bbcache.Tier or None", ("offer", "fetch", "close"))
    elif settings.tier is not None:
        raise ConfigError(
            f"the settings have a tier, {settings.tier.url}, but spawn was given none\n"
            "hint: Pass tier=ObjectTier(config.tier); it is in bbcache.tier."
        )


def check_config(config: object, wanted: str) -> BasebackupCacheConfig:
    """The settings, checked; raises `ArgumentError` for an object of another type."""
    if not isinstance(config, BasebackupCacheConfig):
        hint = "Use BasebackupCacheConfig(...), or its from_toml for a table or the path of a file."
        raise wrong_type("config", config, wanted, hint)
    return config


def close_unused(tier: Tier | None) -> None:
    """Close a tier whose cache has not started."""
    if callable(close := getattr(tier, "close", None)):
        with suppress(Exception):  # the first failure is the one that counts
            close(0)


def absolute_path(data_dir: str) -> str:
    """The absolute path of a cache directory; raises `StoreError` if it cannot be one."""
    if not data_dir:
        raise StoreError(
            "the path of the cache directory is empty\n"
            "hint: Name a directory that is for the cache alone; `.` is the working directory."
        )
    check_passable("the path of the cache directory", data_dir, StoreError)
    with disk_step("make absolute", data_dir):
        return os.path.abspath(data_dir)
