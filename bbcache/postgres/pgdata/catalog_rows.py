"""The rows of shared catalogs, read from the files of a data directory without a server.

Facts from PostgreSQL's relmapper.c, bufpage.h, itemid.h and htup_details.h; pg_authid.h and
pg_tablespace.h: the first two columns of both catalogs are ``oid`` and a name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.regular_file import read_regular

_MAP_MAGIC: Final = 0x592717
_MAX_MAPPINGS: Final = 64
_MAP_SIZE_BYTES: Final = 524  # the largest of the versions
_MAX_CATALOG_BYTES: Final = 1 << 30  # of a file of a relation
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


class CatalogRow(NamedTuple):
    """A version of a row that was not rolled back, as far as the row itself shows.

    Attributes:
        oid: its OID.
        name: its name.
        is_current: whether no transaction has deleted or replaced it. False may be wrong after a
            rollback.
    """

    oid: int
    name: bytes
    is_current: bool


def read_catalog(pgdata_dir: Path, catalog_oid: int) -> list[CatalogRow]:
    """Return the rows of a shared catalog whose columns begin with an OID and a name.

    Changes since the last checkpoint are not seen.

    Args:
        pgdata_dir: the data directory, with a server on it or without one.
        catalog_oid: the OID of the catalog, such as 1260 for ``pg_authid``.

    Raises:
        PostgresError: its file cannot be read, or is of an unknown format.
    """
    directory = Path(pgdata_dir, "global")
    try:
        file_node = _file_node(
            read_regular(directory / "pg_filenode.map", _MAP_SIZE_BYTES), catalog_oid
        )
        data = read_regular(directory / str(file_node), _MAX_CATALOG_BYTES)
        pages = (data[at : at + _PAGE_SIZE_BYTES] for at in range(0, len(data), _PAGE_SIZE_BYTES))
        return [row for page in pages for row in _rows(page)]
    except (OSError, struct.error) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise PostgresError(
            f"the catalog {catalog_oid} in {directory} cannot be read: {what}"
        ) from error


def _file_node(data: bytes, catalog_oid: int) -> int:
    """Return the name of a catalog's file, which VACUUM FULL changes."""
    magic, count = struct.unpack_from("<II", data)
    if magic != _MAP_MAGIC or count > _MAX_MAPPINGS:
        raise struct.error("pg_filenode.map has an unknown format")
    nodes: dict[int, int] = dict(struct.iter_unpack("<II", data[8 : 8 + 8 * count]))
    return nodes.get(catalog_oid, catalog_oid)


def _rows(page: bytes) -> Iterator[CatalogRow]:
    (lower,) = _PD_LOWER.unpack_from(page)
    for at in range(_PAGE_HEADER_SIZE_BYTES, lower, _LINE_POINTER.size):
        (pointer,) = _LINE_POINTER.unpack_from(page, at)
        offset, flags = pointer & 0x7FFF, pointer >> 15 & 0x3
        if flags != _LP_NORMAL:
            continue
        xmax, infomask, header_size_bytes = _TUPLE_HEADER.unpack_from(page, offset)
        if infomask & _HEAP_XMIN_STATE == _HEAP_XMIN_INVALID:
            continue
        oid, name = _OID_AND_NAME.unpack_from(page, offset + header_size_bytes)
        is_current = xmax == 0 or bool(infomask & _HEAP_XMAX_HARMLESS)
        yield CatalogRow(oid, name.partition(b"\0")[0], is_current)
