"""The files: names, temporary files, opening, scanning, quarantine."""

from __future__ import annotations

import errno
import io
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cache_helpers import fail_with
from support.helpers import KEY, LSN, TENANT, TIMELINE, file_names, make_keys, open_below

from bbcache.errors import ArchiveError
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.storage.files import BasebackupFile, Store, TempFile, try_unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = f"basebackup_{TENANT}_{TIMELINE}_00000000016B5A50.tar.gz"
OWN_NAMES = {"tmp", "quarantine"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store whose directories are made."""
    made = Store(str(tmp_path))
    made.make_directories()
    return made


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """An entry's file of ten bytes."""
    path = tmp_path / NAME
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process has this umask during the test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: str | Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def make_socket(path: Path) -> None:
    """A Unix socket's file."""
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # the address has a length limit
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    """A character device; skips where that is not allowed."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device files are not allowed here")


def make_link_to_file(path: Path) -> None:
    """A symbolic link to a regular file of ten bytes."""
    target = path.parent / "target"
    target.write_bytes(b"0123456789")
    path.symlink_to(target)


ODD_FILES: dict[str, Callable[[Path], None]] = {
    "directory": Path.mkdir,
    "link": make_link_to_file,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "socket": make_socket,
    "device": make_device,
}
odd_files = pytest.mark.parametrize("kind", ODD_FILES)


# --- Names ------------------------------------------------------------------------------


def test_the_name_is_exactly_neons(store: Store, tmp_path: Path) -> None:
    """Ids in lower case, the LSN in sixteen upper-case digits."""
    assert store.path_of(KEY, LSN) == str(tmp_path / NAME)
    assert store.path_of(KEY, 2**64 - 1).endswith("_FFFFFFFFFFFFFFFF.tar.gz")
    assert store.path_of(KEY, 0).endswith("_0000000000000000.tar.gz")


@given(
    key=st.binary(min_size=32, max_size=32),
    lsn=st.integers(0, 2**64 - 1),
    size_bytes=st.integers(0, 99),
)
@settings(max_examples=50)
def test_every_name_is_found_again(key: bytes, lsn: int, size_bytes: int) -> None:
    """A scan reads key, LSN and size from what a publication wrote."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        Path(store.path_of(key, lsn)).write_bytes(bytes(size_bytes))
        (entry,) = store.scan().entries
        assert (entry.key, entry.lsn, entry.size_bytes) == (key, lsn, size_bytes)
        assert type(entry.lsn) is Lsn


def is_canonical(name: str) -> bool:
    """Whether a name is in canonical form."""
    try:
        ids = TenantId.from_str(name[11:43]), TimelineId.from_str(name[44:76])
        lsn = Lsn(int(name[77:93], 16))
    except ValueError:
        return False
    return name == f"basebackup_{ids[0]}_{ids[1]}_{lsn:016X}.tar.gz"


@st.composite
def near_names(draw: st.DrawFn) -> str:
    """An entry's name with a few small changes."""
    name = NAME
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(name)))
        text = draw(st.sampled_from([*"0aAfFgG_-+. \n\t", "\u0661", "\uff11", "\udcff", "00", ""]))
        cut = draw(st.integers(0, 2))
        name = name[:at] + text + name[at + cut :]
    changed = draw(st.sampled_from([name, name, name, name.upper(), name.lower(), name.title()]))
    return str(changed)


@given(names=st.sets(near_names().filter(lambda name: 0 < len(name) < 200), min_size=1))
@settings(max_examples=150, deadline=None)
def test_only_canonical_names_are_entries(names: set[str]) -> None:
    """A name that differs in one character or case is a foreign file."""
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            (Path(directory) / name).write_bytes(b"12345")
        found = Store(directory).scan()
        wanted = {name for name in names if is_canonical(name)}
        paths = {Store(directory).path_of(entry.key, entry.lsn) for entry in found.entries}
        assert {os.path.basename(path) for path in paths} == wanted
        assert found.foreign_files == dict.fromkeys(names - wanted, 5)


@pytest.mark.parametrize(
    "name",
    [
        NAME + "\n",
        NAME + ".",
        " " + NAME,
        NAME.upper(),
        NAME.replace("16B5A50", "16b5a50"),
        NAME.replace("00000000016B5A50", "16B5A50"),
        NAME.replace("00000000016B5A50", "000000000016B5A50"),
        NAME.replace("00000000016B5A50", "+0000000016B5A50"),
        NAME.replace("00000000016B5A50", "0_000000016B5A50"),
        NAME.replace("00000000016B5A50", "0x000000016B5A50"),
        NAME.replace("00000000016B5A50", "0000000\u0661016B5A50"),
        NAME.replace(str(TENANT), str(TENANT).upper()),
        NAME.replace(str(TENANT), str(TENANT)[:-1]),
        NAME.replace(str(TENANT), f"{TENANT}-0004"),
        NAME.replace(".tar.gz", ".tar"),
        NAME.replace(".tar.gz", "_tar_gz"),
        NAME + ".0123456789abcdef",
        NAME + "~",
        "." + NAME,
        "lost+found",
        ".DS_Store",
        os.fsdecode(b"basebackup_\xff\xfe"),
    ],
    ids=ascii,
)
def test_odd_names_are_foreign_files(store: Store, tmp_path: Path, name: str) -> None:
    """They are reported with their sizes, without an error."""
    (tmp_path / name).write_bytes(b"123")
    assert store.scan() == ([], {name: 3})


# --- The scan ---------------------------------------------------------------------------


def test_an_empty_directory_has_nothing(store: Store) -> None:
    """The directories and the lock file of the cache itself are no foreign files."""
    Path(store.data_dir, ".bbcache.lock").touch()
    Path(store.tmp_dir, f"{NAME}.x").touch()
    assert store.scan() == ([], {})


@odd_files
def test_odd_files_under_an_entrys_name_are_foreign(
    store: Store, tmp_path: Path, kind: str
) -> None:
    """Only a regular file is an entry; the others count no bytes."""
    ODD_FILES[kind](tmp_path / NAME)
    found = store.scan()
    assert found.entries == []
    assert found.foreign_files == {NAME: 0, **({"target": 10} if kind == "link" else {})}


def test_many_entries_and_foreign_files_are_found(store: Store, tmp_path: Path) -> None:
    """No batch is lost, and a foreign file in a batch does not affect the entries in it."""
    entries, foreign_files = {}, {}
    for number in range(700):
        key = number.to_bytes(32, "big")
        (path := Path(store.path_of(key, number))).write_bytes(bytes(number % 7))
        entries[key, number] = number % 7
        if number % 50 == 0:
            foreign_file = path.name.replace(".tar.gz", ".tar.gx")
            (tmp_path / foreign_file).write_bytes(b"12")
            foreign_files[foreign_file] = 2
    found = store.scan()
    assert {(entry.key, entry.lsn): entry.size_bytes for entry in found.entries} == entries
    assert len(found.entries) == len(entries)
    assert found.foreign_files == foreign_files


def test_directories_count_no_bytes(store: Store, tmp_path: Path) -> None:
    """Directories are not listed, either."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / NAME).write_bytes(b"123")
    assert store.scan() == ([], {"folder": 0})


@pytest.mark.parametrize("size_bytes", [0, 1, 10**6])
def test_entries_are_found_with_their_sizes(store: Store, tmp_path: Path, size_bytes: int) -> None:
    """This includes empty and unreadable files, which the first open checks."""
    (tmp_path / NAME).write_bytes(bytes(size_bytes))
    (tmp_path / NAME).chmod(0)
    (entry,), foreign_files = store.scan()
    assert (entry.key, entry.lsn, entry.size_bytes, foreign_files) == (KEY, LSN, size_bytes, {})


def test_all_lsns_of_a_timeline_are_found(store: Store, tmp_path: Path) -> None:
    """The catalog decides which of them to keep."""
    for lsn in range(3):
        Path(store.path_of(KEY, lsn)).touch()
    found = store.scan().entries
    assert sorted((each.key, each.lsn, each.size_bytes) for each in found) == [
        (KEY, lsn, 0) for lsn in range(3)
    ]
    assert len(file_names(tmp_path) - OWN_NAMES) == 3


def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    """It is not an empty cache."""
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path / "gone")).scan()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Store(str(tmp_path / "file")).scan()


def test_a_file_that_vanishes_during_the_scan_is_not_there(
    store: Store, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It vanishes between listing and stat; later files are found."""
    (entry.parent / "behind").write_bytes(b"12")
    with os.scandir(store.data_dir) as items:
        found = {item.name: item for item in items}
    entry.unlink()
    listing = [found[NAME], found["behind"]]
    monkeypatch.setattr(os, "scandir", lambda _path: nullcontext(listing))
    assert store.scan() == ([], {"behind": 2})


def test_a_file_that_cannot_be_examined_is_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is not known, and it does not stop the scan."""
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / NAME).write_bytes(b"123")
    with os.scandir(directory) as items:
        item = next(items)
    (directory / NAME).unlink()
    directory.rmdir()
    directory.touch()  # a file now: nothing below it can be examined
    monkeypatch.setattr(os, "scandir", lambda _path: nullcontext([item]))
    assert Store(str(directory)).scan() == ([], {NAME: 0})


def test_a_scan_opens_no_file(store: Store, tmp_path: Path) -> None:
    """A hundred thousand entries cost a listing and a look at each."""
    for key in make_keys(20):
        Path(store.path_of(key, 1)).write_bytes(b"123")
    script = (
        "import sys\n"
        "from bbcache.storage.files import Store\n"
        "opened = []\n"
        "sys.addaudithook(lambda name, data: opened.append(data) if name == 'open' else None)\n"
        f"assert len(Store({str(tmp_path)!r}).scan().entries) == 20\n"
        "assert not opened, opened\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_foreign_files_are_examined_again(store: Store, tmp_path: Path) -> None:
    """`restat` gives the present size, 0 for a directory, and nothing for a lost file."""
    foreign_file = tmp_path / "foreign file"
    foreign_file.write_bytes(b"12")
    assert store.restat({"foreign file": 9}) == {"foreign file": 2}
    foreign_file.write_bytes(b"12345")
    assert store.restat({"foreign file": 9}) == {"foreign file": 5}
    foreign_file.unlink()
    assert store.restat({"foreign file": 9}) == {}
    foreign_file.mkdir()
    assert store.restat({"foreign file": 9}) == {"foreign file": 0}
    (tmp_path / "file").touch()
    assert Store(str(tmp_path / "file")).restat({"foreign file": 9}) == {"foreign file": 9}


# --- The directories --------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_directories_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    """Mode 0700, whatever the umask."""
    store = Store(str(tmp_path))
    for _ in range(2):
        store.make_directories()
        assert {name: mode_of(tmp_path / name) for name in OWN_NAMES} == dict.fromkeys(
            OWN_NAMES, 0o700
        )
    assert file_names(tmp_path) == OWN_NAMES


def test_directories_that_are_there_keep_what_is_in_them(store: Store, tmp_path: Path) -> None:
    """Making them again is harmless."""
    for name in OWN_NAMES:
        (tmp_path / name / "x").touch()
    store.make_directories()
    assert all(file_names(tmp_path / name) == {"x"} for name in OWN_NAMES)


IN_PLACE: dict[str, Callable[[Path, Path], None]] = {
    "link to a directory": lambda path, other: path.symlink_to(other),
    "dangling link": lambda path, _: path.symlink_to("nowhere"),
    "file": lambda path, _: path.touch(),
    "fifo": lambda path, _: os.mkfifo(path),
}


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory elsewhere, with a file that must stay."""
    path = tmp_path_factory.mktemp("other")
    (path / "precious").write_bytes(b"123")
    return path


def put_in_place(tmp_path: Path, other: Path, name: str, kind: str) -> None:
    """Put something that is no directory in the place of one of the cache's own."""
    if (tmp_path / name).is_dir():
        (tmp_path / name).rmdir()
    IN_PLACE[kind](tmp_path / name, other)


def check_not_followed(tmp_path: Path, other: Path, name: str) -> None:
    """It is a real directory now, and what a link led to is untouched."""
    assert stat.S_ISDIR(os.lstat(tmp_path / name).st_mode)
    assert file_names(other) == {"precious"}


@pytest.mark.parametrize("name", sorted(OWN_NAMES))
@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_in_the_place_of_a_directory_is_unlinked(
    tmp_path: Path, other: Path, name: str, kind: str
) -> None:
    """A link is not followed: what it leads to stays as it is."""
    put_in_place(tmp_path, other, name, kind)
    store = Store(str(tmp_path))
    store.make_directories()
    assert store.sweep_tmp() == {}
    check_not_followed(tmp_path, other, name)


@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_build_follows_no_link_in_the_place_of_tmp(
    store: Store, tmp_path: Path, other: Path, kind: str
) -> None:
    """Also where it came after the start: builds go on, in a directory of their own."""
    put_in_place(tmp_path, other, "tmp", kind)
    store.create_temp(KEY, LSN).close()
    check_not_followed(tmp_path, other, "tmp")


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.usefixtures("entry")
def test_a_quarantine_follows_no_link_in_its_place(
    store: Store, tmp_path: Path, other: Path, kind: str
) -> None:
    """Also where it came after the start: the evidence stays in the cache's directory."""
    put_in_place(tmp_path, other, "quarantine", kind)
    store.quarantine(KEY, LSN)
    check_not_followed(tmp_path, other, "quarantine")
    assert len(store.quarantined({})) == 1


@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_listing_follows_no_link_in_the_place_of_the_quarantine(
    store: Store, tmp_path: Path, other: Path, kind: str
) -> None:
    """Files elsewhere are no evidence of this cache, and a file is no error."""
    put_in_place(tmp_path, other, "quarantine", kind)
    assert store.quarantined({}) == {}


def test_the_sweep_removes_what_builds_have_left(store: Store) -> None:
    """Files, links, FIFOs of such a name, also Neon's; what links lead to stays."""
    tmp = Path(store.tmp_dir)
    (tmp / f"{NAME}.0123456789abcdef").write_bytes(b"123")
    (tmp / f"{NAME}.link").symlink_to(Path(store.data_dir) / NAME)
    (tmp / NAME).touch()
    (Path(store.data_dir) / NAME).touch()
    os.mkfifo(tmp / f"{NAME}.fifo")
    assert store.sweep_tmp() == {}
    assert file_names(tmp) == set()
    assert (Path(store.data_dir) / NAME).exists()


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("file", 3),
        (f"x{NAME}", 3),
        (f"{NAME}x", 3),
        (NAME.upper(), 3),
        ("link", 0),
        ("fifo", 0),
        ("folder", 0),
    ],
)
def test_other_files_in_tmp_are_foreign(store: Store, name: str, size_bytes: int) -> None:
    """Others may use the directory, too: only files of builds are removed."""
    path = Path(store.tmp_dir, name)
    if name == "link":
        path.symlink_to(store.data_dir)
    elif name == "fifo":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"123")
    Path(store.tmp_dir, f"{NAME}.0123456789abcdef").touch()  # of a build under way
    assert store.scan() == ([], {f"tmp/{name}": size_bytes})
    assert store.restat({f"tmp/{name}": 99}) == {f"tmp/{name}": size_bytes}
    store.sweep_tmp()
    assert file_names(Path(store.tmp_dir)) == {name}


def test_the_sweep_tells_what_would_not_go(store: Store) -> None:
    """A directory cannot be unlinked; the rest goes all the same."""
    tmp = Path(store.tmp_dir)
    (tmp / f"{NAME}.a").touch()
    (tmp / f"{NAME}.folder").mkdir()
    (tmp / f"{NAME}.z").touch()
    assert set(store.sweep_tmp()) == {str(tmp / f"{NAME}.folder")}
    assert file_names(tmp) == {f"{NAME}.folder"}


def test_a_link_that_would_not_go_has_no_size(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not a regular file, so it counts no bytes, wherever it leads."""

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    (Path(store.data_dir) / "big").write_bytes(bytes(1000))
    targets = {f"{NAME}.dangling": "nowhere", f"{NAME}.good": "../big"}
    links = {os.path.join(store.tmp_dir, name): target for name, target in targets.items()}
    for path, target in links.items():
        os.symlink(target, path)
    monkeypatch.setattr(os, "unlink", refuse)
    assert store.sweep_tmp() == dict.fromkeys(links, 0)


@pytest.mark.parametrize("is_gone", [True, False])
def test_what_cannot_be_looked_at_does_not_stop_the_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """It counts no bytes; a file that has vanished does not count at all."""
    directory = Path(store.tmp_dir)
    (directory / NAME).write_bytes(b"123")
    (directory / NAME).unlink()
    if not is_gone:
        directory.rmdir()
        directory.touch()  # a file now: nothing below it can be unlinked or examined
    monkeypatch.setattr(os, "listdir", lambda _path: [NAME])
    fail_with(monkeypatch, os, "unlink", PermissionError(errno.EPERM, "no"))
    assert store.sweep_tmp() == ({} if is_gone else {str(directory / NAME): 0})


def test_a_sweep_that_cannot_list_is_an_error(store: Store) -> None:
    """The start must not continue without the sweep."""
    Path(store.tmp_dir).rmdir()
    with pytest.raises(FileNotFoundError):
        store.sweep_tmp()


# --- Temporary files --------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_files_are_for_the_owner_alone(store: Store) -> None:
    """Mode 0600, whatever the umask, also once published."""
    temp = store.create_temp(KEY, LSN)
    temp.append(b"x")
    temp.close()
    assert mode_of(temp.path) == 0o600
    store.rename_temp(temp, KEY, LSN)
    assert mode_of(store.path_of(KEY, LSN)) == 0o600


def test_temporary_files_have_random_names(store: Store) -> None:
    """Two builds never meet in one file, and a scan never takes one for an entry."""
    made = [store.create_temp(KEY, LSN) for _ in range(20)]
    assert len({temp.path for temp in made}) == 20
    for temp in made:
        temp.close()
        assert Path(temp.path).parent == Path(store.tmp_dir)
        token = Path(temp.path).name.removeprefix(NAME + ".")
        assert len(token) >= 16
        os.rename(temp.path, Path(store.data_dir) / Path(temp.path).name)
    assert store.scan().entries == []


@odd_files
def test_temporary_files_are_created_exclusively(tmp_path: Path, kind: str) -> None:
    """A file that has the name is neither opened nor followed."""
    ODD_FILES[kind](tmp_path / "temp")
    with pytest.raises(FileExistsError):
        TempFile(str(tmp_path / "temp"))
    (tmp_path / "file").write_bytes(b"123")
    with pytest.raises(FileExistsError):
        TempFile(str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"123"


def test_a_lost_tmp_is_made_again(store: Store, tmp_path: Path) -> None:
    """A build works after an operator has removed the directory."""
    Path(store.tmp_dir).rmdir()
    store.create_temp(KEY, LSN).close()
    assert mode_of(store.tmp_dir) == 0o700
    assert file_names(tmp_path) == OWN_NAMES


def test_no_directory_no_temporary_file(tmp_path: Path) -> None:
    """A data directory that is gone is not made here: it may be an unmounted disk."""
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path / "gone")).create_temp(KEY, LSN)
    assert file_names(tmp_path) == set()


def test_pieces_are_appended_and_the_beginning_is_patched(store: Store) -> None:
    """The patch goes over the beginning and moves nothing."""
    temp = store.create_temp(KEY, LSN)
    for piece in (b"abc", b"", b"defgh"):
        temp.append(piece)
    temp.patch(b"AB")
    temp.append(b"i")
    temp.sync()
    temp.close()
    assert Path(temp.path).read_bytes() == b"ABcdefghi"


def test_short_writes_are_completed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take a part of the data."""
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    temp = store.create_temp(KEY, LSN)
    temp.append(bytes(range(100)))
    temp.append(b"end")
    temp.patch(b"header")
    monkeypatch.undo()
    temp.close()
    assert Path(temp.path).read_bytes() == b"header" + bytes(range(6, 100)) + b"end"


def test_a_full_disk_is_an_error_of_the_write(store: Store) -> None:
    """The part that fits is written, then an error is raised. RLIMIT_FSIZE plays the full disk."""
    script = (
        "import resource\n"
        "from bbcache.storage.files import TempFile\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"temp = TempFile({store.tmp_dir + '/full'!r})\n"
        "temp.append(bytes(60))\n"
        "try:\n"
        "    temp.append(bytes(60))\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert int(ran.stdout) == errno.EFBIG
    assert Path(store.tmp_dir, "full").stat().st_size == 100


def test_a_closed_file_takes_nothing(store: Store) -> None:
    """Closing twice is harmless; every other step is then an error."""
    temp = store.create_temp(KEY, LSN)
    temp.close()
    temp.close()
    steps: list[Callable[[], None]] = [
        lambda: temp.append(b"x"),
        lambda: temp.patch(b"x"),
        temp.sync,
    ]
    for step in steps:
        with pytest.raises((OSError, ValueError), match="descriptor"):
            step()


@pytest.mark.parametrize("kind", ["file", *ODD_FILES])
def test_publishing_replaces_what_has_the_name(store: Store, tmp_path: Path, kind: str) -> None:
    """A link is replaced and not written through; only a directory is in the way."""
    if kind == "file":
        (tmp_path / NAME).write_bytes(b"old")
    else:
        ODD_FILES[kind](tmp_path / NAME)
    temp = store.create_temp(KEY, LSN)
    temp.append(b"new")
    temp.close()
    if kind == "directory":
        with pytest.raises(IsADirectoryError):
            store.rename_temp(temp, KEY, LSN)
        assert Path(temp.path).exists()
        return
    store.rename_temp(temp, KEY, LSN)
    assert stat.S_ISREG(os.lstat(tmp_path / NAME).st_mode)
    assert (tmp_path / NAME).read_bytes() == b"new"
    if kind == "link":
        assert (tmp_path / "target").read_bytes() == b"0123456789"


# --- Opening ----------------------------------------------------------------------------


@pytest.mark.usefixtures("entry")
def test_an_open_basebackup_is_a_raw_file_at_its_beginning(store: Store) -> None:
    """It has LSN and size, reads and seeks, refuses writes, and is not inherited."""
    with store.open(KEY, LSN, 10) as file:
        assert isinstance(file, io.FileIO)
        assert type(file) is BasebackupFile
        assert (file.lsn, file.size_bytes, file.tell()) == (LSN, 10, 0)
        assert file.read() == b"0123456789"
        assert file.seek(5) == 5
        assert file.read(2) == b"56"
        assert file.name == store.path_of(KEY, LSN)
        assert not file.writable()
        assert not os.get_inheritable(file.fileno())
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
    assert file.closed


def test_an_open_basebackup_outlives_its_entry(store: Store, entry: Path) -> None:
    """Replaced or removed, its bytes are still the old ones."""
    with store.open(KEY, LSN, 10) as first, store.open(KEY, LSN, 10) as second:
        new = entry.with_name("new")
        new.write_bytes(b"other")
        new.rename(entry)
        assert first.read() == b"0123456789"
        entry.unlink()
        assert second.read() == b"0123456789"


@pytest.mark.usefixtures("entry")
@pytest.mark.parametrize("size_bytes", [0, 9, 11, 10**9])
def test_another_size_is_proof_of_damage(store: Store, size_bytes: int) -> None:
    """Every open compares the size, and closes the file when it refuses."""
    with pytest.raises(ArchiveError, match=f"has 10 bytes, .*{size_bytes}"):
        store.open(KEY, LSN, size_bytes)
    assert open_below(store.data_dir) == []


@odd_files
def test_no_link_is_followed_and_no_fifo_waited_on(store: Store, tmp_path: Path, kind: str) -> None:
    """Any other kind of file is bad; the open does not wait, and leaks nothing."""
    ODD_FILES[kind](tmp_path / NAME)
    for size_bytes in (10, 0):
        with pytest.raises(ArchiveError):
            store.open(KEY, LSN, size_bytes)
    assert open_below(store.data_dir) == []


def test_a_missing_file_is_not_bad(store: Store) -> None:
    """FileNotFoundError is raised as it is; the reader makes it a miss."""
    with pytest.raises(FileNotFoundError):
        store.open(KEY, LSN, 10)


def test_what_cannot_be_opened_proves_nothing(tmp_path: Path, entry: Path) -> None:
    """The system's error is raised unchanged."""
    with pytest.raises(NotADirectoryError):
        Store(str(entry)).open(KEY, LSN, 10)
    assert file_names(tmp_path) == {NAME}


@pytest.mark.usefixtures("entry")
def test_out_of_descriptors_proves_nothing(store: Store) -> None:
    """With no descriptor left the open raises EMFILE, and works again afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            store.open(KEY, LSN, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    store.open(KEY, LSN, 10).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_proves_nothing(store: Store, entry: Path) -> None:
    """Permission may come back."""
    entry.chmod(0)
    with pytest.raises(PermissionError):
        store.open(KEY, LSN, 10)


# --- Quarantine -------------------------------------------------------------------------


def test_bad_files_are_moved_under_their_time_and_name(store: Store, entry: Path) -> None:
    """The name in the quarantine begins with the time, so that it sorts by age."""
    before, began = entry.stat().st_ino, datetime.now(UTC)
    store.quarantine(KEY, LSN)
    entry.write_bytes(b"new")
    store.quarantine(KEY, LSN)
    assert not entry.exists()
    paths = [Path(path) for path in store.quarantined({})]
    first, second = (datetime.strptime(p.name, f"%Y%m%dT%H%M%S.%f%z_{NAME}") for p in paths)
    assert began <= first < second <= datetime.now(UTC)
    assert list(store.quarantined({}).values()) == [10, 3]
    assert paths[0].stat().st_ino == before
    assert all(store.is_quarantined_name(str(path)) for path in paths)
    assert mode_of(paths[0].parent) == 0o700


@pytest.mark.usefixtures("entry")
def test_a_lost_quarantine_is_made_again(store: Store, tmp_path: Path) -> None:
    """The file is kept after an operator has removed the directory."""
    (tmp_path / "quarantine").rmdir()
    assert store.quarantined({}) == {}
    store.quarantine(KEY, LSN)
    assert len(store.quarantined({})) == 1


def test_a_missing_entry_cannot_be_moved(store: Store) -> None:
    """The error is raised."""
    with pytest.raises(FileNotFoundError):
        store.quarantine(KEY, LSN)
    assert store.quarantined({}) == {}


@odd_files
def test_odd_files_are_moved_as_they_are(store: Store, tmp_path: Path, kind: str) -> None:
    """The link itself is moved, not its target."""
    ODD_FILES[kind](tmp_path / NAME)
    before = os.lstat(tmp_path / NAME)
    store.quarantine(KEY, LSN)
    (path,) = store.quarantined({})
    assert os.lstat(path).st_ino == before.st_ino
    assert (tmp_path / "target").exists() == (kind == "link")


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "", NAME, "20241231T235957Z_x", "20241231T235957.123456Z_"),
        *("x20241231T235957.123456Z_x", "2024-12-31T23:59:57.123456Z_x"),
        "2024123\u0661T235957.123456Z_x",
    ],
    ids=ascii,
)
def test_files_of_others_in_the_quarantine_are_known(store: Store, name: str) -> None:
    """Only names that `Store.quarantine` makes are the cache's own."""
    assert not store.is_quarantined_name(f"/x/quarantine/{name}")


@pytest.mark.parametrize(("known_bytes", "wanted_bytes"), [(None, 0), (7, 7)])
def test_a_quarantined_file_that_cannot_be_looked_at_keeps_its_size(
    store: Store, monkeypatch: pytest.MonkeyPatch, known_bytes: int | None, wanted_bytes: int
) -> None:
    """Its earlier size, or 0 if it had none."""
    path = Path(store.data_dir, "quarantine", NAME)
    path.write_bytes(b"123")
    real_lstat = os.lstat

    def lstat(name: str) -> os.stat_result:
        if name == str(path):
            raise PermissionError(errno.EACCES, "no")
        return real_lstat(name)

    monkeypatch.setattr(os, "lstat", lstat)
    known = {} if known_bytes is None else {str(path): known_bytes}
    assert store.quarantined(known) == {str(path): wanted_bytes}


# --- Steps and hints --------------------------------------------------------------------


def test_unlink_wants_the_file_gone(tmp_path: Path, entry: Path) -> None:
    """It returns None for a missing file, and the error for one that stays."""
    assert try_unlink(str(entry)) is None
    assert try_unlink(str(entry)) is None
    assert not entry.exists()
    assert str(tmp_path) in str(try_unlink(str(tmp_path)))
