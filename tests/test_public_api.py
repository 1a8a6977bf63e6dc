"""The public API: names, signatures, types, and what importing it costs."""

from __future__ import annotations

import enum
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import TESTS_DIR

import bbcache
import bbcache.testing
from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    BasebackupFile,
    BbcacheError,
    ConfigError,
    DirectoryLockedError,
    EntryInfo,
    Explanation,
    Lsn,
    NotReadyError,
    StoreError,
    Tenant,
    TenantId,
    TenantManager,
    TenantShardId,
    TenantState,
    TenantTimelineId,
    Timeline,
    TimelineId,
    fetch,
    http_service,
    page_service,
    pageserver,
    postgres,
)
from bbcache.errors import ParseError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = {
    *("BasebackupCache", "BasebackupCacheConfig", "BasebackupFile", "EntryInfo", "Explanation"),
    *("TenantId", "TimelineId", "TenantShardId", "TenantTimelineId", "Lsn"),
    *("TenantManager", "Tenant", "Timeline", "TenantState", "TarballWriter"),
    *("SimpleTenant", "SimpleTenantManager", "Tier", "TierConfig"),
    *("BbcacheError", "ConfigError", "StoreError", "DirectoryLockedError", "NotReadyError"),
    "PinningTenant",
    *("FillError", "FillTimeoutError", "BackingOffError", "ClosingError"),
}
_REQUIRED = inspect.Parameter.empty
SIGNATURES: list[tuple[Any, dict[str, Any]]] = [
    (
        BasebackupCache.spawn,
        {
            "data_dir": _REQUIRED,
            "config": _REQUIRED,
            "tenant_manager": _REQUIRED,
            "registry": None,
            "clock": time.monotonic,
            "tier": None,
        },
    ),
    (
        BasebackupCache.get,
        {"self": _REQUIRED, "tenant_id": _REQUIRED, "timeline_id": _REQUIRED, "lsn": _REQUIRED},
    ),
    (
        BasebackupCache.get_or_prepare,
        {
            "self": _REQUIRED,
            "tenant_shard_id": _REQUIRED,
            "timeline_id": _REQUIRED,
            "lsn": _REQUIRED,
            "timeout_s": None,
            "check_cancelled": None,
        },
    ),
    (
        BasebackupCache.get_held,
        {"self": _REQUIRED, "tenant_id": _REQUIRED, "timeline_id": _REQUIRED, "lsn": _REQUIRED},
    ),
    (
        BasebackupCache.send_prepare,
        {
            "self": _REQUIRED,
            "tenant_shard_id": _REQUIRED,
            "timeline_id": _REQUIRED,
            "lsn": _REQUIRED,
        },
    ),
    (
        BasebackupCache.send_warm,
        {
            "self": _REQUIRED,
            "tenant_shard_id": _REQUIRED,
            "timeline_id": _REQUIRED,
            "lsn": _REQUIRED,
            "build": False,
        },
    ),
    (BasebackupCache.wait_initialized, {"self": _REQUIRED, "timeout": None}),
    (BasebackupCache.wait_idle, {"self": _REQUIRED, "timeout": None}),
    (BasebackupCache.run_cleanup, {"self": _REQUIRED}),
    (
        BasebackupCache.explain,
        {"self": _REQUIRED, "tenant_id": _REQUIRED, "timeline_id": _REQUIRED, "memory_only": False},
    ),
    (Explanation.as_dict, {"self": _REQUIRED}),
    (BasebackupCache.entries, {"self": _REQUIRED}),
    (BasebackupCache.close, {"self": _REQUIRED, "timeout": None}),
    (TenantShardId, {"tenant_id": _REQUIRED, "shard_number": 0, "shard_count": 0}),
    (TenantTimelineId, {"tenant_id": _REQUIRED, "timeline_id": _REQUIRED}),
    (Timeline.get_last_record_lsn, {"self": _REQUIRED}),
    (Timeline.wait_lsn, {"self": _REQUIRED, "lsn": _REQUIRED, "timeout": _REQUIRED}),
    (
        Timeline.send_basebackup_tarball,
        {"self": _REQUIRED, "writer": _REQUIRED, "lsn": _REQUIRED},
    ),
    (Tenant.current_state, {"self": _REQUIRED}),
    (Tenant.basebackup_cache_enabled, {"self": _REQUIRED}),
    (Tenant.get_timeline, {"self": _REQUIRED, "timeline_id": _REQUIRED}),
    (Tenant.list_timelines, {"self": _REQUIRED}),
    (TenantManager.list, {"self": _REQUIRED}),
    (
        TenantManager.get_attached_tenant_shard,
        {"self": _REQUIRED, "tenant_shard_id": _REQUIRED},
    ),
]


def test_the_public_names() -> None:
    """The package exports what is documented, the version, and nothing else."""
    assert set(bbcache.__all__) == NAMES | {"__version__"}
    assert bbcache.__all__ == sorted(bbcache.__all__)
    for name in bbcache.__all__:
        assert getattr(bbcache, name) is not None


@pytest.mark.parametrize(("function", "expected"), SIGNATURES)
def test_the_signatures(function: Any, expected: dict[str, Any]) -> None:
    """Names, order and defaults of all parameters are as documented."""
    parameters = inspect.signature(function).parameters
    if "self" not in parameters:  # a class or a bound class method
        expected = {name: default for name, default in expected.items() if name != "self"}
    found = {name: parameter.default for name, parameter in parameters.items()}
    assert list(found.items()) == list(expected.items())
    kinds = {parameter.kind for parameter in parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_what_is_public_of_the_cache() -> None:
    """Its methods and properties are the documented ones; the others are private."""
    public = {name for name in vars(BasebackupCache) if not name.startswith("_")}
    assert public == {
        *("spawn", "is_enabled", "get", "send_prepare", "wait_initialized", "wait_idle"),
        *("get_held", "get_or_prepare", "run_cleanup", "entries", "close", "degraded_reason"),
        *("set_limits", "explain", "send_warm"),
    }


def test_every_public_name_is_documented() -> None:
    """Each class and method of the public API has a docstring that says what it does."""
    for name in NAMES:
        thing = getattr(bbcache, name)
        assert inspect.getdoc(thing), name
        for member, function in inspect.getmembers(thing, inspect.isfunction):
            if not member.startswith("_") and function.__module__.startswith("bbcache"):
                assert inspect.getdoc(function), f"{name}.{member}"


def test_the_errors_are_one_family() -> None:
    """All are BbcacheErrors; StoreErrors are OSErrors, what cannot be parsed a ValueError."""
    for error in (ConfigError, StoreError, DirectoryLockedError, NotReadyError, ParseError):
        assert issubclass(error, BbcacheError)
    assert issubclass(StoreError, OSError)
    assert issubclass(DirectoryLockedError, StoreError)
    assert issubclass(ConfigError, ValueError)
    for parse in (TenantId.from_str, TimelineId.from_str, TenantShardId.from_str, Lsn.from_str):
        with pytest.raises(ValueError, match="takes") as caught:
            parse("nonsense")
        assert isinstance(caught.value, BbcacheError)


def test_the_states_of_a_tenant() -> None:
    """In the order of a tenant's life."""
    assert issubclass(TenantState, enum.Enum)
    assert [state.name for state in TenantState] == [
        *("ATTACHING", "ACTIVATING", "ACTIVE", "STOPPING", "BROKEN"),
    ]


def test_the_types() -> None:
    """A basebackup is a raw file, an LSN an int, an entry a tuple of four."""
    assert issubclass(BasebackupFile, io.FileIO)
    assert issubclass(Lsn, int)
    assert EntryInfo._fields == ("tenant_id", "timeline_id", "lsn", "size_bytes")
    config = BasebackupCacheConfig()
    assert (config.cleanup_period, config.max_total_size_bytes) == (60.0, 1 << 30)
    assert (config.max_size_entries, config.prepare_channel_size) == (10_000, 100)


def _public_things() -> Iterator[tuple[str, Any]]:
    """Every class and function that a user imports, with the methods, by name."""
    modules = [bbcache, bbcache.errors, bbcache.host]
    for package in (fetch, http_service, page_service, pageserver, postgres, bbcache.testing):
        prefix = package.__name__ + "."
        names = [each.name for each in pkgutil.walk_packages(package.__path__, prefix)]
        modules += [package, *map(importlib.import_module, names)]
    for module in modules:
        for name, thing in vars(module).items():
            home = getattr(thing, "__module__", None)
            is_public = not name.startswith("_") and (module is bbcache or home == module.__name__)
            if is_public and (inspect.isclass(thing) or inspect.isfunction(thing)):
                yield f"{module.__name__}.{name}", thing


def _functions_of(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if base.__module__.startswith("bbcache"):
            for name, member in vars(base).items():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if inspect.isfunction(function) and function.__module__.startswith("bbcache"):
                    yield name, function


def test_the_hints_of_every_public_name_can_be_had() -> None:
    """`typing.get_type_hints` finds every type, in signatures and in attributes."""
    found = dict(_public_things())
    assert {"bbcache.BasebackupCache", "bbcache.host.TarballWriter"} <= set(found)
    assert len(found) > 150
    for name, thing in found.items():
        if inspect.isfunction(thing):
            assert typing.get_type_hints(thing) is not None, name
        elif inspect.isclass(thing):
            typing.get_type_hints(thing)
            for member, function in _functions_of(thing):
                try:
                    typing.get_type_hints(function)
                except (NameError, TypeError) as error:
                    pytest.fail(f"{name}.{member}: {error}")
    assert typing.get_type_hints(BasebackupCache.get)["lsn"] is Lsn
    assert typing.get_type_hints(BasebackupCache.entries)["return"] == list[EntryInfo]


_LIST_MODULES = """
import json, sys
before = set(sys.modules)
exec(sys.argv[1])
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(tops - set(sys.stdlib_module_names))))
print(json.dumps(sorted(name for name in sys.modules if name.startswith("bbcache"))))
"""


def _modules_after(statement: str) -> tuple[set[str], set[str]]:
    command = [sys.executable, "-c", _LIST_MODULES, statement]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return set(json.loads(lines[0])), set(json.loads(lines[1]))


def test_the_core_imports_its_four_dependencies_alone() -> None:
    """In a fresh interpreter nothing else comes with it: no test tool, no driver."""
    foreign, own = _modules_after("from bbcache import *")
    assert foreign == {"bbcache", "isal", "xxhash", "filelock", "prometheus_client"}
    kept_out = ("bbcache.postgres", "bbcache.pageserver", "bbcache.testing", "bbcache.cli")
    assert not {name for name in own if name.startswith(kept_out)}


def test_the_package_alone_imports_nothing_else() -> None:
    """What works with `bbcache.postgres` alone does not wait for Prometheus' client."""
    foreign, own = _modules_after("import bbcache")
    assert foreign == {"bbcache"}
    assert "bbcache.cache" not in own


def test_a_name_is_imported_when_it_is_used() -> None:
    """Each public name is there, listed, and the same as in its module; others are not."""
    assert set(bbcache.__all__) <= set(dir(bbcache))
    assert bbcache.BasebackupCache is BasebackupCache
    with pytest.raises(AttributeError, match="module 'bbcache' has no attribute 'Basebackup'"):
        _ = bbcache.Basebackup  # type: ignore[attr-defined]


def test_the_package_is_typed() -> None:
    """It ships the marker by which type checkers take its types."""
    assert bbcache.__file__ is not None
    assert (Path(bbcache.__file__).parent / "py.typed").exists()


def test_the_api_as_a_user_types_it(tmp_path: Path) -> None:
    """`mypy --strict` agrees with typing/api.py, which has every way to use the API."""
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--warn-unreachable"),
        *("--config-file", str(TESTS_DIR.parent / "setup.cfg"), "--follow-imports=silent"),
        *("--cache-dir", str(tmp_path), str(TESTS_DIR / "typing" / "api.py")),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=TESTS_DIR.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
