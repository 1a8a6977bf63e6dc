"""What goes wrong between a test and its PostgreSQL."""

from __future__ import annotations

from bbcache.errors import PostgresError


class SnapshotError(PostgresError):
    """A snapshot is not defined, cannot be fingerprinted, or its builder has failed."""


class NoRoomError(PostgresError):
    """No place has room for a server's data directory."""
