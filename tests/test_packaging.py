"""The distributions: one of the source that can run its tests, and a wheel of the package alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

import bbcache

ROOT: Final = Path(__file__).parent.parent
_BUILD: Final = (
    "import sys; from setuptools import build_meta; made = sys.argv[1]\n"
    "build_meta.build_sdist(made); build_meta.build_wheel(made)"
)


def _tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout, but what was made of one")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_both_distributions_have_their_files(tmp_path: Path) -> None:
    """The source has every tracked file; the wheel has the package, and no test or benchmark."""
    tracked = _tracked()
    source, made = tmp_path / "source", tmp_path / "made"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    made.mkdir()
    subprocess.run(
        [sys.executable, "-c", _BUILD, made], cwd=source, capture_output=True, check=True
    )
    (sdist_path,), (wheel_path,) = made.glob("*.tar.gz"), made.glob("*.whl")
    with tarfile.open(sdist_path) as sdist:
        shipped = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(tracked) - shipped == set()
    with zipfile.ZipFile(wheel_path) as wheel:
        installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == {
        name for name in tracked if name.startswith(("bbcache/", "pytest_bbcache."))
    }


def test_the_package_is_run_as_a_module() -> None:
    """`python -m bbcache` is the command."""
    command = [sys.executable, "-m", "bbcache", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert bbcache.__version__ in done.stdout


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def test_every_claimed_python_is_run() -> None:
    """And no other: tox has their environments, of which .ci/run runs those of the machine."""
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(_project()["classifiers"]))
    environments = (ROOT / "tox.ini").read_text().partition("env_list = ")[2].partition("\n")[0]
    named = re.findall(r"\bpy\d+", environments)
    assert named == [f"py{version.replace('.', '')}" for version in claimed]
