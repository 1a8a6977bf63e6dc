"""Last write, patch, fsync, close, rename: asserted from the calls that were really made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from faults import mutations, power_loss, sync_order

if TYPE_CHECKING:
    from faults.harness import FaultHarness


def test_every_archive_is_made_in_order(harness: FaultHarness) -> None:
    """Each published file was synced after its last byte and renamed after that."""
    _, calls = power_loss.record_life(harness.benches[0])
    data_dir = harness.benches[0].directory / "cache"
    assert sync_order.published(calls, data_dir) >= 10
    assert sync_order.violations(calls, data_dir) == []


@pytest.mark.parametrize("mutation", mutations.ORDER)
def test_a_step_dropped_or_moved_is_found(harness: FaultHarness, mutation: str) -> None:
    """The check can fail: a cache without the step, or with another order, is found out."""
    _, calls = power_loss.record_life(harness.benches[0], mutation)
    data_dir = harness.benches[0].directory / "cache"
    assert sync_order.published(calls, data_dir) >= 5
    assert len(sync_order.violations(calls, data_dir)) >= 5
