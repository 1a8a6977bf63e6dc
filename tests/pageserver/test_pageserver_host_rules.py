"""The reference host keeps the rules of `bbcache.host`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.testing import check_host

if TYPE_CHECKING:
    from pageserver.conftest import Lab

pytestmark = pytest.mark.postgres


def test_the_reference_host_keeps_the_rules(lab: Lab) -> None:
    """A pageserver with a timeline of a real cluster passes what an embedder's host has to."""
    lab.open()
    lab.add_timeline()
    assert lab.pageserver is not None
    check_host(lab.pageserver.tenants)
