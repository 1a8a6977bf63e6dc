"""PostgreSQL's programs run as a plain user, and nothing else changes hands."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.server import user as server_user
from bbcache.postgres.server.user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privileges are dropped by root only")


def dropped(uid: int = 65534, gid: int = 65534) -> ServerUser:
    """A user that root drops its privileges to."""
    return ServerUser("nobody", uid, gid, "/nonexistent", is_dropped=True)


@needs_root
def test_root_becomes_a_known_user() -> None:
    """As root, programs run as postgres, or as nobody where there is no postgres."""
    user = ServerUser.current()
    assert user.is_dropped
    assert user.name in ("postgres", "nobody")
    assert user.uid != 0


@needs_root
def test_nobody_without_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no user postgres it is nobody; where there is neither, an error."""
    known, getpwnam = {"nobody"}, pwd.getpwnam

    def lookup(name: str) -> pwd.struct_passwd:
        return getpwnam(name if name in known else "no such user")

    monkeypatch.setattr(pwd, "getpwnam", lookup)
    assert ServerUser.current().name == "nobody"
    known.clear()
    with pytest.raises(PostgresError, match="no user postgres or user nobody in the user database"):
        ServerUser.current()


def test_plain_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain user's programs run as that user, who is kept from nothing."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    user = ServerUser.current()
    assert (user.uid, user.is_dropped) == (65534, False)
    assert user.subprocess_kwargs(["/bin/true"])["args"] == ["/bin/true"]


def test_uid_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid that has no name is an error: the server would not run under it."""
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)
    with pytest.raises(PostgresError, match="no user 3999999999 in the user database"):
        ServerUser.current()


@pytest.fixture(params=["util-linux", "BusyBox", "none"])
def setpriv(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """The program that drops privileges: the good one, one with other options, or none."""
    if request.param == "BusyBox":
        (tmp_path / "busybox").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "busybox").chmod(0o755)
        (tmp_path / "setpriv").symlink_to("busybox")
    if request.param != "util-linux":
        monkeypatch.setattr(os, "defpath", str(tmp_path))
    server_user._find_setpriv.cache_clear()
    yield request.param
    server_user._find_setpriv.cache_clear()


@needs_root
def test_programs_run_as_the_user(setpriv: str) -> None:
    """A program has the user's ids, no other groups and its home; this process is not copied."""
    script = "id -u; id -g; id -G; echo $HOME; echo $USER; pwd"
    kwargs = dropped().subprocess_kwargs(["/bin/sh", "-c", script])
    assert "user" not in kwargs
    assert kwargs["args"][0].endswith("/setpriv") is (setpriv == "util-linux")
    done = subprocess.run(**kwargs, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["65534", "65534", "65534", "/nonexistent", "nobody", "/"]


_SHOW_GROUPS = """
import subprocess
from bbcache.postgres.server.user import ServerUser
subprocess.run(**ServerUser.current().subprocess_kwargs(["/bin/sh", "-c", "id -G"]), check=True)
"""


@needs_root
def test_no_other_groups() -> None:
    """The groups of a root that has many are not passed on."""
    done = subprocess.run(
        [sys.executable, "-c", _SHOW_GROUPS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        extra_groups=[0, 4, 5],
        cwd=Path(server_user.__file__).parents[3],
    )
    assert done.stdout.split() == [str(ServerUser.current().gid)]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PG* variables are not passed on; others are."""
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("TZ", "Europe/Vienna")
    env = ServerUser.current().subprocess_kwargs(["/bin/true"])["env"]
    assert "PGHOST" not in env
    assert (env["TZ"], env["LC_ALL"]) == ("Europe/Vienna", "C")


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "is_open"),
    [
        (0o711, 1, 1, True),
        (0o710, 1, 1, False),
        (0o750, 1, 65534, True),
        (0o740, 1, 65534, False),
        (0o700, 65534, 1, True),
        (0o077, 65534, 65534, False),
        (0o707, 1, 65534, False),
    ],
)
@needs_root
def test_blocking_directory(
    make_cluster: ClusterFactory, mode: int, uid: int, gid: int, *, is_open: bool
) -> None:
    """The right class of mode bits decides whether a directory is closed to the user."""
    middle = make_cluster.new_dir()
    (middle / "inner").mkdir(parents=True)
    os.chown(middle, uid, gid)
    middle.chmod(mode)
    assert dropped().blocking_dir(middle / "inner" / "leaf") == (None if is_open else middle)
    check = subprocess.run(
        **dropped().subprocess_kwargs(["/usr/bin/test", "-d", middle / "inner"]), check=False
    )
    assert (check.returncode == 0) is is_open


@needs_root
def test_topmost_blocking_directory_behind_a_link(make_cluster: ClusterFactory) -> None:
    """What a link leads through counts; of several closed directories the topmost is named."""
    closed = make_cluster.new_dir()
    (closed / "deep").mkdir(parents=True, mode=0o700)
    closed.chmod(0o700)
    link = make_cluster.new_dir()
    link.symlink_to(closed / "deep")
    assert dropped().blocking_dir(link / "leaf") == closed
    with pytest.raises(PostgresError) as caught:
        dropped().require_reachable(link / "leaf", "thing")
    assert f"thing {link}/leaf cannot be reached by user nobody" in str(caught.value)
    assert f"`chmod o+x {closed}`" in str(caught.value)


@needs_root
def test_tree_changes_hands(tmp_path: Path) -> None:
    """Directories, files and links get the new owner; what a link leads to does not."""
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").touch()
    outside.mkdir()
    (outside / "file").touch()
    (tree / "dir_link").symlink_to(outside)
    (tree / "file_link").symlink_to(outside / "file")
    (tree / "dangling_link").symlink_to(outside / "nothing")
    dropped().own_tree(tree)
    for path in (tree, *tree.rglob("*")):
        assert path.lstat().st_uid == path.lstat().st_gid == 65534
    assert outside.stat().st_uid == (outside / "file").stat().st_uid == 0


@needs_root
def test_hard_links_are_not_given_away(tmp_path: Path) -> None:
    """A file with a second name elsewhere is refused; the user's own are let be."""
    (tmp_path / "tree").mkdir()
    outside = tmp_path / "outside"
    outside.touch()
    (tmp_path / "tree" / "link").hardlink_to(outside)
    with pytest.raises(PostgresError, match="link has 2 hard links"):
        dropped().own_tree(tmp_path / "tree")
    assert outside.stat().st_uid == 0
    os.chown(outside, 65534, 65534)
    dropped().own_tree(tmp_path / "tree")


@needs_root
def test_a_tree_that_has_changed_hands_is_not_walked(tmp_path: Path) -> None:
    """Files deep below directories of the user are not looked at; all else is."""
    tree = tmp_path / "tree"
    (tree / "base" / "5").mkdir(parents=True)
    (tree / "global").mkdir()
    names = ("postgresql.conf", "global/pg_control", "base/5/1259")
    for name in names:
        (tree / name).touch()
    dropped().own_tree(tree)
    assert {(tree / name).stat().st_uid for name in names} == {65534}
    for name in (*names, "base"):
        os.chown(tree / name, 0, 0)
    dropped().own_tree(tree)
    assert [(tree / name).stat().st_uid for name in names] == [65534, 65534, 0]
    for name in ("base/5", names[2]):
        os.chown(tree / name, 0, 0)
    dropped().own_tree(tree)
    assert {path.stat().st_uid for path in tree.rglob("*")} == {65534}


@needs_root
def test_a_walk_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """A directory changes hands after its files, so that a failure within is not the last word."""
    tree = tmp_path / "tree"
    (tree / "base" / "5").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.touch()
    (tree / "base" / "5" / "link").hardlink_to(outside)
    (tree / "base" / "5" / "file").touch()
    for _ in range(2):
        with pytest.raises(PostgresError, match="link has 2 hard links"):
            dropped().own_tree(tree)
        assert {tree.stat().st_uid, (tree / "base/5").stat().st_uid} == {0}
    outside.unlink()
    dropped().own_tree(tree)
    assert {path.stat().st_uid for path in (tree, *tree.rglob("*"))} == {65534}


@needs_root
def test_a_tree_behind_a_link(tmp_path: Path) -> None:
    """A data directory may be a link; what it leads to changes hands."""
    (tmp_path / "tree" / "base").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    dropped().own_tree(tmp_path / "link")
    assert (tmp_path / "tree").stat().st_uid == (tmp_path / "tree" / "base").stat().st_uid == 65534
    assert (tmp_path / "link").lstat().st_uid == 0


def test_what_is_closed_to_the_user_is_found(tmp_path: Path) -> None:
    """Unreadable files come first, then those that cannot be written; links are not followed."""
    user = ServerUser.current()
    data_dir, other = tmp_path / "data", tmp_path / "other"
    for directory in (data_dir, data_dir / "base", data_dir / "pg_tblspc", other):
        directory.mkdir(0o700)
    for path in (data_dir / "base/1", other / "2"):
        path.touch(0o600)
    for path in (*tmp_path.rglob("*"), data_dir):
        os.chown(path, user.uid, user.gid)
    (data_dir / "foreign file").symlink_to(other)
    (other / "2").chmod(0)
    assert user.find_closed(data_dir) is None
    (data_dir / "base/1").chmod(0o400)
    assert user.find_closed(data_dir) == f"{data_dir}/base/1 (mode 0400, owner {user.name})"
    (data_dir / "pg_tblspc/1").symlink_to(other)
    assert user.find_closed(data_dir) == f"{data_dir}/pg_tblspc/1/2 (mode 0000, owner {user.name})"


@needs_root
def test_a_file_that_root_puts_deep_is_named(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A start does not look for it; where the server fails at it, the error has its path."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    cluster.psql("SELECT pg_create_physical_replication_slot('slot', true)")
    cluster.stop()
    path = cluster.pgdata_dir / "pg_replslot/slot/state"
    os.chown(path, 0, 0)
    with pytest.raises(PostgresError, match=rf"\nhint: .* {path} \(mode 0600, owner root\)"):
        cluster.start()
