"""A timeline that is attached is asked of the second tier, at its tip, before its first start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from support.cache_helpers import DEADLINE_S

from bbcache import TierConfig
from bbcache.pageserver.rescan import Rescanner
from bbcache.testing import MemoryTier

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Lab

    from bbcache.postgres.server.binaries import PostgresBinaries

_PATIENT: Final = TierConfig(
    url="file:///of-another-make", allow_unsigned=True, fetch_timeout=DEADLINE_S
)
pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("is_rescan", [False, True], ids=["start", "rescan"])
def test_a_tenant_that_moves_is_warm(
    newest_pg: PostgresBinaries, make_lab: Callable[[PostgresBinaries], Lab], *, is_rescan: bool
) -> None:
    """Its directory moves to another node, whose first open is a hit at the same LSN."""
    old, new = make_lab(newest_pg), make_lab(newest_pg)
    old.tier = new.tier = MemoryTier()
    old.open(tier=_PATIENT)
    address = old.add_timeline()
    lsn = old.timeline(address).get_last_record_lsn()
    old.pageserver.cache.send_prepare(old.shard(address), address.timeline_id, lsn)
    assert old.pageserver.cache.wait_idle(DEADLINE_S)
    old.close()
    if is_rescan:
        new.open(tier=_PATIENT)
    tenant = old.root / "tenants" / str(address.tenant_id)
    (new.root / "tenants").mkdir(exist_ok=True)
    tenant.rename(new.root / "tenants" / tenant.name)
    if is_rescan:
        Rescanner(new.pageserver.tenants).rescan()
    else:
        new.open(tier=_PATIENT)
    assert new.pageserver.cache.wait_idle(DEADLINE_S)
    found = new.pageserver.open_basebackup(*address)
    with found.file:
        assert (found.is_hit, found.lsn) == (True, lsn)
    assert len(new.tier.offers) == 1
