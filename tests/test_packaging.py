"""What is shipped: a source distribution that can run its tests, and a module that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

import bbcache

ROOT: Final = Path(__file__).parent.parent
_BUILD: Final = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def _tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout, but what was made of one")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_source_distribution_has_every_tracked_file(tmp_path: Path) -> None:
    """Tests, helpers, docs that tests read, settings: it is built here of the tracked files."""
    tracked = _tracked()
    source, made = tmp_path / "source", tmp_path / "made"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    made.mkdir()
    subprocess.run(
        [sys.executable, "-c", _BUILD, made], cwd=source, capture_output=True, check=True
    )
    (path,) = made.iterdir()
    with tarfile.open(path) as sdist:
        shipped = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(tracked) - shipped == set()


def test_the_package_is_run_as_a_module() -> None:
    """`python -m bbcache` is the command."""
    command = [sys.executable, "-m", "bbcache", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert bbcache.__version__ in done.stdout


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def test_every_claimed_python_is_run() -> None:
    """There is an environment of tox for each, and .ci/run runs those that a machine has."""
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(_project()["classifiers"]))
    environments = (ROOT / "tox.ini").read_text().partition("env_list = ")[2].partition("\n")[0]
    for version in claimed:
        assert f"py{version.replace('.', '')}" in environments
