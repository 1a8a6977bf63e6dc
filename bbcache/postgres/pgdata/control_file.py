"""pg_control: the identity of a PostgreSQL cluster, its state, and its last checkpoint.

Layout from PostgreSQL's catalog/pg_control.h. All fields read here stand at the
same offsets in versions 14 to 18; only the offset of the checksum differs.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import Any, Self

from bbcache.arguments import check_passable
from bbcache.errors import MissingExtraError, PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.pgdata.regular_file import read_regular
from bbcache.postgres.wal.page import (
    PAGE_SIZE_BYTES,
    WalError,
    check_segment_size,
    record_end_lsn,
)

try:
    import google_crc32c
except ImportError as error:
    raise MissingExtraError("bbcache.postgres cannot be imported", "postgres", error) from error


CONTROL_FILE_SIZE_BYTES = 8192
CHECKPOINT_RECORD_SIZE_BYTES = 114  # header 24, data header 2, CheckPoint 88

_VERSIONS = struct.Struct("<8xII")
_MAJOR_VERSIONS = {
    202107181: 14,
    202209061: 15,
    202307071: 16,
    202406281: 17,
    202506291: 18,
}
_CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}  # by pg_control_version
_CRC = struct.Struct("<I")
_FIELDS = struct.Struct(
    "<QII"  # system_identifier, pg_control_version, catalog_version_no
    "I4xq"  # state, time
    "Q"  # checkPoint
    "QII8xQ32xq24x"  # checkPointCopy: redo, timelines, nextXid, time
    "Q8xQ12x"  # minRecoveryPoint, backupStartPoint
    "i40x"  # wal_level
    "IIII20xI"  # four sizes, data_checksum_version
)
_READ_ATTEMPTS = 10
_READ_PAUSE_S = 0.001


class ControlFileError(PostgresError):
    """A pg_control that cannot be read, or is not one of PostgreSQL 14 to 18.

    Attributes:
        path: the file, as the caller named it.
        reason: the fault.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"control file {path}: {reason}")
        self.path = path
        self.reason = reason


class ControlFileChecksumError(ControlFileError):
    """The checksum does not match: damaged, or read while the server wrote it."""


class ClusterState(enum.IntEnum):
    """The state of the server when it last wrote pg_control (DBState)."""

    STARTUP = 0
    SHUT_DOWN = 1
    SHUT_DOWN_IN_RECOVERY = 2
    SHUTTING_DOWN = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


class WalLevel(enum.IntEnum):
    """The amount of information in the WAL (WalLevel in access/xlog.h)."""

    MINIMAL = 0
    REPLICA = 1
    LOGICAL = 2


# The types of the values of _FIELDS and of the checksum, in the order of ControlFile's fields.
_FIELD_TYPES: tuple[type[Any], ...] = (
    *(int, int, int),
    *(ClusterState, int),
    Lsn,
    *(Lsn, int, int, int, int),
    *(Lsn, Lsn),
    WalLevel,
    *(int, int, int, int, int),
    int,
)


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The content of a pg_control. Immutable, so thread-safe.

    Attributes:
        system_identifier: the cluster's number, shared by its copies.
        pg_control_version: the version of the file's layout.
        catalog_version_no: the version of the system catalogs.
        state: the state of the server.
        time: when the file was written, in seconds since 1970.
        checkpoint_lsn: where the record of the latest checkpoint starts.
        redo_lsn: where recovery from it starts.
        tli: the timeline (TimeLineID) of the latest checkpoint.
        prev_tli: the timeline before it, equal unless the checkpoint began a new one.
        next_xid: the next transaction id, with its epoch in the upper 32 bits.
        checkpoint_time: when the checkpoint was made, in seconds since 1970.
        min_recovery_lsn: the least position that archive recovery must reach; 0 if none.
        backup_start_lsn: the redo point of the backup being recovered; 0 if none.
        wal_level: the server's setting of that name.
        block_size_bytes: the size of a data page.
        relation_segment_blocks: the pages of one file of a relation.
        wal_block_size_bytes: the size of a WAL page, always 8192.
        wal_segment_size_bytes: the size of a WAL segment.
        data_checksum_version: 0 if data pages have no checksums.
        crc: the CRC-32C of the file.
    """

    system_identifier: int
    pg_control_version: int
    catalog_version_no: int
    state: ClusterState
    time: int
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    tli: int
    prev_tli: int
    next_xid: int
    checkpoint_time: int
    min_recovery_lsn: Lsn
    backup_start_lsn: Lsn
    wal_level: WalLevel
    block_size_bytes: int
    relation_segment_blocks: int
    wal_block_size_bytes: int
    wal_segment_size_bytes: int
    data_checksum_version: int
    crc: int

    @classmethod
    def parse(cls, data: bytes, path: str = "pg_control") -> Self:
        """Read the content of a pg_control.

        Args:
            data: the whole file.
            path: its name for error messages.

        Raises:
            ControlFileChecksumError: the checksum does not match.
            ControlFileError: wrong size, another byte order, another version than
                PostgreSQL 14 to 18, or an impossible value.
        """
        crc = _check(data, path)
        try:
            raw = (*_FIELDS.unpack_from(data), crc)
            control = cls(*(make(value) for make, value in zip(_FIELD_TYPES, raw, strict=True)))
            check_segment_size(control.wal_segment_size_bytes)
        except (ValueError, WalError) as error:
            raise ControlFileError(path, str(error)) from None
        if control.wal_block_size_bytes != PAGE_SIZE_BYTES:
            raise ControlFileError(
                path, f"WAL pages have {control.wal_block_size_bytes} bytes, not {PAGE_SIZE_BYTES}"
            )
        return control

    @classmethod
    def read(
        cls,
        pgdata_dir: str | os.PathLike[str],
        *,
        attempts: int = _READ_ATTEMPTS,
        pause: Callable[[float], object] = sleep,
    ) -> Self:
        """Read ``global/pg_control`` of a data directory.

        A running server may write the file at the same moment, so one whose checksum
        does not match is read again a few times.

        Args:
            pgdata_dir: the data directory.
            attempts: how often to read at most.
            pause: called with the seconds to wait (1 ms) before another attempt.

        Raises:
            ControlFileChecksumError: the checksum matched in no attempt.
            ControlFileError: the file is missing or unreadable, or as for `parse`.
        """
        check_passable("the data directory", pgdata_dir, PostgresError)
        path = os.path.join(os.fspath(pgdata_dir), "global", "pg_control")
        for _ in range(attempts - 1):
            try:
                return cls.parse(_read_file(path), path)
            except ControlFileChecksumError:
                pause(_READ_PAUSE_S)
        return cls.parse(_read_file(path), path)

    @property
    def major_version(self) -> int:
        """The major version of PostgreSQL, 14 to 18."""
        return _MAJOR_VERSIONS[self.catalog_version_no]

    @property
    def checkpoint_end_lsn(self) -> Lsn:
        """The canonical end of the latest checkpoint's record.

        In state SHUT_DOWN the WAL ends there. In any other state the WAL goes on.
        """
        return record_end_lsn(
            self.checkpoint_lsn, CHECKPOINT_RECORD_SIZE_BYTES, self.wal_segment_size_bytes
        )


def _read_file(path: str) -> bytes:
    try:
        return read_regular(path, CONTROL_FILE_SIZE_BYTES + 1)
    except FileNotFoundError:
        hint = "hint: Name a PostgreSQL data directory."
        raise ControlFileError(path, f"there is no such file\n{hint}") from None
    except OSError as error:
        raise ControlFileError(path, f"cannot be read: {error.strerror}") from error


def _check(data: bytes, path: str) -> int:
    """Check size, byte order, version and checksum; return the checksum."""
    if len(data) != CONTROL_FILE_SIZE_BYTES:
        has = "more" if len(data) > CONTROL_FILE_SIZE_BYTES else f"{len(data)} bytes"
        raise ControlFileError(path, f"has {has}, not {CONTROL_FILE_SIZE_BYTES} bytes")
    control_version, catalog_version = _VERSIONS.unpack_from(data)
    crc_offset = _CRC_OFFSETS.get(control_version)
    if crc_offset is None:
        raise ControlFileError(path, _unknown_version(control_version))
    crc: int = _CRC.unpack_from(data, crc_offset)[0]
    if google_crc32c.value(data[:crc_offset]) != crc:
        raise ControlFileChecksumError(path, "the checksum does not match: the file is damaged")
    if catalog_version not in _MAJOR_VERSIONS:
        raise ControlFileError(
            path,
            f"catalog version {catalog_version} is not of PostgreSQL 14 to 18",
        )
    return crc


def _unknown_version(control_version: int) -> str:
    swapped = int.from_bytes(control_version.to_bytes(4, "little"), "big")
    if swapped in _CRC_OFFSETS:
        return "was written on a machine of the other byte order"
    return f"version {control_version} is not one of PostgreSQL 14 to 18 ({[*_CRC_OFFSETS]})"
