"""Snapshots on disk: one build, verified reads, limits, and failures that are not kept."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until
from support.restore_helpers import make_tar

from bbcache.errors import ArchiveError, PostgresError
from bbcache.postgres.pgdata.tarball import restore_tarball
from bbcache.postgres.server.guard import Guard
from bbcache.testing.postgres import SnapshotError
from bbcache.testing.postgres.store import SnapshotKey, SnapshotStore, open_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = SnapshotKey("app", "18.6", bytes(range(32)))
OTHER = replace(KEY, digest=bytes(32))
TAR = make_tar()


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    """A guard."""
    guard = Guard()
    yield guard
    guard.close()


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """An empty store."""
    return SnapshotStore(tmp_path / "store", 1 << 20)


def test_what_is_published_is_found_and_restored(
    store: SnapshotStore, guard: Guard, tmp_path: Path
) -> None:
    """One file, private, under the fingerprint; another fingerprint finds nothing."""
    assert store.find(KEY) is None
    assert store.list() == []
    stored = store.publish(KEY, lambda writer: writer.write(TAR), guard)
    found = store.find(KEY)
    assert found is not None
    assert [each.path for each in (found, *store.list())] == [stored.path] * 2
    assert store.find(OTHER) is None
    assert os.listdir(store.directory) == [KEY.file_name]
    assert stored.path.stat().st_mode & 0o777 == 0o600
    file, seal = open_archive(KEY, stored.path)
    with file:
        assert seal.tar_bytes == len(TAR)
        restore_tarball(file, tmp_path / "restored")
    assert (tmp_path / "restored" / "global" / "pg_control").exists()


@pytest.mark.parametrize("offset", [0, 40, -1])
def test_a_damaged_archive_is_refused(store: SnapshotStore, guard: Guard, offset: int) -> None:
    """A changed byte in the header, the body or at the end, a cut, and another's name."""
    path = store.publish(KEY, lambda writer: writer.write(TAR), guard).path
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError):
        open_archive(KEY, path)
    data[offset] ^= 1
    for bad in (data[:-1], data + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(ArchiveError):
            open_archive(KEY, path)
    path.write_bytes(data)
    with pytest.raises(ArchiveError):
        open_archive(OTHER, path)
    open_archive(KEY, path)[0].close()


def test_the_least_recently_used_goes_first(tmp_path: Path, guard: Guard) -> None:
    """Snapshots that were used lately stay, and so does the one that is published now."""
    keys = [replace(KEY, digest=bytes([number]) * 32) for number in range(4)]
    size_bytes = (
        SnapshotStore(tmp_path / "one", 1 << 20)
        .publish(keys[0], lambda writer: writer.write(TAR), guard)
        .size_bytes
    )
    store = SnapshotStore(tmp_path / "store", 3 * size_bytes)
    for number, key in enumerate(keys[:3]):
        stored = store.publish(key, lambda writer: writer.write(TAR), guard)
        os.utime(stored.path, (number, stored.made_at_s))
    found = store.find(keys[0])
    assert found is not None
    store.publish(keys[3], lambda writer: writer.write(TAR), guard)
    assert {each.key for each in store.list()} == {keys[0], keys[2], keys[3]}
    tiny = SnapshotStore(store.directory, 1)
    tiny.publish(keys[1], lambda writer: writer.write(TAR), guard)
    assert [each.key for each in tiny.list()] == [keys[1]]


def test_a_use_does_not_make_a_snapshot_younger(store: SnapshotStore, guard: Guard) -> None:
    """So ``--pg-rebuild`` makes it again, however often it is used."""
    stored = store.publish(KEY, lambda writer: writer.write(TAR), guard)
    os.utime(stored.path, (1000, 1000))
    assert store.find(KEY) is not None
    (found,) = store.list()
    assert found.used_at_s > found.made_at_s == 1000
    assert store.find(KEY, made_after_s=1001) is None


def test_one_builds_and_the_others_wait(store: SnapshotStore) -> None:
    """A waiting thread says whom it waits for, and gets its turn when the build has ended."""
    said: list[str] = []
    turns: list[str] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def build() -> None:
        with store.building(KEY, said.append):
            has_begun.set()
            assert may_end.wait(60)
            turns.append("first")

    def wait() -> None:
        with store.building(KEY, said.append):
            turns.append("second")

    first, second = threading.Thread(target=build), threading.Thread(target=wait)
    first.start()
    assert has_begun.wait(60)
    with store.building(OTHER, said.append):
        pass  # another snapshot is another lock
    second.start()
    wait_until(lambda: said)
    may_end.set()
    first.join()
    second.join()
    assert turns == ["first", "second"]
    assert said == [f"waiting for process {os.getpid()}, which builds snapshot app 00010203"]


def test_a_failure_is_for_those_that_wait(store: SnapshotStore) -> None:
    """They fail with the same cause; a process that comes later builds."""
    has_begun, may_end = threading.Event(), threading.Event()
    errors: list[str] = []
    said: list[str] = []

    def fail() -> None:
        has_begun.set()
        assert may_end.wait(60)
        raise PostgresError("no such table: x")

    def build() -> None:
        with pytest.raises(PostgresError), store.building(KEY, said.append):
            fail()

    def wait() -> None:
        with pytest.raises(SnapshotError) as caught, store.building(KEY, said.append):
            pass
        errors.append(str(caught.value))

    first, second = threading.Thread(target=build), threading.Thread(target=wait)
    first.start()
    assert has_begun.wait(60)
    second.start()
    wait_until(lambda: said)
    may_end.set()
    first.join()
    second.join()
    assert "no such table: x" in errors[0]
    with store.building(KEY, said.append):
        pass


def test_leftovers_of_old_builds_are_removed(store: SnapshotStore, guard: Guard) -> None:
    """Parts and locks that are a day old; snapshots and what is new stay."""
    store.publish(KEY, lambda writer: writer.write(TAR), guard)
    old, new = store.directory / ".a.part", store.directory / ".b.part"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    store.remove_leftovers()
    assert set(os.listdir(store.directory)) == {KEY.file_name, new.name}


def test_a_write_that_fails_leaves_nothing(store: SnapshotStore, guard: Guard) -> None:
    """Neither a snapshot nor a part of one."""

    def write(_: object) -> None:
        raise PostgresError("the tarball cannot be made")

    with pytest.raises(PostgresError, match="cannot be made"):
        store.publish(KEY, write, guard)
    assert os.listdir(store.directory) == []
