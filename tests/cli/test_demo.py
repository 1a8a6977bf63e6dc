"""``bbcache demo`` on real PostgreSQL: what it shows, what it catches, what it leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bbcache import BasebackupCache, Lsn, TenantId, TimelineId
from bbcache.cli import demo, demo_scenario, main
from bbcache.cli.demo_scenario import Scenario
from bbcache.errors import PrepareError
from bbcache.outcomes import FetchResult
from bbcache.pageserver import ComputeNode, Pageserver
from bbcache.postgres.server.cluster import PostgresBinaries
from bbcache.tier import ObjectTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import ClusterFactory, Templates

    from bbcache.pageserver import PgdataTenant, PgdataTimeline


pytestmark = pytest.mark.postgres

DEMO = ("demo", "--rounds", "2")
INITDB_ARGS = ("--wal-segsize=16",)  # as initdb has it by default
ROUND_FIELDS = {
    *("number", "is_hit", "lsn", "get_s", "unpack_s", "start_s"),
    *("archive_bytes", "build_s"),
}
_RUN = """
import sys
from bbcache.cli import main
sys.exit(main(sys.argv[1:]))
"""
_WITH_A_SMALL_SAMPLE = """
from bbcache.cli import demo_scenario
demo_scenario._SAMPLE_SIZE_BYTES = 1 << 20
"""
# The timeline is a copy of the first argument: without initdb, which takes half a second.
_ON_A_COPY = """
import subprocess, sys, uuid
from bbcache.pageserver import Pageserver

def copy(pageserver, tenant, template=sys.argv.pop(1)):
    pgdata_dir = pageserver._computes_dir / uuid.uuid4().hex
    subprocess.run(["cp", "-a", "--", template, pgdata_dir], check=True)
    return tenant.add_timeline(pgdata_dir)

Pageserver.create_timeline = copy
"""
# Where this interpreter is closed to other users, all of it must be loaded before.
_AS_PLAIN_USER = """
import io, os, pwd, sys, zlib
import bbcache.cli.demo, bbcache.cli.demo_report
from rich.console import Console
Console(file=io.StringIO()).print(":warm_up:")
bbcache.cli.demo_scenario.gzip.compress = lambda data, level: zlib.compress(data, 1)  # faster
if os.geteuid() == 0:
    user = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
from bbcache.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def tmpdir_for_demo(make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that temporary directories go to, which servers can reach."""
    path = make_cluster.new_dir()
    path.mkdir()
    path.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


@pytest.fixture
def template_dir(
    make_cluster: ClusterFactory, newest_pg: PostgresBinaries, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A data directory to copy, of the PostgreSQL that a demo finds."""
    monkeypatch.setenv("BBCACHE_PG_BIN", str(newest_pg.bindir))
    return make_cluster(newest_pg, initdb_args=INITDB_ARGS).pgdata_dir


@pytest.fixture
def initdb_args() -> tuple[str, ...]:
    """Arguments for the cluster of a demo in this process, whose WAL segments are small."""
    return ()


@pytest.fixture
def _in_this_process(
    newest_pg: PostgresBinaries,
    templates: Templates,
    initdb_args: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A demo in this process takes a small sample, and a cluster from a template."""

    def copy_template(pageserver: Pageserver, tenant: PgdataTenant) -> PgdataTimeline:
        pgdata_dir = pageserver._computes_dir / uuid.uuid4().hex
        templates.copy(newest_pg, initdb_args, pgdata_dir)
        return tenant.add_timeline(pgdata_dir)

    monkeypatch.setattr(demo_scenario, "_SAMPLE_SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(Pageserver, "create_timeline", copy_template)
    monkeypatch.setenv("BBCACHE_PG_BIN", str(newest_pg.bindir))


in_this_process = pytest.mark.usefixtures("_in_this_process")


def servers_below(directory: Path) -> list[str]:
    """The command lines of processes that were given a path in a directory, or work there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = os.fsdecode((process / "cmdline").read_bytes().replace(b"\0", b" "))
            work_dir = os.readlink(process / "cwd")
            if str(directory) in command or work_dir.startswith(str(directory)):
                found.append(command)
    return found


def assert_nothing_is_left(directory: Path) -> None:
    """No file, no server."""
    assert list(directory.iterdir()) == []
    assert servers_below(directory) == []


def test_demo_shows_a_table(tmpdir_for_demo: Path) -> None:
    """As a command, with the PostgreSQL that it finds: status 0, and nothing is left."""
    command = [sys.executable, "-c", _WITH_A_SMALL_SAMPLE + _RUN, *DEMO]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    version = PostgresBinaries.find().version
    assert ["PostgreSQL", f"{version},", "2", "rounds"] in lines
    starts = [(line[0], line[1], len(line)) for line in lines if line[1:2] in (["hit"], ["miss"])]
    assert starts == [("1", "miss", 8), ("2", "hit", 8)]
    assert any(line[:3] == ["gzip", "level", "9,"] for line in lines)
    assert ["pageserver_basebackup_cache_read_total{result=hit}", "3"] in lines
    assert lines[-1] == ["Everything", "checked:", "as", "promised."]
    assert "round 2: working with SQL" in done.stderr.splitlines()
    assert_nothing_is_left(tmpdir_for_demo)


def test_demo_as_a_plain_user(newest_pg: PostgresBinaries, tmpdir_for_demo: Path) -> None:
    """PostgreSQL from the environment; JSON on stdout; the directory is kept."""
    directory = tmpdir_for_demo / "kept"
    owner = os.geteuid() or pwd.getpwnam("nobody").pw_uid
    os.chown(tmpdir_for_demo, owner, -1)
    options = ["--json", "--rounds", "2", "--dir", str(directory)]
    environment = {
        **os.environ,
        "BBCACHE_PG_BIN": str(newest_pg.bindir),
        "HOME": str(tmpdir_for_demo),
    }
    done = subprocess.run(
        [sys.executable, "-c", _AS_PLAIN_USER, "demo", *options],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmpdir_for_demo,
    )
    assert done.returncode == 0, done.stderr
    check_report(json.loads(done.stdout), newest_pg.version, round_count=2)
    assert {path.name for path in tmpdir_for_demo.iterdir()} == {"kept"}
    assert {path.name for path in directory.iterdir()} == {
        *(".pageserver.lock", "basebackup_cache", "computes", "tenants")
    }
    assert directory.stat().st_uid == owner
    assert servers_below(directory) == []


def check_report(report: dict[str, Any], version: str, round_count: int) -> None:
    """All that a script may rely on."""
    assert set(report) == {
        *("postgres_version", "rounds", "tar_bytes", "codecs", "cleaned_lsn"),
        *("metrics", "failures", "is_via_page_service", "has_two_nodes"),
    }
    assert report["postgres_version"] == version
    assert report["failures"] == []
    rounds = report["rounds"]
    assert [each["number"] for each in rounds] == list(range(1, round_count + 1))
    assert [each["is_hit"] for each in rounds] == [False] + [True] * (round_count - 1)
    for each in rounds:
        assert set(each) == ROUND_FIELDS
        assert all(each[name] > 0 for name in ROUND_FIELDS - {"is_hit", "lsn"})
    lsns = [Lsn.from_str(each["lsn"]) for each in rounds]
    assert lsns == sorted(set(lsns))
    assert report["cleaned_lsn"] == rounds[-1]["lsn"]
    names = [codec["name"] for codec in report["codecs"]]
    assert names == ["ISA-L level 2", "zlib level 6", "gzip level 9"]
    for codec in report["codecs"]:
        assert 0 < codec["size_bytes"] < codec["sample_bytes"] <= min(report["tar_bytes"], 8 << 20)
    metrics = report["metrics"]
    assert metrics["pageserver_basebackup_cache_prepare_total{result=ok}"] == round_count + 1
    assert metrics["pageserver_basebackup_cache_read_total{result=hit}"] == round_count + 1


@in_this_process
def test_demo_through_the_service(
    newest_pg: PostgresBinaries, tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same over the network: one build for the first start, hits for all others."""
    options = ["--via-page-service", "--json", "--pg-bin", str(newest_pg.bindir)]
    assert main([*DEMO, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["failures"], report["is_via_page_service"]) == ([], True)
    assert [each["is_hit"] for each in report["rounds"]] == [False, True]
    given = "basebackups sent by the service{bbcache_source="
    counts = [report["metrics"][f"{given}{source}}}"] for source in ("hit", "joined", "built")]
    assert counts == [3, 0, 1]
    assert report["metrics"]["pageserver_basebackup_cache_prepare_total{result=ok}"] == 4
    assert_nothing_is_left(tmpdir_for_demo)


@in_this_process
def test_demo_on_two_nodes(
    newest_pg: PostgresBinaries, tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenant moves to another node; its first start there is a hit, with the right data."""
    options = ["--two-nodes", "--json", "--pg-bin", str(newest_pg.bindir)]
    assert main([*DEMO, *options]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["failures"], report["has_two_nodes"]) == ([], True)
    assert [each["is_hit"] for each in report["rounds"]] == [False, True]
    assert report["metrics"] == {
        "bbcache_tier_fetch_total{result=hit}": 1,
        "bbcache_tier_upload_total{result=stored}": 2,
        "bbcache_tier_delete_total{result=deleted}": 1,
    }
    assert "moving the tenant to node two" in printed.err
    assert_nothing_is_left(tmpdir_for_demo)


@in_this_process
def test_a_fetch_that_fails_fails_the_demo_of_two_nodes(
    tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start on the other node is a miss then, which is not as promised."""
    monkeypatch.setattr(ObjectTier, "fetch", lambda *_: FetchResult.ABSENT)
    assert main([*DEMO, "--two-nodes", "--json"]) == 1
    assert "round 2 was a miss" in capsys.readouterr().err
    assert_nothing_is_left(tmpdir_for_demo)


@in_this_process
def test_a_service_that_gives_nothing(
    tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error with the service's words, and nothing is left."""

    def refuse(*_: object) -> None:
        raise PrepareError("not today")

    monkeypatch.setattr("bbcache.pageserver.PgdataTimeline.send_basebackup_tarball", refuse)
    assert main([*DEMO, "--via-page-service"]) == 2
    error = "the page service sent no basebackup: cannot build the basebackup: not today"
    assert f"bbcache: error: {error}" in capsys.readouterr().err
    assert_nothing_is_left(tmpdir_for_demo)


@in_this_process
@pytest.mark.parametrize("initdb_args", [INITDB_ARGS])
def test_demo_twice_in_one_directory(
    newest_pg: PostgresBinaries, tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run, here a larger one, goes beside what the first has left."""
    directory = tmpdir_for_demo / "kept"
    growths = []
    for count in (1, 2):
        options = ["--dir", str(directory), "--scale", str(count)]
        assert main([*DEMO, "--json", "--pg-bin", str(newest_pg.bindir), *options]) == 0
        report = json.loads(capsys.readouterr().out)
        sizes_bytes = [each["archive_bytes"] for each in report["rounds"]]
        growths.append(sizes_bytes[1] - sizes_bytes[0])
        assert report["metrics"]["pageserver_basebackup_cache_entries_total"] == count
        assert len(list((directory / "tenants").iterdir())) == count
    assert 1.5 < growths[1] / growths[0] < 2.5
    assert list((directory / "computes").iterdir()) == []


def run_lying(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a demo complains about; checks the status and that it ends as it should."""
    assert main([*DEMO, "--json"]) == 1
    captured = capsys.readouterr()
    failures: list[str] = json.loads(captured.out)["failures"]
    mark = "bbcache: not as promised: "
    complaints = [x for x in captured.err.splitlines() if x.startswith(mark)]
    assert complaints == [mark + failure for failure in failures]
    return failures


def _archives() -> list[Path]:
    """The archives of the demo's cache, which are below the directory for temporary files."""
    return list(Path(tempfile.gettempdir()).rglob("basebackup_*.tar.gz"))


def lie_prepare_nothing(patch: pytest.MonkeyPatch) -> None:
    """A cache that prepares nothing."""
    patch.setattr(BasebackupCache, "send_prepare", lambda *_: None)


def lie_clean_nothing(patch: pytest.MonkeyPatch) -> None:
    """A cache that cleans nothing away."""
    patch.setattr(BasebackupCache, "run_cleanup", lambda *_: None)


def lie_lose_the_file(patch: pytest.MonkeyPatch) -> None:
    """A cache whose archives are gone once it comes to rest."""
    wait_idle = BasebackupCache.wait_idle

    def lose(cache: BasebackupCache, timeout: float | None = None) -> bool:
        is_idle = wait_idle(cache, timeout)
        for path in _archives():
            path.unlink()
        return is_idle

    patch.setattr(BasebackupCache, "wait_idle", lose)


def lie_forget_a_round(patch: pytest.MonkeyPatch) -> None:
    """A host that starts the last compute nodes from what was before."""
    stop = ComputeNode.stop

    def forget(compute: ComputeNode) -> Lsn:
        compute.cluster.psql("delete from work where round = 1 and id = 1")
        return stop(compute)

    patch.setattr(ComputeNode, "stop", forget)


def lie_write_other_data(patch: pytest.MonkeyPatch) -> None:
    """A compute node whose tables do not hold what was written."""
    patch.setattr(demo_scenario, "_INSERT", demo_scenario._INSERT.replace("7919", "7907"))


def lie_keep_the_file(patch: pytest.MonkeyPatch) -> None:
    """A cache that forgets what it cleans away, and leaves it on the disk."""
    run_cleanup = BasebackupCache.run_cleanup

    def forget(cache: BasebackupCache) -> None:
        paths = _archives()
        run_cleanup(cache)
        for path in paths:
            path.touch()

    patch.setattr(BasebackupCache, "run_cleanup", forget)


def lie_count_too_much(patch: pytest.MonkeyPatch) -> None:
    """A cache that counts reads which nobody has asked for."""
    wait_idle = BasebackupCache.wait_idle

    def ask(cache: BasebackupCache, timeout: float | None = None) -> bool:
        cache.get(TenantId.generate(), TimelineId.generate(), Lsn(1))
        return wait_idle(cache, timeout)

    patch.setattr(BasebackupCache, "wait_idle", ask)


@in_this_process
@pytest.mark.parametrize(
    "lies",
    [
        {lie_prepare_nothing: "after round 1 the cache has [], not one basebackup at "},
        {lie_lose_the_file: "round 2 was a miss"},
        {
            lie_clean_nothing: "is still served",
            lie_write_other_data: "round 1 wrote other data: ",
        },
        {
            lie_keep_the_file: "the file of the outgrown basebackup at ",
            lie_forget_a_round: "round 2 found other data: ",
            lie_count_too_much: "cache_read_total{result=miss} is 5",
        },
    ],
    ids=lambda lies: "+".join(lie.__name__.removeprefix("lie_") for lie in lies),
)
def test_each_lie_is_caught(
    tmpdir_for_demo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lies: dict[Callable[[pytest.MonkeyPatch], None], str],
) -> None:
    """Every broken promise is listed, and the status is 1."""
    for lie in lies:
        lie(monkeypatch)
    failures = run_lying(capsys)
    for complaint in lies.values():
        assert any(complaint in failure for failure in failures)
    assert_nothing_is_left(tmpdir_for_demo)


@in_this_process
def test_a_server_that_dies(
    tmpdir_for_demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error with the server's words, and nothing is left."""
    work = Scenario._work

    def die(scenario: Scenario, compute: ComputeNode, number: int) -> None:
        compute.cluster.stop("immediate")
        compute.cluster.start({"default_transaction_read_only": "on"})
        work(scenario, compute, number)

    monkeypatch.setattr(Scenario, "_work", die)
    assert main([*DEMO]) == 2
    assert "bbcache: error: a compute node failed: " in capsys.readouterr().err
    assert_nothing_is_left(tmpdir_for_demo)


def test_a_directory_that_is_still_written_to_is_removed(
    tmpdir_for_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted initdb has started may write for a moment more."""
    rmtree, attempts = shutil.rmtree, []

    def busy(path: Path) -> None:
        attempts.append(path)
        if len(attempts) < 3:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    with demo._directory(None) as path:
        (path / "file").touch()
    assert attempts == [path] * 3
    assert_nothing_is_left(tmpdir_for_demo)


@pytest.mark.parametrize("function", ["mkdir", "rmdir"])
def test_a_signal_while_the_directory_comes_or_goes(
    tmpdir_for_demo: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """It is removed all the same."""
    call, is_first = getattr(os, function), iter([True])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        if next(is_first, False):
            raise KeyboardInterrupt

    def work() -> None:
        with demo._directory(None) as path:
            (path / "a").mkdir()
            (path / "b").mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(os, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            work()
    assert_nothing_is_left(tmpdir_for_demo)


@pytest.fixture
def foreground() -> Iterator[None]:
    """Heed Ctrl-C, which a run in the background, and its children, may ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


_INITDB = "creating a tenant with one timeline (initdb)"


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, _INITDB),
        (signal.SIGINT, "round 2: getting the basebackup, starting PostgreSQL"),
        (signal.SIGTERM, "round 1: working with SQL"),
        (signal.SIGTERM, "compressing a sample of the last tarball with other codecs"),
    ],
)
def test_a_signal_ends_it_cleanly(
    tmpdir_for_demo: Path, template_dir: Path, number: signal.Signals, step: str
) -> None:
    """The status is the signal's; no server and no directory is left."""
    how = [_RUN] if step == _INITDB else [_ON_A_COPY + _RUN, template_dir]
    with subprocess.Popen(
        [sys.executable, "-c", *how, *DEMO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.rstrip() == step:
                break
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 128 + number, "".join([*said, err])
    assert out == ""
    assert err.splitlines()[-1].startswith("bbcache: ")
    assert "Traceback" not in err
    assert_nothing_is_left(tmpdir_for_demo)


def test_output_that_nobody_reads(tmpdir_for_demo: Path, template_dir: Path) -> None:
    """As with ``2>&1 | head``: it plays to its end, then the status is that of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    code = _ON_A_COPY + _WITH_A_SMALL_SAMPLE + _RUN
    command = [sys.executable, "-c", code, str(template_dir), *DEMO]
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=closed, check=False)
    assert done.returncode == 141
    assert_nothing_is_left(tmpdir_for_demo)
