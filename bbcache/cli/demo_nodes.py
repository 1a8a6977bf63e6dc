"""The demo of the second tier: a tenant moves between two pageservers that share one store."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry

from bbcache.cli.demo_scenario import Scenario
from bbcache.config import BasebackupCacheConfig
from bbcache.pageserver import Pageserver, make_root
from bbcache.pageserver.rescan import Rescanner
from bbcache.tier import ObjectTier, TierConfig

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.cli.demo_scenario import Report
    from bbcache.ids import TenantId

_KEY_SIZE_BYTES: Final = 32
_TIMEOUT_S: Final = 60.0


class Node(NamedTuple):
    """One of the two pageservers, with its directory, tier and metrics."""

    root: Path
    pageserver: Pageserver
    tier: ObjectTier
    registry: CollectorRegistry
    rescanner: Rescanner


class TwoNodes(Scenario):
    """The steps of the demo with two nodes; the arguments are those of `Scenario`.

    Each compute node runs on the other pageserver than the one before. The tenant's directory
    moves there, and its basebackup is fetched before the start.
    """

    def run(self) -> Report:
        """Run all steps; raises as `Scenario.run`."""
        self.report.has_two_nodes = True
        make_root(self._directory)
        config = self._tier_config()
        with ExitStack() as opened:
            nodes = [
                self._open_node(opened, self._directory / name, config) for name in ("one", "two")
            ]
            self._progress("creating a tenant with one timeline (initdb)")
            tenant = nodes[0].pageserver.tenants.create_tenant()
            timeline_id = nodes[0].pageserver.create_timeline(tenant).timeline_id
            for number in range(1, self._round_count + 1):
                node, other = nodes if number % 2 else nodes[::-1]
                if number > 1:
                    self._progress(f"moving the tenant to node {node.root.name}")
                    self._move(tenant.tenant_id, other, node)
                there = node.pageserver.tenants.get_tenant(tenant.tenant_id)
                self._registry, self._open = node.registry, node.pageserver.open_basebackup
                self._play_round(node.pageserver, there, there.get_timeline(timeline_id), number)
                self._check(node.tier.wait_idle(_TIMEOUT_S), "the tier is still busy")
            self._progress("reading the metrics")
            self._read_tier(nodes)
        return self.report

    def _tier_config(self) -> TierConfig:
        store, key = self._directory / "store", self._directory / "tier.key"
        store.mkdir(mode=0o700, exist_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(_KEY_SIZE_BYTES))
        return TierConfig(url=store.as_uri(), key_files=(str(key),), fetch_timeout=_TIMEOUT_S)

    def _open_node(self, opened: ExitStack, root: Path, tier_config: TierConfig) -> Node:
        make_root(root)
        registry = CollectorRegistry()
        tier = ObjectTier(tier_config, registry)
        config = BasebackupCacheConfig(tier=tier_config)
        pageserver = opened.enter_context(
            Pageserver(root, self._binaries, config, registry, tier=tier)
        )
        # So that the directory is never empty, as if its file system were not mounted.
        pageserver.tenants.create_tenant()
        return Node(root, pageserver, tier, registry, Rescanner(pageserver.tenants))

    def _move(self, tenant_id: TenantId, old: Node, new: Node) -> None:
        """Move a tenant's directory, and let the new node warm it."""
        name = f"tenants/{tenant_id}"
        (old.root / name).rename(new.root / name)
        old.rescanner.rescan()
        new.rescanner.rescan()
        self._check(new.pageserver.cache.wait_idle(_TIMEOUT_S), "the cache is still busy")

    def _read_tier(self, nodes: list[Node]) -> None:
        """Check what the tier has done: one fetch a move, and one object that is left."""
        moves = self._round_count - 1
        for name, labels, wanted in (
            ("fetch_total", {"result": "hit"}, moves),
            ("upload_total", {"result": "stored"}, self._round_count),
            ("delete_total", {"result": "deleted"}, moves),
        ):
            full = f"bbcache_tier_{name}"
            values = [node.registry.get_sample_value(full, labels) or 0.0 for node in nodes]
            shown = f"{full}{{result={labels['result']}}}"
            self.report.metrics[shown] = found = sum(values)
            self._check(found == wanted, f"{shown} is {found}, not {wanted}")
        store = self._directory / "store"
        objects = [path for path in store.rglob("*") if path.is_file()]
        self._check(len(objects) == 1, f"the store has {len(objects)} objects, not one")
