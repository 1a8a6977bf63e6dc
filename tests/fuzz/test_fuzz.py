"""Malformed and mutated protocol input, a few thousand of it: `run.py` has a million.

How much there was, and how far it got, is printed, which ``-s`` shows.
"""

from __future__ import annotations

from operator import le
from typing import TYPE_CHECKING

import pytest
from fuzz.engines import random_inputs
from fuzz.harness import FuzzHarness
from fuzz.scripts import ClientKind, Script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_service import wire
from support.helpers import wait_until

from bbcache.page_service.auth.permission import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Long enough for a few messages, which one byte can stand for.
INPUTS = st.binary(max_size=60)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzHarness]:
    """One harness for all examples: what each leaves behind would add up."""
    with FuzzHarness(tmp_path_factory.mktemp("fuzz")) as harness:
        harness.play(b"", is_over_tcp=True)
        yield harness
        print(dict(harness.counts), end="")  # noqa: T201 - the counts are a result


@settings(
    max_examples=2000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
@given(data=INPUTS)
def test_anything(harness: FuzzHarness, data: bytes) -> None:
    """No input breaks a promise."""
    harness.play(data)


def test_anything_over_tcp(harness: FuzzHarness) -> None:
    """Nor by a whole service, which has as many threads and descriptors as before."""
    inputs = random_inputs(seed=1)
    for _ in range(100):
        harness.play(next(inputs), is_over_tcp=True)
    threads, descriptors = harness.traces()
    for _ in range(300):
        harness.play(next(inputs), is_over_tcp=True)
    most = threads, descriptors + 2  # what Python opens for itself
    wait_until(lambda: all(map(le, harness.traces(), most)))  # one may be on its way out


def test_what_is_played_goes_deep(harness: FuzzHarness) -> None:
    """Scripts get past the handshake, are understood, and get archives; some over TCP."""
    harness.counts.clear()
    inputs = random_inputs(seed=2)
    for number in range(400):
        harness.play(next(inputs), is_over_tcp=number % 10 == 0)
    for name in ("CommandGiven", "commands understood", "archives given", "errors told"):
        assert harness.counts[name] >= 10, harness.counts
    assert harness.counts["over TCP"] == 40


@pytest.mark.parametrize("client", [ClientKind.STRANGER, ClientKind.NEIGHBOUR])
def test_a_leak_would_be_noticed(
    harness: FuzzHarness, monkeypatch: pytest.MonkeyPatch, client: ClientKind
) -> None:
    """Where everyone is let in, the checks find out."""
    query = next(each for each in harness.vocabulary.messages if b"basebackup" in each)
    script = Script(client, [wire.startup(user="u"), wire.password("x"), query], 0)
    harness.serve(script)
    monkeypatch.setattr("bbcache.page_service.auth.tokens.TokenKeys.verify", lambda *_: EVERYTHING)
    with pytest.raises(AssertionError):
        harness.serve(script)
    with pytest.raises(AssertionError):
        harness.connect(script)
