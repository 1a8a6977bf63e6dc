"""The name of the superuser that initdb has made, read from the files of a data directory.

Facts from PostgreSQL's relmapper.c, bufpage.h, itemid.h, htup_details.h and pg_authid.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError

_PG_AUTHID_OID: Final = 1260
_BOOTSTRAP_SUPERUSER_OID: Final = 10
_MAP_MAGIC: Final = 0x592717
_MAX_MAPPINGS: Final = 64
_PAGE_SIZE_BYTES: Final = 8192
_PAGE_HEADER_SIZE_BYTES: Final = 24
_PD_LOWER: Final = struct.Struct("<12xH")
_LINE_POINTER: Final = struct.Struct("<I")
_LP_NORMAL: Final = 1
_TUPLE_HEADER: Final = struct.Struct("<4xI12xHB")  # t_xmax, t_infomask, t_hoff
_OID_AND_NAME: Final = struct.Struct("<I64s")
_HEAP_XMIN_STATE: Final = 0x0300  # both bits: frozen
_HEAP_XMIN_INVALID: Final = 0x0200
_HEAP_XMAX_HARMLESS: Final = 0x0880  # invalid, or only a lock


def read_superuser(pgdata_dir: Path) -> str:
    """Return the name of the role with OID 10, which initdb makes.

    A rename that no checkpoint has written is not seen.

    Args:
        pgdata_dir: the data directory, with a server on it or without one.

    Raises:
        PostgresError: the files cannot be read, or there is no such role in them.
    """
    directory = Path(pgdata_dir, "global")
    try:
        file_node = _file_node((directory / "pg_filenode.map").read_bytes())
        data = (directory / str(file_node)).read_bytes()
        for start in range(0, len(data), _PAGE_SIZE_BYTES):
            for name in _superusers(data[start : start + _PAGE_SIZE_BYTES]):
                return name
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise PostgresError(f"the roles in {directory} cannot be read: {error}") from error
    raise PostgresError(f"{directory} has no role with OID {_BOOTSTRAP_SUPERUSER_OID}")


def _file_node(data: bytes) -> int:
    """Return the name of the file of pg_authid, which VACUUM FULL changes."""
    magic, count = struct.unpack_from("<II", data)
    if magic != _MAP_MAGIC or count > _MAX_MAPPINGS:
        raise struct.error("pg_filenode.map has an unknown format")
    nodes: dict[int, int] = dict(struct.iter_unpack("<II", data[8 : 8 + 8 * count]))
    return nodes.get(_PG_AUTHID_OID, _PG_AUTHID_OID)


def _superusers(page: bytes) -> Iterator[str]:
    """The names in the rows of one page that are live; of a live row there is one."""
    (lower,) = _PD_LOWER.unpack_from(page)
    for at in range(_PAGE_HEADER_SIZE_BYTES, lower, _LINE_POINTER.size):
        (pointer,) = _LINE_POINTER.unpack_from(page, at)
        offset, flags = pointer & 0x7FFF, pointer >> 15 & 0x3
        if flags != _LP_NORMAL:
            continue
        xmax, infomask, header_size_bytes = _TUPLE_HEADER.unpack_from(page, offset)
        was_inserted = infomask & _HEAP_XMIN_STATE != _HEAP_XMIN_INVALID
        was_deleted = xmax != 0 and not infomask & _HEAP_XMAX_HARMLESS
        oid, name = _OID_AND_NAME.unpack_from(page, offset + header_size_bytes)
        if oid == _BOOTSTRAP_SUPERUSER_OID and was_inserted and not was_deleted:
            yield name.partition(b"\0")[0].decode()
