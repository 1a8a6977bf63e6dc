"""The name of the superuser of initdb, read from the files of a data directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.catalog_rows import read_catalog

_PG_AUTHID_OID: Final = 1260
_BOOTSTRAP_SUPERUSER_OID: Final = 10


def read_superuser(pgdata_dir: Path) -> str:
    """Return the name of the role with OID 10, which initdb creates.

    A rename since the last checkpoint is not seen.

    Args:
        pgdata_dir: the data directory, with a server on it or without one.

    Raises:
        PostgresError: the files cannot be read, or there is no such role in them.
    """
    for row in read_catalog(pgdata_dir, _PG_AUTHID_OID):
        if row.oid == _BOOTSTRAP_SUPERUSER_OID and row.is_current:
            try:
                return row.name.decode()
            except UnicodeDecodeError as error:
                raise PostgresError(
                    f"the superuser of {pgdata_dir} has a name that is not UTF-8: {row.name!r}"
                ) from error
    raise PostgresError(f"{pgdata_dir} has no role with OID {_BOOTSTRAP_SUPERUSER_OID}")
