"""The project in examples/testing, run as its users run it. `tox -e testing` does it.

With ``BBCACHE_EXAMPLES=all``, also twice at once, without an installed PostgreSQL, on a full
disk, and with a long TMPDIR.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.disk_helpers import fill_disk, mount
from support.helpers import tool, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]

_EXAMPLE: Final = Path(__file__).parents[3] / "examples" / "testing"
_NOBODY: Final = 65534
_TEST_COUNT: Final = 7
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and changes users")
only_all = pytest.mark.skipif(
    os.environ.get("BBCACHE_EXAMPLES") != "all", reason="for tox -e reliability"
)


class Example:
    """A copy of the project, with directories of its own for all that it makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = directory / "project"
        shutil.copytree(_EXAMPLE, self.project, ignore=shutil.ignore_patterns("__pycache__"))
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "BBCACHE_TESTING_DIR": str(directory / "cache"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *prefix: str) -> subprocess.Popen[str]:
        """Start a run with four workers, by another program."""
        plugins = ["-p", "pytest_bbcache", "-p", "xdist.plugin", "-p", "no:cacheprovider"]
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "pytest", *plugins, "-n", "4"],
            cwd=self.project,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *prefix: str) -> str:
        """Run it to its end, which must be good, and return what it has printed."""
        run = self.start(*prefix)
        output = run.communicate()[0]
        assert run.returncode == 0, output
        assert re.search(rf"\b{_TEST_COUNT} passed", output), output
        return output


@pytest.fixture
def example(own_dir: Path) -> Iterator[Example]:
    """The project; nothing of its runs is left."""
    example = Example(own_dir)
    yield example
    places = [Path("/dev/shm"), own_dir, own_dir / "tmp"]  # noqa: S108 - only looked at
    wait_until(lambda: not any(list(place.glob("bbcache-testing-*/run-*")) for place in places))


def test_cold_and_warm(example: Example) -> None:
    """The first run builds the snapshot once for four workers, the second restores it."""
    outputs = [example.run() for _ in range(2)]
    assert outputs[0].count("built snapshot bank") == 1
    assert "(to be built)" in outputs[0]
    assert "built snapshot bank" not in outputs[1]
    assert "(hit, " in outputs[1]


@needs_root
def test_as_a_plain_user(example: Example) -> None:
    """Cold and warm, in a home that is closed to others."""
    for path in (example.directory, *example.directory.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    example.directory.chmod(0o700)
    ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    # Python itself may be in root's home.
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    outputs = [example.run(tool("setpriv"), *ids, *reads) for _ in range(2)]
    assert ["built snapshot bank" in output for output in outputs] == [True, False]


@only_all
def test_twice_at_once(example: Example) -> None:
    """Two runs share one build."""
    runs = [example.start() for _ in range(2)]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sum(output.count("built snapshot bank") for output in outputs) == 1


@only_all
@needs_root
def test_without_an_installed_postgres(example: Example) -> None:
    """The wheel is used where nothing else is there, and the header says so."""
    hide = 'mount -t tmpfs none /usr/lib/postgresql && exec "$@"'
    output = example.run(tool("unshare"), "--mount", "sh", "-c", hide, "sh")
    assert re.search(r"bbcache: PostgreSQL 18\.\d+ \(wheel\)", output)


@only_all
def test_a_long_temporary_directory(example: Example) -> None:
    """Of 120 bytes: sockets are in /tmp then."""
    long_dir = example.directory / ("t" * (119 - len(str(example.directory))))
    long_dir.mkdir(mode=0o711)
    (example.project / "pytest.ini").write_text(
        f"[pytest]\ntestpaths = tests\npythonpath = .\nbbcache_pg_run_dir = {long_dir}\n"
    )
    example.env["TMPDIR"] = str(long_dir)
    assert len(str(long_dir)) == 120
    example.run()


@only_all
@needs_root
def test_a_full_disk(example: Example) -> None:
    """Without room for snapshots, tests pass and a line says why; without any, errors say so."""
    disk = example.directory / "cache"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m,mode=700", "bbcache-test", disk)
    try:
        output = example.run()
        assert "cannot be kept in" in output
        assert "No space left on device" in output
        (example.project / "pytest.ini").write_text(
            f"[pytest]\ntestpaths = tests\npythonpath = .\nbbcache_pg_run_dir = {disk}\n"
        )
        disk.chmod(0o711)
        fill_disk(disk)
        run = example.start()
        output = run.communicate()[0]
        assert run.returncode == 1
        assert "no place for a server" in output
        assert "free" in output
    finally:
        subprocess.run(["umount", disk], check=True)
