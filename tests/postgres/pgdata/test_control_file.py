"""pg_control as pg_controldata reads it, on clusters in every state."""

from __future__ import annotations

import bisect
import pickle
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import pytest

from bbcache.errors import PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import (
    ClusterState,
    ControlFile,
    ControlFileChecksumError,
    ControlFileError,
    WalLevel,
)
from bbcache.postgres.wal import WalReader, canonical_lsn, record_end_lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres

_PAGE = 8192
_KEPT_DIR = Path(__file__).parents[1] / "control_files"
_STATES = {
    "starting up": ClusterState.STARTUP,
    "shut down": ClusterState.SHUT_DOWN,
    "shut down in recovery": ClusterState.SHUT_DOWN_IN_RECOVERY,
    "shutting down": ClusterState.SHUTTING_DOWN,
    "in crash recovery": ClusterState.IN_CRASH_RECOVERY,
    "in archive recovery": ClusterState.IN_ARCHIVE_RECOVERY,
    "in production": ClusterState.IN_PRODUCTION,
}


def _epoch(text: str) -> int:
    """A time as pg_controldata prints it: local, C locale."""
    return int(time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y")))


def _full_xid(text: str) -> int:
    epoch, xid = text.split(":")
    return int(epoch) << 32 | int(xid)


def _wal_level(text: str) -> WalLevel:
    return WalLevel[text.upper()]


_SHOWN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "system_identifier": ("Database system identifier", int),
    "pg_control_version": ("pg_control version number", int),
    "catalog_version_no": ("Catalog version number", int),
    "state": ("Database cluster state", _STATES.__getitem__),
    "time": ("pg_control last modified", _epoch),
    "checkpoint_lsn": ("Latest checkpoint location", Lsn.from_str),
    "redo_lsn": ("Latest checkpoint's REDO location", Lsn.from_str),
    "tli": ("Latest checkpoint's TimeLineID", int),
    "prev_tli": ("Latest checkpoint's PrevTimeLineID", int),
    "next_xid": ("Latest checkpoint's NextXID", _full_xid),
    "checkpoint_time": ("Time of latest checkpoint", _epoch),
    "min_recovery_lsn": ("Minimum recovery ending location", Lsn.from_str),
    "backup_start_lsn": ("Backup start location", Lsn.from_str),
    "wal_level": ("wal_level setting", _wal_level),
    "block_size_bytes": ("Database block size", int),
    "relation_segment_blocks": ("Blocks per segment of large relation", int),
    "wal_block_size_bytes": ("WAL block size", int),
    "wal_segment_size_bytes": ("Bytes per WAL segment", int),
    "data_checksum_version": ("Data page checksum version", int),
}


def _check_against_pg_controldata(cluster: Cluster) -> ControlFile:
    """Compare every field; the server must not write the file in between."""
    text = cluster.binaries.run("pg_controldata", f"--pgdata={cluster.pgdata_dir}")
    control = ControlFile.read(cluster.pgdata_dir)
    assert _fields(control) == _parsed(text)
    return control


def _parsed(text: str) -> dict[str, Any]:
    """What pg_controldata has printed."""
    shown = {key: value.strip() for key, _, value in (x.partition(":") for x in text.splitlines())}
    return {name: parse(shown[label]) for name, (label, parse) in _SHOWN.items()}


def _fields(control: ControlFile) -> dict[str, Any]:
    return {name: getattr(control, name) for name in _SHOWN}


@pytest.fixture
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_utc")
@pytest.mark.parametrize("major", [14, 15, 16, 17, 18])
def test_equals_pg_controldata_of_every_version(major: int) -> None:
    """The file of a real standby on its second timeline, and what was printed of it, are kept.

    Segments of 64 MiB, checksums, wal_level logical; version 14 was printed by that of 15.
    """
    data = bytes.fromhex((_KEPT_DIR / f"{major}.hex").read_text())
    control = ControlFile.parse(data.ljust(8192, b"\0"))
    assert _fields(control) == _parsed((_KEPT_DIR / f"{major}.txt").read_text())
    assert control.major_version == major
    assert (control.tli, control.wal_segment_size_bytes) == (2, 64 << 20)
    assert control.min_recovery_lsn == control.checkpoint_end_lsn


@pytest.mark.parametrize(
    ("initdb_args", "segment_size_bytes"),
    [(("--wal-segsize=16",), 16 << 20), (("--data-checksums", "--wal-segsize=64"), 64 << 20)],
    ids=["default", "checksums-64MB"],
)
def test_equals_pg_controldata_in_every_state(
    pg: PostgresBinaries, make_cluster: Any, initdb_args: tuple[str, ...], segment_size_bytes: int
) -> None:
    """All fields are as pg_controldata shows them: fresh, running, crashed, stopped."""
    cluster = make_cluster(pg, initdb_args=initdb_args)
    control = _check_against_pg_controldata(cluster)
    assert control.major_version == pg.major
    assert control.wal_segment_size_bytes == segment_size_bytes
    assert control.state is ClusterState.SHUT_DOWN
    if "--data-checksums" in initdb_args:
        assert control.data_checksum_version == 1

    cluster.start({"wal_level": "logical"})
    cluster.psql("create table t as select generate_series(1, 100) x; checkpoint")
    control = _check_against_pg_controldata(cluster)
    assert control.state is ClusterState.IN_PRODUCTION
    assert control.wal_level is WalLevel.LOGICAL
    assert control.redo_lsn < control.checkpoint_lsn

    cluster.stop("immediate")
    assert _check_against_pg_controldata(cluster) == control

    cluster.start()
    cluster.stop()
    control = _check_against_pg_controldata(cluster)
    assert control.state is ClusterState.SHUT_DOWN
    assert control.redo_lsn == control.checkpoint_lsn


def test_standby_equals_pg_controldata(pg: PostgresBinaries, make_cluster: Any) -> None:
    """A standby's file has a minimum recovery point, and the state is its own."""
    cluster = make_cluster(pg)
    (cluster.pgdata_dir / "standby.signal").touch()
    cluster.start({"hot_standby": "on", "restore_command": "false"})
    control = _check_against_pg_controldata(cluster)
    assert control.state is ClusterState.IN_ARCHIVE_RECOVERY
    cluster.stop()
    control = _check_against_pg_controldata(cluster)
    assert control.state is ClusterState.SHUT_DOWN_IN_RECOVERY
    assert control.min_recovery_lsn >= control.checkpoint_lsn


def _fill_up_to(cluster: Cluster, in_unit: int, unit: int) -> None:
    """Write one record, so that the next one starts at `in_unit` of the next `unit` bytes."""
    overhead = 24 + 5 + 24 + 2  # record header, data header, xl_logical_message, prefix
    for _ in range(20):
        at = Lsn.from_str(cluster.psql("select pg_current_wal_insert_lsn()"))
        if at % unit == in_unit:
            return
        target = canonical_lsn(at + (in_unit - at - 4 * _PAGE) % unit + 4 * _PAGE, 1 << 20)
        lengths = range(0, 2 * unit + 8 * _PAGE, 8)
        found = bisect.bisect_left(lengths, target, key=lambda n: record_end_lsn(at, n, 1 << 20))
        size_bytes = lengths[found] - overhead
        cluster.psql(f"select pg_logical_emit_message(false, 'x', repeat('x', {size_bytes}))")
    raise AssertionError("other records came in between each time")


@pytest.mark.parametrize(
    ("in_unit", "unit", "end_in_unit"),
    [
        (_PAGE - 120, _PAGE, 0),  # ends where the page does
        (_PAGE - 112, _PAGE, 32),  # two bytes and padding are on the next page
        (_PAGE - 8, _PAGE, 136),
        (24, _PAGE, 144),
        ((1 << 20) - 120, 1 << 20, 0),
        ((1 << 20) - 112, 1 << 20, 48),  # behind the long header of the next segment
        ((1 << 20) - 8, 1 << 20, 152),
        (40, 1 << 20, 160),  # the first record of a segment
    ],
)
def test_checkpoint_end_is_where_the_wal_ends(
    pg: PostgresBinaries, make_cluster: Any, in_unit: int, unit: int, end_in_unit: int
) -> None:
    """The end computed from the start is that of the WAL and of the restarted server."""
    cluster = make_cluster(pg, initdb_args=("--wal-segsize=1",))
    cluster.start({"wal_keep_size": "1GB"})
    _fill_up_to(cluster, in_unit, unit)
    cluster.stop()
    control = ControlFile.read(cluster.pgdata_dir)
    assert control.checkpoint_lsn % unit == in_unit
    end_lsn = control.checkpoint_end_lsn
    assert end_lsn % unit == end_in_unit

    reader = WalReader(cluster.pgdata_dir / "pg_wal", control.checkpoint_lsn)
    assert [record.is_shutdown_checkpoint for record in reader] == [True]
    assert reader.last_record_lsn == end_lsn

    cluster.start()
    assert Lsn.from_str(cluster.psql("select pg_current_wal_lsn()")) == end_lsn
    insert_lsn = Lsn.from_str(cluster.psql("select pg_current_wal_insert_lsn()"))
    assert canonical_lsn(insert_lsn, control.wal_segment_size_bytes) == end_lsn
    assert (insert_lsn == end_lsn) == (end_in_unit != 0)


@pytest.fixture
def good(newest_pg: PostgresBinaries, make_cluster: Any) -> Path:
    """A data directory with a good pg_control."""
    pgdata_dir: Path = make_cluster(newest_pg).pgdata_dir
    return pgdata_dir


def _path(pgdata_dir: Path) -> Path:
    return pgdata_dir / "global" / "pg_control"


def _with_crc(data: bytes) -> bytes:
    """Make the checksum of a file of version 18 right."""
    return data[:292] + struct.pack("<I", google_crc32c.value(data[:292])) + data[296:]


def _patched(data: bytes, offset: int, number: int) -> bytes:
    return _with_crc(data[:offset] + struct.pack("<I", number) + data[offset + 4 :])


@pytest.mark.parametrize(
    ("offset", "number", "said"),
    [
        (8, 1201, "version 1201 is not one of PostgreSQL 14 to 18"),
        (8, int.from_bytes((1800).to_bytes(4, "little"), "big"), "the other byte order"),
        (12, 202007201, "catalog version 202007201 is not of PostgreSQL"),
        (16, 7, "7 is not a valid ClusterState"),
        (172, 3, "3 is not a valid WalLevel"),
        (224, 32768, "WAL pages have 32768 bytes, not 8192"),
        (228, 3 << 20, "a WAL segment size is a power of two"),
        (228, 0, "a WAL segment size is a power of two"),
    ],
)
def test_refuses_what_it_does_not_know(
    newest_pg: PostgresBinaries, good: Path, offset: int, number: int, said: str
) -> None:
    """A value that cannot be is refused by an error that names the file and the value."""
    if newest_pg.major != 18:
        pytest.skip("the offsets are of version 18")
    path = _path(good)
    path.write_bytes(_patched(path.read_bytes(), offset, number))
    with pytest.raises(ControlFileError) as caught:
        ControlFile.read(good)
    assert str(caught.value).startswith(f"control file {path}: ")
    assert said in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("size_bytes", [0, 4, 296, 8191, 8193, 20_000])
def test_refuses_a_file_of_another_size(good: Path, size_bytes: int) -> None:
    """A file that is not of 8192 bytes is refused, and nothing beyond that is read."""
    path = _path(good)
    data = path.read_bytes().ljust(size_bytes, b"\0")[:size_bytes]
    path.write_bytes(data)
    with pytest.raises(ControlFileError, match="not 8192 bytes"):
        ControlFile.read(good)
    with pytest.raises(ControlFileError, match=r"control file pg_control: .* not 8192 bytes"):
        ControlFile.parse(data)


def test_every_flipped_bit_is_noticed(good: Path) -> None:
    """No bit of the part that the checksum covers, or of the checksum, can change."""
    data = _path(good).read_bytes()
    ControlFile.parse(data)
    for offset in range(292):
        for bit in (1, 16, 128):
            flipped = data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :]
            with pytest.raises(ControlFileError):
                ControlFile.parse(flipped)


def test_torn_read_is_read_again(good: Path) -> None:
    """A checksum that does not match is given time to become right."""
    path = _path(good)
    whole = path.read_bytes()
    torn = whole[:40] + b"torn" + whole[44:]
    path.write_bytes(torn)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            path.write_bytes(whole)

    assert ControlFile.read(good, pause=pause) == ControlFile.parse(whole)
    assert len(pauses) == 3

    path.write_bytes(torn)
    pauses.clear()
    with pytest.raises(ControlFileChecksumError, match="the checksum does not match"):
        ControlFile.read(good, attempts=3, pause=lambda _: pauses.append(0))
    assert len(pauses) == 2


def test_other_faults_are_not_read_again(good: Path) -> None:
    """Only a checksum can become right by itself."""
    _path(good).write_bytes(b"")
    with pytest.raises(ControlFileError, match="0 bytes"):
        ControlFile.read(good, pause=lambda _: pytest.fail("paused"))


def test_missing_and_unreadable_files_are_named(good: Path) -> None:
    """A directory without the file, and a file that cannot be read, give clear errors."""
    path = _path(good)
    path.unlink()
    with pytest.raises(PostgresError, match="there is no such file\nhint: ") as missing:
        ControlFile.read(str(good))
    assert str(path) in str(missing.value)
    path.mkdir()
    with pytest.raises(
        ControlFileError, match="cannot be read: it is not a regular file"
    ) as unreadable:
        ControlFile.read(good)
    assert isinstance(unreadable.value.__cause__, OSError)


def test_errors_survive_pickling() -> None:
    """An error comes out of a pickle with its class, text and attributes."""
    error = ControlFileChecksumError("/pgdata/global/pg_control", "the checksum does not match")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above
    assert type(copy) is ControlFileChecksumError
    assert (str(copy), copy.path, copy.reason) == (str(error), error.path, error.reason)
