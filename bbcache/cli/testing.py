"""``bbcache testing``: list and remove what `bbcache.testing.postgres` keeps."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

    from bbcache.testing.postgres import PostgresOptions
    from bbcache.testing.postgres.store import StoredSnapshot

_DESCRIPTION: Final = """\
List or remove what the PostgreSQL servers for tests keep: snapshots in a cache directory,
spare data directories in memory, servers that `pytest --pg-keep` has left running.
"""
_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``testing`` command."""
    parser = commands.add_parser(
        "testing",
        help="list or remove snapshots of PostgreSQL for tests",
        description=_DESCRIPTION,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, text in (
        ("ls", run_ls, "list snapshots, spares and running servers"),
        ("clean", run_clean, "remove snapshots and spares, and end servers that were kept"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text.capitalize()}.")
        action.add_argument(
            "--cache-dir",
            metavar="DIR",
            help="the snapshots (default: $BBCACHE_TESTING_DIR, else ~/.cache/bbcache/testing)",
        )
        action.add_argument(
            "--run-dir",
            metavar="DIR",
            help="where servers run, where bbcache_pg_run_dir names it",
        )
        action.add_argument("--json", action="store_true", help="print JSON")
        action.set_defaults(run=run)


def run_ls(options: argparse.Namespace) -> bool:
    """Print what there is."""
    from bbcache.testing.postgres.inventory import Inventory  # noqa: PLC0415 - needs an extra

    found = Inventory.take(_options(options))
    if options.json:
        print(json.dumps(found.document(), indent=2))
        return True
    total_mb = sum(each.size_bytes for each in found.snapshots) / 1e6
    print(f"{found.cache_dir}: {_count(len(found.snapshots), 'snapshot')}, {total_mb:.1f} MB")
    now_s = time.time()
    for each in found.snapshots:
        print(f"    {_row(each, now_s)}")
    for place in found.places:
        spares = _count(len(place.spares), "spare")
        print(f"{place.directory}: {spares}, {_count(len(place.runs), 'run')}")
    return True


def run_clean(options: argparse.Namespace) -> bool:
    """Remove it, and print what was removed."""
    from bbcache.testing.postgres.inventory import Inventory  # noqa: PLC0415 - needs an extra

    removed = Inventory.take(_options(options)).remove()
    if options.json:
        print(json.dumps(removed))
    else:
        counted = [_count(count, name) for name, count in removed.items()]
        print(f"removed {', '.join(counted)}; runs that have not ended stay")
    return True


def _options(options: argparse.Namespace) -> PostgresOptions:
    from bbcache.testing.postgres import PostgresOptions  # noqa: PLC0415 - needs an extra

    return PostgresOptions(cache_dir=options.cache_dir, run_dir=options.run_dir)


def _row(stored: StoredSnapshot, now_s: float) -> str:
    return (
        f"{stored.key}  PostgreSQL {stored.key.version}  {stored.size_bytes / 1e6:.1f} MB  "
        f"used {_ago(now_s - stored.used_at_s)}"
    )


def _ago(age_s: float) -> str:
    for unit_s, name in _UNITS:
        if age_s >= unit_s:
            return f"{_count(int(age_s // unit_s), name)} ago"
    return "just now"


def _count(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
