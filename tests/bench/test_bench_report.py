"""A run as JSON and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import make_report

from bbcache.bench.report import Report, read_report
from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_lost_on_the_way_to_json_and_back() -> None:
    """Machine, versions, verdicts, every sample, and what the plots show."""
    report = make_report()
    again = Report.from_json(report.to_json(), "memory")
    assert again == report
    assert again.to_json() == report.to_json()


def test_json_is_easy_to_use() -> None:
    """A bar is one flat object with its samples in it."""
    bars = json.loads(make_report().to_json())["bars"]
    assert bars[0]["name"] == "prepare-a"
    assert bars[0]["verdict"] == "pass"
    assert bars[0]["what_samples"] == [1.0, 1.1, 0.9]
    assert bars[1]["verdict"] == "peer missing"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"format": 99}', b'{"format": 1, "started_at": 3}', b"\xff", b"null"],
)
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """Whatever is in it: the error names the file."""
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.json"):
        read_report(path)
