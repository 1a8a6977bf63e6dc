"""Every codec on both inputs: time, size of the output, and decompression."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from benchmarks.bars import case
from benchmarks.codecs import CODECS, REFERENCE, decompress
from benchmarks.rounds import Rounds, timed
from benchmarks.workspace import LONG_CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.codecs import Codec
    from benchmarks.results import Results
    from benchmarks.workspace import Workspace

# What takes over a second a round on full. A quick run keeps zlib 6, the default of gzip.
SLOW: Final = LONG_CODECS | {"zlib 6"}


@case("codecs, lean")
def test_lean(workspace: Workspace, rounds: Rounds, results: Results) -> None:
    """Codecs from memory to memory, on lean."""
    _measure(workspace, rounds, results, "lean", CODECS)


@case("codecs, full")
def test_full(workspace: Workspace, rounds: Rounds, results: Results) -> None:
    """Codecs from memory to memory, on full, but for those that take seconds."""
    _measure(workspace, rounds, results, "full", [each for each in CODECS if each.name not in SLOW])


@case("codecs, full, slow")
def test_full_slow(workspace: Workspace, rounds: Rounds, results: Results) -> None:
    """The slow codecs beside the reference."""
    skipped = workspace.counts.skipped_codecs
    slow = [each for each in CODECS if each.name in SLOW - skipped]
    _measure(workspace, rounds, results, "full", [REFERENCE, *slow])
    if skipped:
        names = ", ".join(each.name for each in CODECS if each.name in skipped)
        results.add("note", text=f"left out on full, since they take long: {names}")


def _measure(
    workspace: Workspace,
    rounds: Rounds,
    results: Results,
    input_name: str,
    codecs: Sequence[Codec],
) -> None:
    """Measure codecs in turn, then the decompression of their archives, and record both."""
    tarball = workspace.inputs.tarball(input_name)
    archives: dict[str, bytes] = {}

    def enter(codec: Codec) -> Callable[[], float]:
        compress = codec.load()

        def run() -> None:
            archives[codec.name] = compress(tarball)

        return timed(run)

    for codec in codecs:
        rounds.add(codec.name, lambda codec=codec: enter(codec))  # type: ignore[misc]
    rounds.run(workspace.counts.pace._replace(least=1))
    reading = Rounds()
    for name, archive in archives.items():
        assert decompress(archive) == tarball, name
        reading.add(name, lambda archive=archive: timed(lambda: decompress(archive)))  # type: ignore[misc]
    reading.run(workspace.counts.pace._replace(least=1))
    reference_s = statistics.median(rounds.samples[REFERENCE.name])
    for name, samples in rounds.samples.items():
        results.add(
            "codec",
            input=input_name,
            input_bytes=len(tarball),
            codec=name,
            seconds=statistics.median(samples),
            in_isal_2=statistics.median(samples) / reference_s,
            size_bytes=len(archives[name]),
            decompress_seconds=statistics.median(reading.samples[name]),
        )
