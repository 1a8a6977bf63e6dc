"""The files that are kept from one run to the next, and their removal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bbcache.testing.postgres.options import PostgresOptions
from bbcache.testing.postgres.places import Place, cache_directory, existing_places
from bbcache.testing.postgres.run_directory import run_directories, sweep
from bbcache.testing.postgres.spares import remove_spares, spare_directories
from bbcache.testing.postgres.store import SnapshotStore, StoredSnapshot


@dataclass(frozen=True, slots=True)
class PlaceContents:
    """The contents of a place for servers.

    Attributes:
        place: the place.
        spares: spare data directories.
        runs: directories of processes that run, were kept, or have died.
    """

    place: Place
    spares: list[Path]
    runs: list[Path]

    @property
    def directory(self) -> Path:
        """The directory of the place."""
        return self.place.directory


@dataclass(frozen=True, slots=True)
class Inventory:
    """The kept files at one moment. Immutable, so thread-safe.

    Attributes:
        options: name the directories that were looked through.
        cache_dir: the directory of snapshots.
        snapshots: those in it, the last used first.
        places: the places for servers.
    """

    options: PostgresOptions
    cache_dir: Path
    snapshots: list[StoredSnapshot]
    places: list[PlaceContents]

    @classmethod
    def take(cls, options: PostgresOptions) -> Self:
        """Look through the directories now."""
        cache_dir = cache_directory(options)
        places = [
            PlaceContents(place, spare_directories(place), run_directories(place))
            for place in existing_places(options)
        ]
        store = SnapshotStore(cache_dir, options.max_size_bytes)
        return cls(options, cache_dir, store.list(), places)

    def document(self) -> dict[str, Any]:
        """Return all of it as values for JSON."""
        return {
            "cache_dir": str(self.cache_dir),
            "snapshots": [
                {
                    "name": each.key.name,
                    "postgres": each.key.version,
                    "fingerprint": each.key.digest.hex(),
                    "path": str(each.path),
                    "size_bytes": each.size_bytes,
                    "made_at_s": each.made_at_s,
                    "used_at_s": each.used_at_s,
                }
                for each in self.snapshots
            ],
            "places": [
                {
                    "directory": str(each.directory),
                    "is_memory": each.place.is_memory,
                    "spares": [path.name for path in each.spares],
                    "runs": [path.name for path in each.runs],
                }
                for each in self.places
            ],
        }

    def remove(self) -> dict[str, int]:
        """Remove all that is not in use; return how many of each kind."""
        store = SnapshotStore(self.cache_dir, self.options.max_size_bytes)
        for stored in self.snapshots:
            store.remove(stored)
        store.remove_leftovers()
        return {
            "snapshot": len(self.snapshots),
            "spare": sum(remove_spares(each.place, older_than_s=0) for each in self.places),
            "run": sum(sweep(each.place, with_kept=True) for each in self.places),
        }
