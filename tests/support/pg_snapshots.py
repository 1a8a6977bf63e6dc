"""Snapshots that the tests of `bbcache.testing.postgres` share, and what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.testing.postgres import snapshot

if TYPE_CHECKING:
    from bbcache.testing.postgres import Database

HERE: Final = Path(__file__).name
NAMES: Final = ("ann", "bob")


@snapshot(inputs=[HERE])
def app(db: Database) -> None:
    """Two accounts."""
    db.psql("CREATE TABLE account (id serial PRIMARY KEY, name text)")
    db.psql("INSERT INTO account (name) VALUES ('ann'), ('bob')")


@snapshot(inputs=[HERE], version="failing")
def failing(db: Database) -> None:
    """A builder with a mistake in its SQL."""
    db.psql("CREATE TABLE t (i int); INSERT INTO nowhere VALUES (1)")
