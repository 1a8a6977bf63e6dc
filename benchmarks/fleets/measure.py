"""The figures of all policies on all fleets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bbcache.eviction import ReturnRate
from benchmarks.fleets import kernel, product
from benchmarks.fleets.fleets import make_fleet
from benchmarks.fleets.kernel import Footprint, Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.fleets.fleets import Fleet

    Row = dict[str, Any]

SHARES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the living timelines, as limits
SHARE: Final = 0.1  # of the goals
SEEDS: Final = (1, 2, 3)
_DRAWS: Final = 60  # of the true law for each stop, for the oracle


def measure(names: Iterable[str], seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Run every policy of the kernel over fleets.

    Args:
        names: keys of `RECIPES`.
        seeds: of the dice.

    Returns:
        A row for each fleet, limit, share and policy, with means over the seeds.
    """
    return [row for name in names for row in _mean(_of_fleet(name, seeds))]


def measure_shares(names: Iterable[str], seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Like `measure`, of limits of entries alone and without the oracle, which takes long."""
    found = []
    for name in names:
        rows = [row for seed in seeds for row in _by_share(make_fleet(name, seed), SHARES)]
        found += _mean(rows)
    return found


def measure_product(names: Iterable[str]) -> list[Row]:
    """Run the product's own code over fleets, at one limit and with one seed."""
    found = []
    for name in names:
        fleet = make_fleet(name, SEEDS[0])
        begin_s = time.process_time()
        gets, hits, _ = product.run(fleet, ReturnRate(fleet.max_entries(SHARE)))
        spent_s = time.process_time() - begin_s
        row = {"fleet": name, "events": len(fleet.times_s), "processor_s": round(spent_s, 2)}
        found.append({**row, "hit_rate": hits / max(1, gets)})
    return found


def _of_fleet(name: str, seeds: Iterable[int]) -> Iterator[Row]:
    for seed in seeds:
        fleet = make_fleet(name, seed, draws=_DRAWS)
        yield from _by_share(fleet, SHARES)
        yield _row(fleet, Policy.ORACLE, "entries", SHARE)
        for policy in Policy:
            if policy is not Policy.ORACLE:
                yield _row(fleet, policy, "bytes", SHARE)
                yield _row(fleet, policy, "both", SHARE)
        for footprint in (Footprint.ENTRIES, Footprint.BYTES):
            yield _row(fleet, Policy.RULE, "both", SHARE, footprint)


def _by_share(fleet: Fleet, shares: Iterable[float]) -> Iterator[Row]:
    for share in shares:
        for policy in Policy:
            if policy is not Policy.ORACLE:
                yield _row(fleet, policy, "entries", share)


def _row(
    fleet: Fleet, policy: Policy, limit: str, share: float, footprint: Footprint = Footprint.BOTH
) -> Row:
    run = kernel.run(
        fleet,
        policy,
        max_entries=None if limit == "bytes" else fleet.max_entries(share),
        max_size_bytes=None if limit == "entries" else fleet.max_size_bytes(share),
        footprint=footprint,
    )
    return {
        "fleet": fleet.name,
        "limit": limit,
        "share": share,
        "policy": policy.name.lower(),
        "footprint": str(footprint),
        "hit_rate": run.hit_rate,
        "size_share": run.size_share,
        "cost_share": run.cost_share,
        "builds_per_get": run.builds / max(1, run.gets),
        "vain_share": run.vain / max(1, run.builds),
    }


def _mean(rows: Iterable[Row]) -> list[Row]:
    """The means of the rows that differ by their seeds alone."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        what = (row[name] for name in ("fleet", "limit", "share", "policy", "footprint"))
        groups.setdefault(tuple(what), []).append(row)
    return [
        {
            name: float(np.mean([each[name] for each in group])) if name != "share" else value
            for name, value in group[0].items()
            if not isinstance(value, str)
        }
        | {name: value for name, value in group[0].items() if isinstance(value, str)}
        for group in groups.values()
    ]
