"""The whole command: a real bar under the real profiler, in small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import ConfigError
from benchmarks.profiling import sampler
from benchmarks.profiling.__main__ import chosen, main, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent.parent
PAGE = """\
![a picture](profile-get-miss.svg)
<!-- profile: get-miss -->
old
<!-- end of profile -->
after
"""


def require_py_spy() -> None:
    """Skip the test where there is no py-spy, unless nothing may be missing."""
    try:
        sampler.find_py_spy()
    except sampler.ProfilerError as error:
        if os.environ.get("BBCACHE_REQUIRE_TOOLS") == "1":
            raise
        pytest.skip(str(error))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: the profiler stops all of its threads."""
    command = [sys.executable, "-m", "benchmarks.profiling", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )


def names(arguments: Sequence[str]) -> list[str]:
    """The bars that are chosen."""
    return [bar.name for _, bar in chosen(parse_arguments(arguments))]


def test_a_bar_is_profiled_for_the_docs(tmp_path: Path) -> None:
    """Its table is printed and put into the page, and its picture drawn."""
    require_py_spy()
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    ended = run("--quick", "--seconds", 1, "--dir", tmp_path, "--docs", page)
    if ended.returncode and "ermission" in ended.stderr and os.geteuid() != 0:
        pytest.skip("this system lets no process look into another one")
    assert ended.returncode == 0, ended.stderr
    text = page.read_text()
    head, _, rest = PAGE.partition("old\n")
    assert text.startswith(f"{head}**`get-miss`**: ")
    assert text.endswith(rest)
    assert "| get | " in text  # what was measured was seen
    # On a busy machine other threads are seen as well, and the row is called "all threads".
    assert re.search(r"\n\| all( threads)? \| 100% \| ", text)
    assert text.split("-->\n")[1].partition("<!--")[0] in ended.stdout
    assert (tmp_path / "profile-get-miss.svg").read_text().startswith("<svg ")
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "profile-get-miss.svg"}


def test_bars_are_chosen_by_name_or_by_the_page(tmp_path: Path) -> None:
    """A page names the bars whose profiles it has."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert names(["start", "cleanup"]) == ["start", "cleanup"]
    assert names(["--docs", str(page)]) == ["get-miss"]
    assert names(["--docs", str(page), "start"]) == ["start"]
    for nothing in ([], ["nothing like it"]):
        with pytest.raises(ConfigError, match="no bar is wanted, or none is called like that"):
            names(nothing)


def test_what_is_no_time_has_no_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is said before anything is measured."""
    require_py_spy()
    assert main(["--quick", "--dir", str(tmp_path), "memory-entry"]) == 1
    assert "memory-entry compares bytes, and a profile is one of time" in capsys.readouterr().err


def test_places_that_are_not_there_are_told_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before minutes are spent."""
    require_py_spy()
    assert main(["get-miss", "--svg", str(tmp_path / "no")]) == 1
    assert main(["--docs", str(tmp_path / "no.md")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"{tmp_path}/no is not a directory"
    assert "No such file or directory" in errors[1]
