"""Records in a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import make_records

from bbcache.errors import ConfigError
from benchmarks.results import Results, read_results

if TYPE_CHECKING:
    from pathlib import Path


def test_records_are_appended_as_they_come(tmp_path: Path) -> None:
    """One JSON object a line, each there at once; the last run of a file is read."""
    path, records = tmp_path / "results.jsonl", json.loads(json.dumps(make_records()))
    for _ in range(2):
        results = Results(path)
        for number, record in enumerate(records, 1):
            results.add(**record)
            assert json.loads(path.read_text().splitlines()[-1]) == record
            assert len(results.records) == number
    assert read_results(path) == records


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "bar"}', "3", "null", "no"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    """The error names the file, whatever its content."""
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"results\.jsonl is not a results file"):
        read_results(path)
