"""The records of a run: kept for the report, and appended to a file as they come.

A results file has one JSON object a line, each with a ``kind``:

- ``run`` opens a run: when, how much is measured, the machine, versions;
- ``bar``: a ratio with every sample of both sides (`benchmarks.bars.Outcome`);
- ``codec``: time, size and decompression of one codec on one input;
- ``latency``: quantiles of the latencies of one contender;
- ``growth``: the latency of a call, by the number of entries;
- ``note``: a contender that was left out, and the reason.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    Record = dict[str, Any]


class Results:
    """The records of one run. For one thread.

    Args:
        path: the file to which they are appended; None for none.

    Attributes:
        records: all so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.records: list[Record] = []

    def add(self, kind: str, **fields: object) -> None:
        """Add a record.

        Raises:
            OSError: the file cannot be written.
        """
        record = {"kind": kind, **fields}
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def read_results(path: Path) -> list[Record]:
    """Return the records of the last run in a file.

    Raises:
        ConfigError: it is not a results file.
        OSError: it cannot be read.
    """
    try:
        records: list[Record] = [json.loads(line) for line in path.read_text().splitlines()]
        starts = [number for number, each in enumerate(records) if each["kind"] == "run"]
        return records[starts[-1] :]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a results file of `pytest benchmarks/ --results`: {error!r}"
        ) from error
