"""restore_tarball unpacks what it should, and leaves no server able to start otherwise."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from isal import igzip
from support.restore_helpers import (
    CONTROL,
    CONTROL_BYTES,
    FailingFile,
    directory,
    file,
    link,
    make_tar,
    refusal,
    restored,
)

from bbcache.errors import ArchiveError, BbcacheError, PostgresError
from bbcache.postgres.pgdata import restore
from bbcache.postgres.pgdata.tarball import restore_tarball, send_pgdata_tarball

if TYPE_CHECKING:
    from postgres.conftest import BusyPgdatas

    from bbcache.postgres.server.cluster import PostgresBinaries


@pytest.mark.parametrize(
    "compress", [gzip.compress, igzip.compress, bytes], ids=["gzip", "igzip", "plain"]
)
def test_restores(tmp_path: Path, compress: Any) -> None:
    """Files come out as they went in, of any gzip and of a plain tar."""
    files = restored(compress(make_tar()), tmp_path / "d")
    assert files.keys() == {"base/1", CONTROL}
    assert files[CONTROL] == CONTROL_BYTES
    assert files["base/1"] == random.Random(1).randbytes(3000)


def test_from_path_and_file(tmp_path: Path) -> None:
    """An archive is a path, or an open file, which stays open; the summary counts it."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(make_tar()))
    by_path = restore_tarball(path, tmp_path / "by_path")
    assert restore_tarball(str(path), tmp_path / "by_str") == by_path
    with path.open("rb") as opened:
        assert restore_tarball(opened, tmp_path / "by_file") == by_path
        assert not opened.closed
    assert (by_path.member_count, by_path.size_bytes) == (4, len(make_tar()))


class Trickle(io.RawIOBase):
    """Gives one byte a read."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, _size: int = -1, /) -> bytes:
        """One byte, or none at the end."""
        return self._data.read(1)


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_small_reads(tmp_path: Path, compress: Any) -> None:
    """A file that gives a byte at a time gives the same as one that gives all."""
    restore_tarball(Trickle(compress(make_tar())), tmp_path / "d")
    assert (tmp_path / "d" / CONTROL).read_bytes() == CONTROL_BYTES


def test_gzip_header_with_fields(tmp_path: Path) -> None:
    """The optional fields of a gzip header, such as the seal of our archives, are skipped."""
    plain = gzip.compress(make_tar(), mtime=0)
    extra = b"BB\x08\x00" + bytes(8)
    sealed = plain[:3] + b"\x04" + plain[4:10] + len(extra).to_bytes(2, "little") + extra
    assert restored(sealed + plain[10:], tmp_path / "d")[CONTROL] == CONTROL_BYTES


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes(tmp_path: Path, umask: int) -> None:
    """Directories get 0700 and files 0600, whatever the tar and the umask say."""
    before = os.umask(umask)
    try:
        restore_tarball(io.BytesIO(make_tar()), tmp_path / "d")
    finally:
        os.umask(before)
    for path in (tmp_path / "d", *(tmp_path / "d").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_existing_directory(tmp_path: Path) -> None:
    """An empty directory is used, and its mode set."""
    tmp_path.chmod(0o755)
    restore_tarball(io.BytesIO(make_tar()), tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_directory_in_use(tmp_path: Path) -> None:
    """A directory that has anything in it is refused and left as it is."""
    (tmp_path / "keep").write_text("me")
    with pytest.raises(PostgresError, match="is not empty: keep is there\nhint: "):
        restore_tarball(io.BytesIO(make_tar()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


@pytest.mark.parametrize("name", ["file", "file/below", "missing/below"])
def test_impossible_destination(tmp_path: Path, name: str) -> None:
    """A destination that cannot be a directory is named."""
    (tmp_path / "file").touch()
    with pytest.raises(PostgresError, match=name):
        restore_tarball(io.BytesIO(make_tar()), tmp_path / name)


def test_missing_archive(tmp_path: Path) -> None:
    """An archive that is not there is named, and no directory made."""
    with pytest.raises(PostgresError, match=r"cannot open .*nothing: No such file"):
        restore_tarball(tmp_path / "nothing", tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner(tmp_path: Path) -> None:
    """As root, everything can be given to the user that the server runs as."""
    restore_tarball(io.BytesIO(make_tar()), tmp_path / "d", owner=(65534, 65533))
    for path in (tmp_path / "d", *(tmp_path / "d").rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sync, every file and directory is on disk before pg_control gets its name."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        calls.append(os.path.relpath(Path(f"/proc/self/fd/{fd}").readlink(), tmp_path / "d"))
        fsync(fd)

    def spy_rename(*args: Any, **kwargs: Any) -> None:
        calls.append("rename")
        rename(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    restore_tarball(io.BytesIO(make_tar()), tmp_path / "d", sync=True)
    before, after = calls[: calls.index("rename")], calls[calls.index("rename") + 1 :]
    assert sorted(before[:-1]) == ["base", "base/1", "global"]  # several at a time
    assert before[-1] == "global/pg_control.part"
    assert after == ["global", ".", ".."]


def test_cut_short_anywhere(tmp_path: Path) -> None:
    """However short it is cut, plain or gzip'd, an archive leaves nothing behind."""
    tar = make_tar()
    tar = tar[: tar.rindex(CONTROL_BYTES) + len(CONTROL_BYTES) + 1024]
    for number, data in enumerate((tar, gzip.compress(tar), igzip.compress(tar, 0))):
        for length in range(0, len(data), 29 if number else 127):
            refusal(data[:length], tmp_path / "d")
        refusal(data[:-1], tmp_path / "d")
        assert restored(data, tmp_path / f"whole{number}")


def test_flipped_bits_of_gzip(tmp_path: Path) -> None:
    """A gzip archive with any bit of its body or trailer flipped is never restored."""
    data = gzip.compress(make_tar())
    for position in range(10, len(data), 11):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        refusal(bytes(damaged), tmp_path / "d")


@pytest.mark.parametrize("position", [-8, -5, -4, -1])
def test_trailer_of_gzip(tmp_path: Path, position: int) -> None:
    """Both the CRC-32 and the size in the gzip trailer are compared."""
    data = bytearray(gzip.compress(make_tar()))
    data[position] ^= 0x10
    assert "not a valid gzip file" in refusal(bytes(data), tmp_path / "d")


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"x", gzip.compress(b""), gzip.compress(make_tar())],
    ids=["zero", "letter", "empty member", "member"],
)
def test_behind_the_gzip_member(tmp_path: Path, tail: bytes) -> None:
    """An archive is one gzip member; anything behind it is refused."""
    data = gzip.compress(make_tar()) + tail
    assert refusal(data, tmp_path / "d") == "the archive has bytes after its gzip member"


def test_behind_the_gzip_member_later(tmp_path: Path) -> None:
    """Bytes that come when the member has been read to its end are noticed too."""
    data = gzip.compress(make_tar()) + b"x"
    with pytest.raises(ArchiveError, match="has bytes after its gzip member"):
        restore_tarball(Trickle(data), tmp_path / "d")


def test_directory_with_content(tmp_path: Path) -> None:
    """A directory that claims to have content is damage."""
    tar = patched(make_tar(directory("x")), b"x/", 124, b"00000000001\0")
    assert "directory 'x/' in the tar has content" in refusal(tar, tmp_path / "d")


def test_behind_the_tar(tmp_path: Path) -> None:
    """Zeros may follow the end marker, nothing else."""
    assert restored(make_tar() + bytes(700_000), tmp_path / "zeros")
    for tail in (b"x", bytes(700_000) + b"x", make_tar()):
        assert "has bytes after its end marker" in refusal(make_tar() + tail, tmp_path / "d")


def test_half_an_end_marker(tmp_path: Path) -> None:
    """One zero block and then a member is damage."""
    tar = make_tar(control=False)
    body = tar[: 512 * 3 + 3072]
    assert "end marker is damaged" in refusal(body + bytes(512) + make_tar(), tmp_path / "d")


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    """The header of a member of another type."""
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


HOSTILE = {
    "parent": (file("../evil"), "is not a path inside"),
    "inner parent": (file("base/../../evil"), "is not a path inside"),
    "parent directory": (directory(".."), "is not a path inside"),
    "absolute": (file("/tmp/bbcache-evil"), "is not a path inside"),  # noqa: S108 - never made
    "dot": (directory("."), "is not a path inside"),
    "inner dot": (file("base/./x"), "is not a path inside"),
    "double slash": (file("base//x"), "is not a path inside"),
    "slash at the end": (file("base/x/"), "is not a path inside"),
    "symlink inside": (link("base/x", "1"), "is a symbolic link"),
    "symlink outside": (link("x", "/etc"), "is a symbolic link"),
    "hard link": (link("x", "base/1", tarfile.LNKTYPE), "is a hard link"),
    "hard link outside": (link("x", "/etc/passwd", tarfile.LNKTYPE), "is a hard link"),
    "device": (special("x", tarfile.CHRTYPE), "is a character device"),
    "disk": (special("x", tarfile.BLKTYPE), "is a block device"),
    "pipe": (special("x", tarfile.FIFOTYPE), "is a pipe"),
    "sparse": (special("x", tarfile.GNUTYPE_SPARSE), "is of type b'S'"),
    "pax header": (special("x", tarfile.XHDTYPE), "is of type b'x'"),
    "global pax header": (special("x", tarfile.XGLTYPE), "is of type b'g'"),
    "long link": (special("x", tarfile.GNUTYPE_LONGLINK), "is of type b'K'"),
    "same file twice": (file("base/1"), "is in the tar twice"),
    "same directory twice": (directory("base"), "is in the tar twice"),
    "same file, other spelling": (file("./base/1"), "is in the tar twice"),
    "directory over a file": (directory("base/1"), "is in the tar twice"),
    "file over a directory": (file("base"), "is in the tar twice"),
    "below a file": (file("base/1/x"), "before its directory"),
    "directory missing": (file("nowhere/x"), "before its directory"),
    "control file early": (file(CONTROL, 8192), "is in the tar twice"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members(tmp_path: Path, case: tuple[tarfile.TarInfo, str]) -> None:
    """A member that is no file or directory of its own inside `dest` is refused."""
    member, reason = case
    assert reason in refusal(make_tar(member), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_link_then_through_it(tmp_path: Path) -> None:
    """A link to elsewhere and a file below it write nothing elsewhere."""
    (tmp_path / "outside").mkdir()
    refusal(make_tar(link("x", str(tmp_path / "outside")), file("x/evil")), tmp_path / "d")
    assert not list((tmp_path / "outside").iterdir())


def test_control_file_must_be_last(tmp_path: Path) -> None:
    """Without pg_control, or with anything behind it, an archive is not a basebackup."""
    assert "does not end with" in refusal(make_tar(control=False), tmp_path / "d")
    early = make_tar(file(CONTROL, 8192), file("base/2"), control=False)
    assert "base/2 is in the tar after global/pg_control" in refusal(early, tmp_path / "d")
    for odd in (file(CONTROL, 8191), file(CONTROL, 8193), file(CONTROL), directory(CONTROL)):
        assert "is not a file of 8192" in refusal(make_tar(odd, control=False), tmp_path / "d")


def test_name_of_the_part_file(tmp_path: Path) -> None:
    """A member by the name that pg_control has while it is written does no harm."""
    with pytest.raises(PostgresError, match="File exists"):
        restore_tarball(io.BytesIO(make_tar(file("global/pg_control.part"))), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def patched(tar: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """A tar with part of a member's header replaced, and the checksum right again."""
    start = tar.index(name.ljust(100, b"\0"))
    header = bytearray(tar[start : start + 512])
    header[offset : offset + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:start] + header + tar[start + 512 :]


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (124, b"-0000000001\0", "the size in a header is"),
        (124, b"0_0000000_1\0", "the size in a header is"),
        (124, bytes(12), "the size in a header is"),
        (124, b"\xff" * 12, "the size in a header is"),
        (124, b"\x80" + b"\xff" * 11, "is cut short"),
        (0, b"\0", "is not a path inside"),
        (345, b"..\0", "is not a path inside"),
        (345, b"/etc\0", "is not a path inside"),
    ],
)
def test_damaged_headers(tmp_path: Path, offset: int, value: bytes, reason: str) -> None:
    """A header with a wrong size or name is refused, even with a right checksum."""
    assert reason in refusal(patched(make_tar(), b"base/1", offset, value), tmp_path / "d")


def test_header_checksum(tmp_path: Path) -> None:
    """A header whose checksum does not fit is damage."""
    tar = bytearray(make_tar())
    tar[tar.index(b"base/1")] ^= 1
    assert "the checksum of a header is wrong" in refusal(bytes(tar), tmp_path / "d")


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path: Path, style: int) -> None:
    """Long names work in both of their forms."""
    parts = [directory("d" * 60), directory("d" * 60 + "/" + "d" * 60)]
    names = [f"{part.name}/" + "f" * 90 for part in parts]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=style) as opened:
        for member in (directory("global"), *parts, *map(file, names)):
            opened.addfile(member)
        opened.addfile(file(CONTROL, len(CONTROL_BYTES)), io.BytesIO(CONTROL_BYTES))
    assert set(names) < restored(tar.getvalue(), tmp_path / "d").keys()


def test_nested_too_deep(tmp_path: Path) -> None:
    """Directories that no recursion could remove again are refused before they are made."""
    nested = [directory("/".join("d" * number)) for number in range(1, 130)]
    tar = make_tar(*nested, link("x", "/etc"), style=tarfile.GNU_FORMAT)
    assert refusal(tar, tmp_path / "d") == "a name in the tar has 129 parts, more than 128"
    tar = make_tar(*nested[:127], file("d/" * 127 + "f"), style=tarfile.GNU_FORMAT)
    assert "d/" * 127 + "f" in restored(tar, tmp_path / "d")


def test_nul_in_long_name(tmp_path: Path) -> None:
    """A long name with a NUL inside is refused, not cut there."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as opened:
        opened.addfile(file("f" * 150))
    hostile = tar.getvalue().replace(b"f" * 150 + b"\0", b"f" * 50 + b"\0" + b"f" * 99 + b"\0")
    assert "is not a path inside" in refusal(hostile, tmp_path / "d")


def test_huge_long_name(tmp_path: Path) -> None:
    """A name of gigabytes is refused by its size, before it is read."""
    tar = make_tar(special("x", tarfile.GNUTYPE_LONGNAME))
    tar = patched(tar, b"x", 124, b"77777777777\0")
    assert "a name in the tar has 8589934591 bytes" in refusal(tar, tmp_path / "d")


def test_prefix_of_dot_slash(tmp_path: Path) -> None:
    """Names as ``tar -c .`` writes them, but for the directory itself, are taken."""
    assert restored(make_tar(file("./PG_VERSION")), tmp_path / "d")["PG_VERSION"] == b""


def test_odd_archives(tmp_path: Path) -> None:
    """Nothing, one byte, text and another compression are refused."""
    for data in (b"", b"\x1f", b"\x1f\x8b", b"hello " * 200, b"\x28\xb5\x2f\xfd" + bytes(600)):
        refusal(data, tmp_path / "d")


@pytest.mark.parametrize("is_new", [True, False])
def test_failing_archive(tmp_path: Path, *, is_new: bool) -> None:
    """When the archive cannot be read on, or the user stops it, `dest` is as before."""
    dest = tmp_path / "d"
    if not is_new:
        dest.mkdir()
    data = make_tar()[:3000]
    with pytest.raises(PostgresError, match="cannot read the archive: disk on fire"):
        restore_tarball(FailingFile(data, OSError(5, "disk on fire")), dest)
    with pytest.raises(KeyboardInterrupt):
        restore_tarball(FailingFile(data, KeyboardInterrupt()), dest)
    assert dest.exists() is not is_new
    assert not list(tmp_path.rglob("d/*"))


_ON_SMALL_DISK = """
mount -t tmpfs -o size=2m,nr_inodes=20 none "$1" &&
exec "$2" -c '
import sys
from bbcache.postgres.pgdata.tarball import restore_tarball
from bbcache.errors import PostgresError
dest = sys.argv[1] + "/d"
try:
    restore_tarball(sys.argv[2], dest)
except PostgresError as error:
    print(error)
import os
print(os.path.exists(dest))
' "$1" "$3"
"""


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([file("base/big", 3 << 20)], "base/big: it needs 3145728 bytes, and "),
        (
            [directory("pg_wal"), file("pg_wal/big", 3 << 20)],
            "pg_wal/big: it needs 3145728 bytes, and ",
        ),
        ([file(f"base/{n}") for n in range(2, 40)], " bytes in 0 files are free"),
    ],
    ids=["bytes", "reserved", "files"],
)
def test_full_disk(tmp_path: Path, members: list[tarfile.TarInfo], reason: str) -> None:
    """On a full disk the error says what needed how much and what was free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    fill = b"\0" if "pg_wal" in reason else b"x"
    tmp_path.joinpath("a.tar").write_bytes(make_tar(*members, fill=fill))
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", _ON_SMALL_DISK, "sh"]
    done = subprocess.run(
        [*shell, disk, sys.executable, tmp_path / "a.tar"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(restore.__file__).parents[3],
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount in a namespace of its own here: {done.stderr}")
    assert f"no space for {disk}/d/" in done.stdout
    assert reason in done.stdout
    assert done.stdout.endswith("hint: Make room on that file system.\nFalse\n")


def allocated_bytes(path: Path) -> int:
    """The space that a file takes on its disk."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("compress", [igzip.compress, bytes], ids=["gzip", "plain"])
def test_zeros_become_holes(tmp_path: Path, compress: Any) -> None:
    """A file takes the space of its data, wherever in it that is; its content is the same."""
    size_bytes, chance = 24 << 20, random.Random(3)
    contents = {"base/2": bytes(size_bytes)}
    for number, places in enumerate([(0,), (size_bytes - 70_001,), (1_000_003, 9_000_000)], 3):
        content = bytearray(size_bytes)
        for place in places:
            content[place : place + 70_001] = chance.randbytes(70_001)
        contents[f"base/{number}"] = bytes(content)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as opened:
        for member in (directory("global"), directory("base")):
            opened.addfile(member)
        for name, data in {**contents, CONTROL: CONTROL_BYTES}.items():
            opened.addfile(file(name, len(data)), io.BytesIO(data))
    assert restored(compress(tar.getvalue()), tmp_path / "d") == {
        **contents,
        CONTROL: CONTROL_BYTES,
    }
    for name in contents:
        assert allocated_bytes(tmp_path / "d" / name) <= 1 << 20


@pytest.mark.parametrize("is_known", [True, False])
def test_wal_has_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """A WAL segment has no holes, also where the file system cannot reserve space."""

    def fallocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if not is_known:
        monkeypatch.setattr(os, "posix_fallocate", fallocate)
    members = [directory("pg_wal"), file("pg_wal/000000010000000000000001", 16 << 20)]
    files = restored(make_tar(*members), tmp_path / "d")
    assert files[members[1].name] == bytes(16 << 20)
    assert allocated_bytes(tmp_path / "d" / members[1].name) >= 16 << 20


def test_several_threads(tmp_path: Path) -> None:
    """Restores in several threads at once do not mix."""
    data = gzip.compress(make_tar())
    results: dict[int, dict[str, bytes]] = {}

    def run(number: int) -> None:
        results[number] = restored(data, tmp_path / str(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(4)] == [restored(data, tmp_path / "d")] * 4


@pytest.mark.postgres
def test_real_archive_cut_short(
    newest_pg: PostgresBinaries, busy_pgdatas: BusyPgdatas, tmp_path: Path
) -> None:
    """A real basebackup cut anywhere leaves no pg_control."""
    tar = io.BytesIO()
    send_pgdata_tarball(busy_pgdatas.get(newest_pg).path, tar)
    data = igzip.compress(tar.getvalue(), 1)
    for length in random.Random(2).sample(range(len(data)), 4):
        with pytest.raises(BbcacheError):
            restore_tarball(io.BytesIO(data[:length]), tmp_path / "d")
        assert not (tmp_path / "d").exists()
