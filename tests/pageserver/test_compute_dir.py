"""The names of compute nodes' directories, and the sign that one was started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache import TenantId, TimelineId
from bbcache.pageserver.compute_dir import ComputeDir, compute_dirs, own_names

if TYPE_CHECKING:
    from pathlib import Path

TENANT = TenantId.from_str("de200bd42b49cc1814412c7e592dd6e9")
TIMELINE = TimelineId.from_str("11223344556677889900aabbccddeeff")


@pytest.fixture
def directory(tmp_path: Path) -> ComputeDir:
    """A data directory with a file in it."""
    directory = ComputeDir.new(tmp_path, TENANT, TIMELINE)
    (directory.path / "base").mkdir(parents=True)
    return directory


def test_the_name_says_whose_it_is(directory: ComputeDir, tmp_path: Path) -> None:
    """Of two nodes of one timeline each has its own name; another name says nothing."""
    assert directory.owner == (TENANT, TIMELINE)
    assert ComputeDir.new(tmp_path, TENANT, TIMELINE) != directory
    assert ComputeDir(tmp_path / str(TENANT)).owner is None
    assert ComputeDir(tmp_path / f"{directory.path.name}0").owner is None


def test_a_start_is_noted_before_it_is_so(directory: ComputeDir, tmp_path: Path) -> None:
    """With the settings of the first start, until another one has succeeded."""
    was_started = [directory.was_started]
    directory.note_start({"a": "1"})
    was_started.append(directory.was_started)
    assert was_started == [False, True]
    assert directory.settings() == {"a": "1"}
    directory.note_start({"a": "bad"})
    assert directory.settings() == {"a": "1"}
    directory.note_started({"a": "2"})
    assert directory.settings() == {"a": "2"}
    assert compute_dirs(tmp_path) == [directory]


def test_settings_that_a_power_loss_has_taken_are_none(directory: ComputeDir) -> None:
    """The name still says that the server was started, and whose it is."""
    directory.note_start({"a": "1"})
    directory.path.with_name(f"{directory.path.name}.started").write_bytes(b"")
    assert directory.was_started
    assert directory.settings() == {}


def test_nothing_is_left(directory: ComputeDir, tmp_path: Path) -> None:
    """Of a directory that was taken over, or is removed."""
    directory.note_start({})
    directory.remove()
    assert not directory.was_started
    (tmp_path / f"{directory.path.name}.log").touch()
    directory.forget()
    assert list(tmp_path.iterdir()) == []


def test_names_of_others_are_told_apart(directory: ComputeDir, tmp_path: Path) -> None:
    """They are somebody else's, and no part of this."""
    directory.note_start({})
    for name in ("lost+found", "notes.log", str(TENANT)[:-1], f"{directory.path.name}.txt"):
        (tmp_path / name).touch()
    assert own_names(tmp_path) == [directory.path.name, f"{directory.path.name}.started"]
