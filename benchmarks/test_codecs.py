"""Compressors beside ISA-L level 2: time, and size of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.bench.codecs import CODECS, REFERENCE, Codec, decompress

if TYPE_CHECKING:
    from bbcache.bench.inputs import Inputs
    from benchmarks.conftest import Bench

_SLOW = [("libdeflate-12", "full")]  # over half a minute a round


@pytest.mark.timeout(900)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("name", ["lean", "full"])
def test_codec(
    bench: Bench, inputs: Inputs, codec: Codec, name: str, pytestconfig: pytest.Config
) -> None:
    """A whole input in memory to one gzip member in memory."""
    bench.label(f"codecs, {name}", codec.name, is_reference=codec == REFERENCE)
    if (codec.name, name) in _SLOW and not pytestconfig.getoption("--bench-slow"):
        pytest.skip(f"{codec.name} on {name} takes long: give --bench-slow")
    compress, tarball = codec.load(), inputs.tarball(name)
    archive = bench.run(lambda: compress(tarball))
    bench.size(len(archive))
    assert decompress(archive) == tarball
