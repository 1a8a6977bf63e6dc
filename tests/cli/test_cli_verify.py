"""``bbcache verify``, as a command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cache_helpers import Rig

from bbcache.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_good_directory_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a running cache, nothing but the counts is printed."""
    with Rig(tmp_path / "cache") as rig:
        rig.prepared()
        assert main(["verify", str(rig.dir)]) == 0
    assert capsys.readouterr().out == "1 good, 0 bad, 0 unreadable, 0 stray\n"


def test_a_bad_archive_is_listed_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, its size and the reason are named; nothing is moved unasked."""
    with Rig(tmp_path / "cache") as rig:
        path = rig.path(rig.prepared())
        path.write_bytes(b"bad")
        assert main(["verify", str(rig.dir)]) == 1
        assert path.exists()
    line, counts = capsys.readouterr().out.splitlines()
    assert line == f"bad: '{path}' (3 bytes): the file does not begin with a gzip header"
    assert counts == "0 good, 1 bad, 0 unreadable, 0 stray"


def test_quarantine_moves_it_and_the_next_run_is_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --quarantine a bad archive still exits with 1; after that all is good."""
    with Rig(tmp_path / "cache") as rig:
        rig.path(rig.prepared()).write_bytes(b"bad")
    assert main(["verify", "--quarantine", str(rig.dir)]) == 1
    assert capsys.readouterr().out.splitlines()[0].endswith(", moved to quarantine")
    assert main(["verify", str(rig.dir)]) == 0


def test_json_has_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json lists good files too, for scripts."""
    with Rig(tmp_path / "cache") as rig:
        path = rig.path(rig.prepared())
        (rig.dir / "stray").touch()
        assert main(["verify", "--json", str(rig.dir)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"good": 1, "bad": 0, "unreadable": 0, "stray": 1}
    assert [(f["path"], f["verdict"]) for f in document["files"]] == [
        (str(path), "good"),
        (str(rig.dir / "stray"), "stray"),
    ]


def test_no_directory_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be listed is an error that names it."""
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
