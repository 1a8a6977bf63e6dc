"""What the servers of one process share: programs, store, place, guard and spares."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bbcache.archive.format import Seal
from bbcache.errors import ArchiveError, PostgresError
from bbcache.postgres.pgdata.leftovers import remove_tree
from bbcache.postgres.pgdata.tarball import restore_tarball, send_pgdata_tarball
from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.guard import Guard
from bbcache.postgres.server.socket_dir import make_socket_dir
from bbcache.postgres.server.user import ServerUser
from bbcache.testing.postgres.build import build, server_settings
from bbcache.testing.postgres.environment import remove_steering_variables
from bbcache.testing.postgres.errors import NoRoomError
from bbcache.testing.postgres.fingerprint import fingerprint, installation_hash
from bbcache.testing.postgres.options import PostgresOptions
from bbcache.testing.postgres.places import (
    ROOM_HINT,
    Place,
    cache_directory,
    describe_room,
    run_place,
)
from bbcache.testing.postgres.run_directory import RunDirectory, sweep
from bbcache.testing.postgres.server import Server
from bbcache.testing.postgres.snapshots import Snapshot
from bbcache.testing.postgres.spares import Spares, remove_spares
from bbcache.testing.postgres.store import (
    SnapshotKey,
    SnapshotStore,
    StoredSnapshot,
    check_archive,
    open_archive,
    restored_bytes,
    write_archive,
)

_LITTLE_BYTES: Final = 20_000_000  # free where a failure is taken for one of room
_USUAL_BYTES: Final = 50_000_000  # of a restored directory, before there is a snapshot


@dataclass(slots=True)
class Statistics:
    """What a runtime has done.

    Attributes:
        built_s: seconds that each build took, by snapshot.
        start_s: seconds that each server took from nothing to its start.
        spare_count: how many servers began with a spare.
    """

    built_s: dict[str, float]
    start_s: list[float]
    spare_count: int = 0


class Runtime:
    """Makes servers. Thread-safe. Nothing is started or made before it is needed.

    Args:
        options: how.
        say: called with a line for people, such as what a build waits for.

    Attributes:
        options: the same.
        store: the snapshots.
        statistics: the work done so far.
    """

    def __init__(
        self, options: PostgresOptions | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.options = options or PostgresOptions()
        self.store = SnapshotStore(cache_directory(self.options), self.options.max_size_bytes)
        self.statistics = Statistics({}, [])
        self._say = say or _say_on_stderr
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        """Begin with nothing; in a forked child all there is belongs to the parent."""
        self._lock = threading.RLock()  # guards all that follows; held while things are made
        self._guard: Guard | None = None
        self._place: Place | None = None
        self._run_directory: RunDirectory | None = None
        self._spares: Spares | None = None
        self._stored: dict[SnapshotKey, StoredSnapshot] = {}
        self._shared: dict[SnapshotKey, Server] = {}
        self._servers: list[Server] = []

    def _reset_in_child(self) -> None:
        for server in self._servers:
            server.cluster.detach()
        self._reset()

    @functools.cached_property
    def binaries(self) -> PostgresBinaries:
        """The PostgreSQL that is used; raises `PostgresError` if there is none."""
        return PostgresBinaries.find(
            self.options.bin, major=self.options.major, make_copy_root=_make_copy_root
        )

    @functools.cached_property
    def _installation(self) -> bytes:
        """The hash of the PostgreSQL, which stays the same while a process uses it."""
        return installation_hash(self.binaries, self.store.directory / "installations")

    def settings_of(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the settings of the servers of a snapshot."""
        return server_settings(self.binaries, snapshot, self.options.settings)

    def key_of(self, snapshot: Snapshot) -> SnapshotKey:
        """Return what a snapshot is found by; raises `SnapshotError` for one without inputs."""
        settings = {**self.settings_of(snapshot), "lean": str(self.options.lean)}
        digest = fingerprint(snapshot, self._installation, settings)
        return SnapshotKey(snapshot.name, self.binaries.version, digest)

    def find(self, key: SnapshotKey) -> StoredSnapshot | None:
        """Return the stored snapshot, unless it is to be made again."""
        return self.store.find(key, self.options.rebuild_before_s)

    def shared_server(self, snapshot: Snapshot) -> Server:
        """Return the one server of a snapshot in this process, started."""
        with self._lock:
            key = self.key_of(snapshot)
            if key in self._shared:
                self.revive(self._shared[key])
            else:
                self._shared[key] = self._new_server(snapshot, key)
            return self._shared[key]

    def revive(self, server: Server) -> None:
        """Start a shared server again where a test has ended it, or told it to end."""
        with self._lock:
            if not server.takes_connections():
                self._say("a test has ended the server that tests share; it is started again")
                server.restart("immediate")

    def new_server(self, snapshot: Snapshot) -> Server:
        """Return a server of its own, started; end it with `Server.stop` or `end_server`."""
        with self._lock:
            return self._new_server(snapshot, self.key_of(snapshot))

    def end_server(self, server: Server) -> None:
        """Stop a server and remove its data, unless servers are kept."""
        if self.options.keep:
            return
        server.stop()
        with self._lock, contextlib.suppress(ValueError):
            self._servers.remove(server)
        if self._guard is not None:
            self._guard.remove(server.data_dir)

    def wait_for_spares(self) -> None:
        """Wait until the spares that were begun are there."""
        with self._lock:
            spares = self._spares
        if spares is not None:
            spares.wait()

    def close(self) -> list[Server]:
        """End all servers and remove all that is not kept across runs.

        Returns:
            The servers that were kept.
        """
        with self._lock:
            servers, self._servers = self._servers, []
            self._shared.clear()
            spares, self._spares = self._spares, None
            directory, self._run_directory = self._run_directory, None
            guard, self._guard = self._guard, None
        if spares is not None:
            spares.close()
        for server in servers:
            server.detach() if self.options.keep else server.stop()
        if directory is not None and guard is not None:
            self._end(directory, guard, is_kept=self.options.keep and bool(servers))
        return servers if self.options.keep else []

    def _end(self, directory: RunDirectory, guard: Guard, *, is_kept: bool) -> None:
        """Have the directory removed, which takes the guard a moment longer than this process."""
        if is_kept:
            directory.keep(self.binaries.keep_copy())
            guard.close()
        else:
            directory.close()
            guard.clean_up()

    def place_for(self, stored: StoredSnapshot | None = None) -> Place:
        """Return where servers run; raises `NoRoomError` if they cannot.

        The first call decides, by the size of its snapshot; None is one that is not built yet.
        """
        with self._lock:
            if self._place is None:
                size_bytes = 0 if stored is None else restored_bytes(stored)
                self._place = run_place(self.options, max(size_bytes, _USUAL_BYTES))
            return self._place

    def _new_server(self, snapshot: Snapshot, key: SnapshotKey) -> Server:
        try:
            try:
                return self._start_server(snapshot, key, self._snapshot(snapshot, key))
            except FileNotFoundError:  # another process has removed the archive
                del self._stored[key]
                return self._start_server(snapshot, key, self._snapshot(snapshot, key))
        except OSError as error:
            what = error.filename or self.store.directory
            raise PostgresError(f"cannot use {what}: {error.strerror}") from error
        except PostgresError as error:
            if self._place is None or self._place.free_bytes > _LITTLE_BYTES:
                raise
            raise NoRoomError(
                f"{error}\nfree space: {describe_room(self.options)}\nhint: {ROOM_HINT}"
            ) from error

    def _start_server(self, snapshot: Snapshot, key: SnapshotKey, stored: StoredSnapshot) -> Server:
        started_s = time.monotonic()
        self.place_for(stored)
        pgdata_dir = self._directory().new_path("server-")
        guard, spares = self._guard, self._spares
        assert guard is not None
        assert spares is not None
        seal = self._unpack(key, stored.path, pgdata_dir, spares)
        cluster = Cluster(
            self.binaries, pgdata_dir, settings=self.settings_of(snapshot), guard=guard
        )
        server = Server(
            cluster,
            make_socket_dir(ServerUser.current(), guard),
            snapshot.root,
            pool=self.options.pool,
            tcp=self.options.tcp,
            keep=self.options.keep,
        )
        try:
            server.start()
        except BaseException:
            server.stop()
            _remove_directory(pgdata_dir)
            raise
        self._servers.append(server)
        self.statistics.start_s.append(time.monotonic() - started_s)
        spares.refill(
            seal.digest.hex(),
            seal.tar_bytes,
            lambda dest: restore_tarball(stored.path, dest, owner=_owner()),
        )
        return server

    def _unpack(self, key: SnapshotKey, path: Path, pgdata_dir: Path, spares: Spares) -> Seal:
        """Make a data directory of a spare, or else by a restore."""
        file, seal = open_archive(key, path, with_digest=False)
        with file:
            # A spare was restored from an archive with this digest, which was checked then.
            if spares.claim(seal.digest.hex(), pgdata_dir):
                self.statistics.spare_count += 1
            else:
                check_archive(file, seal)
                restore_tarball(file, pgdata_dir, owner=_owner())
        return seal

    def _snapshot(self, snapshot: Snapshot, key: SnapshotKey) -> StoredSnapshot:
        """Return the archive of a snapshot, built now if need be, and checked."""
        known = self._stored.get(key) or self._checked(key)
        if known is None:
            try:
                with self.store.building(key, self._say):
                    known = self._checked(key) or self._build(snapshot, key)
            except OSError as error:
                self._say(f"snapshot {key} cannot be kept in {self.store.directory}: {error}")
                known = self._build(snapshot, key)
        self._stored[key] = known
        return known

    def _checked(self, key: SnapshotKey) -> StoredSnapshot | None:
        found = self.find(key)
        if found is not None:
            try:
                open_archive(key, found.path)[0].close()
            except ArchiveError as error:
                self._say(f"snapshot {key} is made again: {error}")
                with contextlib.suppress(OSError):
                    found.path.unlink()
                return None
            except FileNotFoundError:  # another process has removed it
                return None
        return found

    def _build(self, snapshot: Snapshot, key: SnapshotKey) -> StoredSnapshot:
        started_s = time.monotonic()
        directory = self._directory()
        guard = self._guard
        assert guard is not None
        pgdata_dir = directory.new_path("build-")
        settings = self.settings_of(snapshot)
        try:
            build(snapshot, self.binaries, settings, pgdata_dir, guard, is_lean=self.options.lean)
            try:
                stored = self.store.publish(
                    key, lambda writer: send_pgdata_tarball(pgdata_dir, writer), guard
                )
            except OSError as error:
                self._say(f"snapshot {key} cannot be kept in {self.store.directory}: {error}")
                path = directory.path / key.file_name
                write_archive(key, path, lambda w: send_pgdata_tarball(pgdata_dir, w), guard)
                stored = StoredSnapshot(key, path, path.stat().st_size, time.time(), time.time())
        finally:
            _remove_directory(pgdata_dir)
        self.statistics.built_s[str(key)] = time.monotonic() - started_s
        return stored

    def _directory(self) -> RunDirectory:
        """Return the run directory, made with all that belongs to it at the first call."""
        if self._run_directory is None:
            if not sys.platform.startswith("linux"):
                raise PostgresError(
                    f"servers for tests need Linux, not {sys.platform}: a killed run is cleaned up "
                    "with the help of /proc\nhint: Use a container."
                )
            place = self.place_for()
            sweep(place)
            remove_spares(place)
            remove_steering_variables()
            self._guard = Guard()
            self._run_directory = RunDirectory(place, self._guard)
            directory = self._run_directory
            self._spares = Spares(place, self.options.spares, lambda: directory.new_path("spare-"))
        return self._run_directory


def _make_copy_root() -> Path:
    """Make a directory for the copy of the wheel, removed if this process is killed."""
    guard = Guard()
    atexit.register(guard.close)
    return guard.make_directory(tempfile.gettempdir(), "bbcache-pg-")


def _owner() -> tuple[int, int] | None:
    user = ServerUser.current()
    return (user.uid, user.gid) if user.is_dropped else None


def _remove_directory(pgdata_dir: Path) -> None:
    with contextlib.suppress(OSError):
        remove_tree(pgdata_dir)
    with contextlib.suppress(OSError):
        pgdata_dir.with_name(f"{pgdata_dir.name}.log").unlink(missing_ok=True)


def _say_on_stderr(line: str) -> None:
    print(f"bbcache: {line}", file=sys.stderr, flush=True)  # noqa: T201 - for people who wait


_all: weakref.WeakSet[Runtime] = weakref.WeakSet()
_runtimes: dict[PostgresOptions | None, Runtime] = {}  # of this process
_runtimes_lock = threading.Lock()  # guards it


def runtime_of(options: PostgresOptions | None = None) -> Runtime:
    """Return the runtime of this process for some options; it is closed at the exit."""
    with _runtimes_lock:
        if options not in _runtimes:
            _runtimes[options] = Runtime(options)
        return _runtimes[options]


@atexit.register
def _close_at_exit() -> None:
    for runtime in _runtimes.values():
        runtime.close()


def _in_forked_child() -> None:
    global _runtimes_lock  # noqa: PLW0603 - it may be held by a thread that is not here
    _runtimes_lock = threading.Lock()
    for runtime in list(_all):
        runtime._reset_in_child()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_in_forked_child)
