"""Checking a whole directory, beside a cache and without one."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from support.cache_helpers import LSN_A, LSN_B, Harness

from bbcache.storage.verify import Audit, Finding, Verdict


def _verdicts(directory: Path) -> dict[str, Verdict]:
    return {Path(finding.path).name: finding.verdict for finding in Audit(directory).run()}


def test_good_archives_of_both_kinds_are_good(tmp_path: Path) -> None:
    """Sealed archives and plain ones, as Neon writes them, pass."""
    with Harness(tmp_path / "cache") as harness:
        sealed, plain = harness.prepared(), harness.timeline()
        harness.seed(plain, content=gzip.compress(plain.tarball(LSN_A)))
        assert _verdicts(harness.dir) == {
            harness.path(sealed).name: Verdict.GOOD,
            harness.path(plain).name: Verdict.GOOD,
        }


def test_foreign_files_are_listed_and_left_alone(tmp_path: Path) -> None:
    """A file with another name, or of another kind, is a foreign file and stays."""
    with Harness(tmp_path / "cache") as harness:
        (harness.dir / "notes.txt").write_text("hello")
        os.mkfifo(harness.dir / "pipe")
        os.symlink("/etc/passwd", harness.path(harness.timeline()))
        findings = list(Audit(harness.dir).run(quarantine=True))
        assert {finding.verdict for finding in findings} == {Verdict.FOREIGN}
        assert len(findings) == 3
        assert len(Audit(harness.dir)) == 0
        assert harness.quarantined() == []


def test_quarantine_moves_bad_archives_only(tmp_path: Path) -> None:
    """With `quarantine` bad archives are moved, and the rest stays."""
    with Harness(tmp_path / "cache") as harness:
        good, bad = harness.prepared(), harness.prepared()
        harness.path(bad).write_bytes(b"bad")
        harness.cache.close()
        moved = [finding for finding in Audit(harness.dir).run(quarantine=True) if finding.reason]
        assert [(f.path, f.is_quarantined) for f in moved] == [(str(harness.path(bad)), True)]
        assert harness.entry_files() == [harness.path(good).name]
        assert [name.endswith(harness.path(bad).name) for name in harness.quarantined()] == [True]


def test_quarantine_beside_a_running_cache_costs_a_miss(tmp_path: Path) -> None:
    """A running cache misses a quarantined archive, and can prepare it again."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        with harness.path(timeline).open("r+b") as file:
            file.truncate(10)
        (finding,) = Audit(harness.dir).run(quarantine=True)
        assert finding.is_quarantined
        assert harness.get(timeline) is None
        assert harness.reads == {"miss": 1}
        harness.prepare(timeline)
        assert harness.get(timeline) == timeline.tarball(LSN_A)
        harness.cache.run_cleanup()
        harness.check_accounting()


def test_a_file_that_vanishes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    """A running cache may remove an entry between the listing and the check."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        audit = Audit(harness.dir)
        timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        assert list(audit.run(quarantine=True)) == []


def test_a_file_that_changes_meanwhile_is_not_called_bad(tmp_path: Path) -> None:
    """A file of another size than listed was replaced, so it may be good."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        audit = Audit(harness.dir)
        harness.path(timeline).write_bytes(b"other")
        (finding,) = audit.run(quarantine=True)
        assert finding.verdict is Verdict.UNREADABLE
        assert harness.entry_files() == [harness.path(timeline).name]


def test_a_file_published_over_the_one_read_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has replaced the bad one stays."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        path = harness.path(timeline)
        good = path.read_bytes()
        path.write_bytes(bytes(len(good)))

        def replace(_first: object, _second: object) -> bool:
            aside = path.with_name("aside")
            aside.write_bytes(good)
            os.rename(aside, path)
            return original(_first, os.lstat(path))  # type: ignore[arg-type]

        original = os.path.samestat
        monkeypatch.setattr("bbcache.storage.verify.os.path.samestat", replace)
        (finding,) = Audit(harness.dir).run(quarantine=True)
        assert (finding.verdict, finding.is_quarantined) == (Verdict.BAD, False)
        assert path.read_bytes() == good


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A directory without a cache is no good result."""
    with pytest.raises(FileNotFoundError):
        Audit(tmp_path / "nowhere")


def test_a_finding_speaks_for_itself() -> None:
    """A good file needs no reason and was not moved."""
    assert Finding("p", Verdict.GOOD, 1) == ("p", "good", 1, "", False)
