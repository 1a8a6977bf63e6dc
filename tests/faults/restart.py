"""The start after a life: without faults, and all the invariants must hold.

What may be served follows from the directory alone: an entry's file that has the right
bytes must be a hit, and any other must not be.
"""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any, Final

from faults import fixed_host
from faults.fixed_host import LSN_D
from faults.life import ALWAYS_FULL, PATIENCE_S, SHARD, Life, Witness
from support.helpers import samples

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NEW: Final = (fixed_host.STEADY, fixed_host.REFRESHED, fixed_host.UNHEARD)


def check(
    data_dir: Path,
    witness: Witness,
    *,
    survivors: Iterable[str] = fixed_host.SURVIVORS,
    **settings: Any,
) -> None:
    """Start on what a life left, and hold it against the invariants.

    Args:
        data_dir: the directory.
        witness: records everything that must not be.
        survivors: timelines of which some entry must have outlived everything, unless the
            cache was always full.
        settings: of the cache.
    """
    before = {found: path.read_bytes() for found, path in fixed_host.entry_files(data_dir).items()}
    tips = {found.name: found.lsn for found in sorted(before)}  # the newest of each
    with witness.nothing_raised("a start without faults"):
        life = Life(data_dir, tips, witness, **settings)
        witness.expect(life.cache.wait_initialized(PATIENCE_S), "the directory is never loaded")
        held = life.held()
        newest = {fixed_host.Found(name, lsn) for name, lsn in tips.items()}
        witness.expect(set(held) == newest, f"held {set(held)}, on disk {newest}")
        is_full = bool(os.environ.get(ALWAYS_FULL))
        lost = set[str]() if is_full else set(survivors) - {found.name for found in held}
        witness.expect(not lost, f"entries lost: {lost}")
        life.wait_idle()  # damaged habits are removed after the entries are known
        life.check_accounting()
        bad = _check_served(life, before)
        life.wait_idle()
        _check_rebuilt(life, bad)
        check_evidence(life)
        _check_prepares(life)
        life.close()


def _check_served(life: Life, before: dict[fixed_host.Found, bytes]) -> list[str]:
    """A hit is right, and what is right is a hit; returns the names of what was bad."""
    bad = []
    for name, lsn in list(life.tips.items()):
        data = life.read(name, lsn)
        is_right = fixed_host.is_right(before[fixed_host.Found(name, lsn)], name, lsn)
        if is_right:
            life.witness.expect(data is not None, f"{name} at {lsn} is good, but was not served")
        else:  # where it was served all the same, the reader has said so
            bad.append(name)
    return bad


def _check_rebuilt(life: Life, bad: list[str]) -> None:
    life.clean_up()
    life.check_accounting()
    for name in bad:
        data = life.read(name, life.tips[name])
        life.witness.expect(data is not None, f"{name} was bad and was not built again")


def check_evidence(life: Life) -> None:
    """Nothing in quarantine is good."""
    for file in os.listdir(life.dir / "quarantine"):
        found = fixed_host.parse_name(file.partition("Z_")[2])
        if found is not None:
            content = (life.dir / "quarantine" / file).read_bytes()
            is_right = fixed_host.is_right(content, found.name, found.lsn)
            life.witness.expect(not is_right, f"a good archive is in quarantine: {file}")


def _check_prepares(life: Life) -> None:
    """Whatever happened before, it prepares and refreshes as ever."""
    fresh, _ = fixed_host.make_host(dict.fromkeys(_NEW, LSN_D))
    tenant, known = fresh.tenants[SHARD], life.host.tenants[SHARD]
    assert tenant is not None
    assert known is not None
    known.timelines.update(tenant.timelines)
    for name in _NEW:
        life.tips[name] = LSN_D
        life.timelines[name] = known.timelines[fixed_host.timeline_id(name)]
    life.send(_NEW)
    life.wait_idle()
    for name in _NEW:
        data = life.read(name, life.tips[name])
        is_there = data is not None and gzip.decompress(data) == fixed_host.tarball(name, LSN_D)
        life.witness.expect(is_there, f"{name} cannot be prepared")
    failed = samples(life.registry)["pageserver_basebackup_cache_prepare_total{result=error}"]
    life.witness.expect(not failed, f"{failed} prepares failed without a fault")
    life.clean_up()
    life.check_accounting()
