"""The servers of one run of pytest, or of one of its workers."""

from __future__ import annotations

import functools
import importlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypedDict

import pytest

from bbcache.errors import BbcacheError, ConfigError
from bbcache.testing.postgres.environment import steering_variables
from bbcache.testing.postgres.errors import SnapshotError
from bbcache.testing.postgres.options import PostgresOptions, parse_size
from bbcache.testing.postgres.runtime import Runtime
from bbcache.testing.postgres.server import Server
from bbcache.testing.postgres.snapshots import EMPTY, Snapshot

_MARKER: Final = "pg_snapshot"
_SETTING: Final = re.compile(r"(?P<name>[a-z_0-9.]+)\s*=\s*(?P<value>.*)")


class Report(TypedDict):
    """What a worker tells the process that reports; plain values, which pytest-xdist takes."""

    built_s: dict[str, float]
    start_s: list[float]
    spare_count: int
    kept: list[str]


class PytestSession:
    """Servers by the options of a pytest run. For one thread.

    Args:
        config: pytest's.
        started_s: when the run began, in seconds since 1970; with ``--pg-rebuild``, snapshots
            that are older are made again.
    """

    def __init__(self, config: pytest.Config, started_s: float) -> None:
        self._config = config
        self._shared: dict[Snapshot, Server] = {}  # inputs stay as they are in a run
        self._failures: dict[Snapshot, str] = {}  # likewise
        self._rebuild_before_s = started_s if config.getoption("--pg-rebuild") else 0.0

    @functools.cached_property
    def _runtime(self) -> Runtime:
        """Of the first use; raises `ConfigError` for an option that is wrong."""
        return Runtime(_options(self._config, self._rebuild_before_s), self._say)

    def shared_server(self, node: pytest.Item | None = None) -> Server:
        """Return the one server for the snapshot of a test; without a test, of the run."""
        snapshot = self._snapshot(node)
        if snapshot in self._shared:
            self._runtime.revive(self._shared[snapshot])
        else:
            self._shared[snapshot] = self._made(self._runtime.shared_server, snapshot)
        return self._shared[snapshot]

    def revive(self) -> None:
        """Start the shared servers again that a test has ended."""
        for server in self._shared.values():
            self._runtime.revive(server)

    @contextmanager
    def fresh_server(self, node: pytest.Item) -> Iterator[Server]:
        """Lend a server of its own to a test."""
        server = self._made(self._runtime.new_server, self._snapshot(node))
        try:
            yield server
        finally:
            self._runtime.end_server(server)

    def header(self) -> str:
        """Return the line at the top of the run; an error fails the tests, not the run."""
        try:
            return f"bbcache: {self._described()}"
        except BbcacheError as error:
            return f"bbcache: {str(error).splitlines()[0]}"

    def close(self) -> Report | None:
        """End all servers, unless they are kept, and return what is to be reported."""
        if "_runtime" not in vars(self):
            return None
        done = self._runtime.statistics
        kept = [server.kept_dsn for server in self._runtime.close()]
        return Report(
            built_s=done.built_s, start_s=done.start_s, spare_count=done.spare_count, kept=kept
        )

    def _described(self) -> str:
        runtime, options = self._runtime, self._runtime.options
        binaries, snapshot = runtime.binaries, self._default_snapshot()
        key = runtime.key_of(snapshot)
        found = runtime.find(key)
        state = f"hit, {found.size_bytes / 1e6:.1f} MB" if found else "to be built"
        place = runtime.place_for(found)
        programs = "wheel" if binaries.is_wheel else str(binaries.bindir)
        parts = [
            f"PostgreSQL {binaries.version} ({programs})",
            f"snapshot {key.name} {key.digest.hex()[:8]}... ({state})",
            f"servers on {place.parent}{'' if place.is_memory else ' (a disk, so slower)'}",
        ]
        if not options.spares or not place.is_memory:
            parts.append("no spares")
        if not options.pool:
            parts.append("no pool of databases")
        if ignored := steering_variables():
            parts.append(f"without {', '.join(ignored)}")
        return ", ".join(parts)

    def _made(self, make: Callable[[Snapshot], Server], snapshot: Snapshot) -> Server:
        """Return a server; a snapshot whose build has failed is not built again for each test."""
        if snapshot in self._failures:
            raise SnapshotError(
                f"{self._failures[snapshot]}\n"
                "hint: The error of the first test that wanted this snapshot has the rest."
            )
        try:
            return make(snapshot)
        except SnapshotError as error:
            self._failures[snapshot] = str(error).partition("\n")[0]
            raise

    def _snapshot(self, node: pytest.Item | None) -> Snapshot:
        marker = None if node is None else node.get_closest_marker(_MARKER)
        if marker is None:
            return self._default_snapshot()
        if len(marker.args) != 1 or not isinstance(marker.args[0], Snapshot):
            raise SnapshotError(
                f"the marker {_MARKER} takes one snapshot\n"
                "hint: Write @pytest.mark.pg_snapshot(app), where app is a function with @snapshot."
            )
        chosen: Snapshot = marker.args[0]
        return chosen

    def _default_snapshot(self) -> Snapshot:
        named = self._config.getini("bbcache_pg_snapshot")
        if named:
            return _imported(named)
        found = {id(each): each for each in self._of_conftests()}
        if len(found) > 1:
            names = ", ".join(sorted(each.name for each in found.values()))
            raise SnapshotError(
                f"the conftest files have {len(found)} snapshots: {names}\n"
                "hint: Choose one as bbcache_pg_snapshot = module:name in the ini file, or mark "
                "tests with @pytest.mark.pg_snapshot(...)."
            )
        return next(iter(found.values()), EMPTY)

    def _of_conftests(self) -> Iterator[Snapshot]:
        for plugin in self._config.pluginmanager.get_plugins():
            if str(getattr(plugin, "__file__", "")).endswith("conftest.py"):
                yield from (each for each in vars(plugin).values() if isinstance(each, Snapshot))

    def _say(self, line: str) -> None:
        """Tell people something now, although pytest captures what tests write."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            print(f"\nbbcache: {line}", file=sys.stderr, flush=True)  # noqa: T201 - for people


def summary(reports: Iterable[Report]) -> Iterator[str]:
    """Yield the lines at the end of a run.

    Args:
        reports: of this process, or of all workers.
    """
    reports = list(reports)
    built_s = {name: took_s for each in reports for name, took_s in each["built_s"].items()}
    start_s = [took_s for each in reports for took_s in each["start_s"]]
    spare_count = sum(each["spare_count"] for each in reports)
    parts = [f"built snapshot {name} in {took_s:.1f} s" for name, took_s in built_s.items()]
    if start_s:
        servers = "1 server" if len(start_s) == 1 else f"{len(start_s)} servers"
        median_ms = 1000 * statistics.median(start_s)
        parts.append(f"started {servers} ({median_ms:.0f} ms each, {spare_count} from spares)")
    if parts:
        yield f"bbcache: {', '.join(parts)}"
    kept = [dsn for each in reports for dsn in each["kept"]]
    for dsn in kept:
        yield f'bbcache: kept: psql "{dsn}"'
    if kept:
        yield "bbcache: `bbcache testing clean` ends what was kept"


def _options(config: pytest.Config, rebuild_before_s: float) -> PostgresOptions:
    settings = {}
    for line in config.getini("bbcache_pg_settings"):
        match = _SETTING.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"bbcache_pg_settings: {line!r} is not name=value")
        settings[match["name"]] = match["value"]
    given: dict[str, Any] = {
        name: config.getini(f"bbcache_pg_{name}") for name in ("bin", "run_dir", "cache_dir")
    }
    for name in ("major", "pool", "spares"):
        text = config.getini(f"bbcache_pg_{name}")
        if text and not text.isdecimal():
            raise ConfigError(f"bbcache_pg_{name}: {text!r} is not a whole number")
        given[name] = int(text) if text else None
    size = config.getini("bbcache_pg_max_size")
    given["max_size_bytes"] = parse_size(size, "bbcache_pg_max_size") if size else None
    return PostgresOptions(
        **{name: value for name, value in given.items() if value not in (None, "")},
        settings=settings,
        lean=bool(config.getini("bbcache_pg_lean")),
        tcp=bool(config.getini("bbcache_pg_tcp")),
        rebuild_before_s=rebuild_before_s,
        keep=config.getoption("--pg-keep"),
    )


def _imported(named: str) -> Snapshot:
    module_name, _, name = named.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SnapshotError(
            f"bbcache_pg_snapshot = {named}: {error}\n"
            "hint: Write module:name, with a module that tests can import."
        ) from error
    if not isinstance(found, Snapshot):
        raise SnapshotError(
            f"bbcache_pg_snapshot = {named}: this is not a snapshot but a {type(found).__name__}\n"
            "hint: Put @snapshot(inputs=[...]) over the function."
        )
    return found
