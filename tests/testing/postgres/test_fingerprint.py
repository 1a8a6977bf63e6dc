"""A snapshot's fingerprint changes with all that the snapshot is made of, and with nothing else."""

from __future__ import annotations

import os
import runpy
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.testing.postgres import Snapshot, SnapshotError, snapshot
from bbcache.testing.postgres.fingerprint import fingerprint, installation_hash

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.testing.postgres import Database

pytestmark = pytest.mark.postgres


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with two migrations."""
    migrations = tmp_path / "project" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "001.sql").write_text("CREATE TABLE a ();")
    (migrations / "002.sql").write_text("CREATE TABLE b ();")
    return tmp_path / "project"


def make(root: Path, **changed: Any) -> Snapshot:
    """A snapshot of the project."""

    @snapshot(**{"inputs": ["migrations/**"], "root": root, **changed})
    def app(db: Database) -> None:
        db.psql("SELECT 1")

    return app


def make_otherwise(root: Path) -> Snapshot:
    """A snapshot of the project by another builder of the same name."""

    @snapshot(inputs=["migrations/**"], root=root)
    def app(db: Database) -> None:
        db.psql("SELECT 2")

    return app


class Hashing:
    """Fingerprints with one PostgreSQL."""

    def __init__(self, binaries: PostgresBinaries, memo_dir: Path) -> None:
        self._binaries = binaries
        self._memo_dir = memo_dir

    def __call__(self, made: Snapshot, **settings: str) -> str:
        """The fingerprint of a snapshot."""
        installation = installation_hash(self._binaries, self._memo_dir)
        return fingerprint(made, installation, settings).hex()


@pytest.fixture
def hashed(newest_pg: PostgresBinaries, snapshots_dir: Path) -> Hashing:
    """Fingerprints of snapshots."""
    return Hashing(newest_pg, snapshots_dir / "installations")


def test_place_and_time_do_not_count(root: Path, hashed: Hashing) -> None:
    """A project that is cloned elsewhere, later, and has been run, has the same fingerprint."""
    before = hashed(make(root))
    clone = root.with_name("clone")
    shutil.copytree(root, clone)
    for path in clone.rglob("*"):
        os.utime(path, (1, 1))
    compiled = clone / "migrations" / "__pycache__"
    compiled.mkdir()
    (compiled / "m.pyc").write_bytes(b"\0")
    (clone / "migrations" / ".swp").touch()
    assert hashed(make(clone)) == before


def test_every_change_counts(root: Path, hashed: Hashing) -> None:
    """Each change of inputs, arguments, settings or source gives a fingerprint of its own."""
    migrations = root / "migrations"
    seen = [hashed(make(root))]

    def changed() -> None:
        seen.append(hashed(make(root)))

    (migrations / "001.sql").write_text("CREATE TABLE c ();")
    changed()
    (migrations / "003.sql").touch()
    changed()
    (migrations / "003.sql").rename(migrations / "004.sql")
    changed()
    (migrations / "deep").mkdir()
    (migrations / "deep" / "005.sql").touch()
    changed()
    (migrations / "002.sql").unlink()
    changed()
    seen.append(hashed(make(root, version="2")))
    seen.append(hashed(make(root, initdb_args=["--locale=C.UTF-8"])))
    seen.append(hashed(make(root), work_mem="8MB"))
    seen.append(hashed(make(root), work_mem="9MB"))
    seen.append(hashed(make_otherwise(root)))
    assert len(set(seen)) == len(seen)


def test_the_file_of_the_builder_counts(root: Path, hashed: Hashing) -> None:
    """A constant or a function beside the builder may be what it fills the database with."""
    text = (
        "from bbcache.testing.postgres import snapshot\nTABLE = 'a'\n"
        "@snapshot(inputs=['migrations/**'])\ndef app(db): db.psql(f'CREATE TABLE {TABLE} ()')\n"
    )
    path = root / "snapshots.py"
    seen = set()
    for changed in (text, text.replace("'a'", "'bb'"), text.replace("'a'", "'ccc'")):
        path.write_text(changed)
        seen.add(hashed(runpy.run_path(str(path))["app"]))
    assert len(seen) == 3


def test_values_from_outside_need_a_version(root: Path, hashed: Hashing) -> None:
    """Two builders of one text may differ in them; values named in the version differ."""

    def of_variable(table: str, version: str = "") -> Snapshot:
        @snapshot(inputs=["migrations/**"], root=root, version=version)
        def app(db: Database) -> None:
            db.psql(f"CREATE TABLE {table} ()")

        return app

    def of_default(table: str, version: str = "") -> Snapshot:
        @snapshot(inputs=["migrations/**"], root=root, version=version)
        def app(db: Database, name: str = table) -> None:
            db.psql(f"CREATE TABLE {name} ()")

        return app

    with pytest.raises(SnapshotError, match=r"app: its builder gets table from.*\nhint: Name"):
        hashed(of_variable("a"))
    with pytest.raises(SnapshotError, match="its builder gets name from outside"):
        hashed(of_default("a"))
    assert hashed(of_variable("a", "a")) != hashed(of_variable("b", "b"))


def test_two_names_cannot_be_told_as_one(root: Path, hashed: Hashing) -> None:
    """A line that moves from the end of one file to the start of the next is a change."""
    first, second = (root / "migrations" / name for name in ("001.sql", "002.sql"))
    first.write_text("a\nb\n")
    second.write_text("c\n")
    before = hashed(make(root))
    first.write_text("a\n")
    second.write_text("b\nc\n")
    assert hashed(make(root)) != before


def test_a_directory_stands_for_all_below(root: Path) -> None:
    """Named with or without ``**``, or by a pattern that matches it."""
    (root / "migrations" / "deep").mkdir()
    (root / "migrations" / "deep" / "003.sql").touch()
    names = {
        tuple(name for name, _ in make(root, inputs=[pattern]).input_files())
        for pattern in ("migrations", "migrations/", "migrations/**", "migr*", "**")
    }
    assert names == {("migrations/001.sql", "migrations/002.sql", "migrations/deep/003.sql")}


def test_the_root_is_relative_to_the_builder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory is; without a root it is the directory of the builder."""
    (root / "tests").mkdir()
    path = root / "tests" / "snapshots.py"
    monkeypatch.chdir(tmp_path)
    for argument, expected in (
        (", root='..'", root),
        ("", path.parent),
        (f", root={str(root)!r}", root),
    ):
        path.write_text(
            "from bbcache.testing.postgres import snapshot\n"
            f"@snapshot(inputs=['migrations/**']{argument})\ndef app(db): pass\n"
        )
        assert runpy.run_path(str(path))["app"].root == expected


def test_another_postgres_counts(root: Path, pg_dir: Path, newest_pg: PostgresBinaries) -> None:
    """A program, a library or an extension that has changed is another PostgreSQL."""
    copy = pg_dir / "installation"
    (copy / "bin").mkdir(parents=True)
    (copy / "lib").mkdir()
    (copy / "share" / "extension").mkdir(parents=True)
    (copy / "bin" / "postgres").write_bytes(b"program")
    (copy / "lib" / "vector.so").write_bytes(b"library")
    (copy / "share" / "extension" / "vector--1.sql").write_bytes(b"extension")
    binaries = type(newest_pg)(copy / "bin", newest_pg.version)
    memo_dir = root / "memo"
    seen = [installation_hash(binaries, memo_dir)]
    for path in (p for p in copy.rglob("*") if p.is_file()):
        path.write_bytes(path.read_bytes() + b"!")
        seen.append(installation_hash(binaries, memo_dir))
    (copy / "share" / "extension" / "postgis--3.sql").touch()
    seen.append(installation_hash(binaries, memo_dir))
    assert len(set(seen)) == len(seen)
    moved = copy.rename(pg_dir / "moved")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    binaries = type(newest_pg)(moved / "bin", newest_pg.version)
    assert installation_hash(binaries, memo_dir) == seen[-1]
    assert installation_hash(type(newest_pg)(moved / "bin", "18.99"), memo_dir) not in seen
    shutil.rmtree(moved)


def test_versions_of_postgres_differ(snapshots_dir: Path, root: Path) -> None:
    """Of all installations on this machine, each has its own fingerprint."""
    found = PostgresBinaries.find_all()
    memo_dir = snapshots_dir / "installations"
    digests = {fingerprint(make(root), installation_hash(each, memo_dir), {}) for each in found}
    assert len(digests) == len(found)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "without inputs would be served after its schema has changed"),
        (["/etc/passwd"], "is an absolute path"),
        (["migrations/**", "seed/*.sql"], "no file matches 'seed/"),
    ],
)
def test_inputs_that_are_refused(root: Path, inputs: list[str], complaint: str) -> None:
    """None, an absolute path, a pattern without a file: each is an error with a hint."""
    with pytest.raises(SnapshotError, match=complaint) as caught:
        make(root, inputs=inputs).input_files()
    assert "\nhint: " in str(caught.value)


def test_a_builder_without_source_is_refused(root: Path) -> None:
    """Code that is in no file cannot be compared with an earlier one."""
    names: dict[str, Any] = {}
    exec("def app(db): pass", names)  # noqa: S102 - how such a function comes to be
    made = snapshot(inputs=["migrations/**"], root=root)(names["app"])
    with pytest.raises(SnapshotError, match="source of its builder cannot be read"):
        made.source()
