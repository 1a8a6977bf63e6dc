"""``bbcache verify``, as a command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import Harness

from bbcache.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def test_a_good_directory_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a running cache, nothing but the counts is printed."""
    with Harness(tmp_path / "cache") as harness:
        harness.prepared()
        assert main(["verify", str(harness.dir)]) == 0
    assert capsys.readouterr().out == "1 good, 0 bad, 0 unreadable, 0 foreign file\n"


def test_a_bad_archive_is_listed_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, its size and the reason are named; nothing is moved unasked."""
    with Harness(tmp_path / "cache") as harness:
        path = harness.path(harness.prepared())
        path.write_bytes(b"bad")
        assert main(["verify", str(harness.dir)]) == 1
        assert path.exists()
    line, counts = capsys.readouterr().out.splitlines()
    assert line == f"bad: '{path}' (3 bytes): the file does not begin with a gzip header"
    assert counts == "0 good, 1 bad, 0 unreadable, 0 foreign file"


def test_quarantine_moves_it_and_the_next_run_is_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --quarantine a bad archive still exits with 1; after that all is good."""
    with Harness(tmp_path / "cache") as harness:
        harness.path(harness.prepared()).write_bytes(b"bad")
    assert main(["verify", "--quarantine", str(harness.dir)]) == 1
    assert capsys.readouterr().out.splitlines()[0].endswith(", moved to quarantine")
    assert main(["verify", str(harness.dir)]) == 0


def test_json_has_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json lists good files too, for scripts."""
    with Harness(tmp_path / "cache") as harness:
        path = harness.path(harness.prepared())
        (harness.dir / "foreign file").touch()
        assert main(["verify", "--json", str(harness.dir)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"good": 1, "bad": 0, "unreadable": 0, "foreign file": 1}
    assert [(f["path"], f["verdict"]) for f in document["files"]] == [
        (str(path), "good"),
        (str(harness.dir / "foreign file"), "foreign file"),
    ]


@pytest.mark.parametrize(
    ("name", "reason", "hint"),
    [
        ("nowhere", "No such file or directory", "Is the name spelled right"),
        ("file", "Not a directory", "Name a directory."),
        ("loop", "Too many levels of symbolic links", ""),
    ],
)
def test_what_cannot_be_listed_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str, hint: str
) -> None:
    """The error says what was tried, names the path in full, and has a hint where there is one."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert main(["verify", str(tmp_path / name)]) == 2
    told, _, told_hint = capsys.readouterr().err.partition("\n")
    assert told == f"bbcache: error: verify has failed at {tmp_path / name}: {reason}"
    assert told_hint.startswith(f"hint: {hint}" if hint else "")


def test_a_directory_that_is_no_cache_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty or foreign directory is not a good cache; a pageserver's is told from it."""
    (tmp_path / "file").touch()
    assert main(["verify", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"bbcache: error: {tmp_path} is not a cache: it has neither an archive nor .bbcache.lock\n"
        "hint: Is the file system mounted?\n"
    )
    with Harness(tmp_path / "basebackup_cache"):
        assert main(["verify", "--quarantine", str(tmp_path)]) == 3
    assert f"hint: Name {tmp_path}/basebackup_cache.\n" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["basebackup_cache", "file"]


def test_an_empty_cache_and_one_of_neons_are_caches(tmp_path: Path) -> None:
    """A lock file is enough, and so is an archive without one."""
    with Harness(tmp_path / "cache") as harness:
        assert main(["verify", str(harness.dir)]) == 0
        harness.prepared()
    (harness.dir / ".bbcache.lock").unlink()
    assert main(["verify", str(harness.dir)]) == 0


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """All four are there."""
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for wanted in (
        "0 every archive is good",
        "1 an archive is bad",
        "2 the dir",
        "3 the directory",
    ):
        assert wanted in text
