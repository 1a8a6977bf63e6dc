"""The harness on which the fault tests run, made once a session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest
from faults import matrix, shim
from faults.harness import FaultHarness
from faults.life import STORIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.calls import Call

_JOBS: Final = 2


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler; tests that want one are skipped without, or fail where it is required."""
    path = shim.find_compiler()
    if path is None:
        if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
            pytest.fail("there is no C compiler, but BBCACHE_REQUIRE_TOOLS is set")
        pytest.skip(f"there is no C compiler: {', '.join(shim.COMPILERS)}")
    return path


@pytest.fixture(scope="session")
def harness(compiler: str) -> Iterator[FaultHarness]:
    """The shim, and warm processes."""
    with FaultHarness(compiler, _JOBS) as harness:
        yield harness


@pytest.fixture(scope="session")
def life_calls(harness: FaultHarness) -> dict[str, list[Call]]:
    """The calls of a life without fault, by its story."""
    return {story: matrix.fault_free_calls(harness.benches[0], story) for story in STORIES}
