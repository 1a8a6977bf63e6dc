"""``bbcache why``, as a command."""

from __future__ import annotations

import json
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from http_service.conftest import make_front, whole  # noqa: F401 - fixtures
from page_service.conftest import make_bench  # noqa: F401 - likewise
from support.cache_helpers import LSN_A, LSN_B, Harness
from support.helpers import wait_until

from bbcache.cli import main
from bbcache.http_service.handler import text_response

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from http_service.conftest import Front, Whole

    from bbcache.testing import MemoryTimeline

NOBODY = ("0" * 31 + "1", "0" * 31 + "2")


def ids_of(harness: Harness, timeline: MemoryTimeline) -> tuple[str, str]:
    """The arguments that name a timeline."""
    return str(harness.shard_of(timeline).tenant_id), str(timeline.timeline_id)


@pytest.mark.parametrize("has_scheme", [True, False])
def test_a_service_is_asked(
    whole: Whole,  # noqa: F811 - the fixture
    make_front: Callable[..., Front],  # noqa: F811 - likewise
    capsys: pytest.CaptureFixture[str],
    has_scheme: bool,
) -> None:
    """The text is printed as the service gives it, for timelines without an entry too."""
    harness = whole.bench.harness
    timeline = harness.timeline(LSN_B)
    harness.prepare(timeline, LSN_A)
    front = make_front(whole.routes.respond)
    url = front.url if has_scheme else front.url.removeprefix("http://")
    assert main(["why", "--url", url, *ids_of(harness, timeline)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"timeline {timeline.timeline_id} of tenant ")
    assert "tip_moved" in out


def test_a_service_is_asked_for_json(
    whole: Whole,  # noqa: F811 - the fixture
    make_front: Callable[..., Front],  # noqa: F811 - likewise
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--json prints one document."""
    timeline = whole.bench.harness.prepared()
    front = make_front(whole.routes.respond)
    ids = ids_of(whole.bench.harness, timeline)
    assert main(["why", "--json", "--url", f"{front.url}/", *ids]) == 0
    assert json.loads(capsys.readouterr().out)["entry"]["lsn"] == str(LSN_A)


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The URL and what to do are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["why", "--url", f"http://127.0.0.1:{port}", *NOBODY]) == 2
    err = capsys.readouterr().err
    assert f"the service at http://127.0.0.1:{port} does not answer: Connection refused" in err
    assert "hint: Does `bbcache serve` run there" in err
    assert main(["why", "--url", f"http://id:hidden@127.0.0.1:{port}", *NOBODY]) == 2
    assert "hidden" not in capsys.readouterr().err


def test_another_service(
    make_front: Callable[..., Front],  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it says is shown without control characters."""
    front = make_front(lambda _path, _accept: text_response(HTTPStatus.NOT_FOUND, "\x1b[1mno"))
    assert main(["why", "--url", front.url, *NOBODY]) == 2
    assert r"has no explanation: 404 \x1b[1mno" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://[", "http://here:port"])
def test_a_url_that_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is an error of one line and a hint, without a traceback."""
    assert main(["why", "--url", url, *NOBODY]) == 2
    assert "hint: " in capsys.readouterr().err


def test_ids_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """The form of an id is named, and where to find one."""
    assert main(["why", "tenant", "timeline"]) == 2
    err = capsys.readouterr().err
    assert "TenantId takes 32 hex digits, not 'tenant'" in err
    assert "hint: Copy the ids from the status page" in err


def test_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, size, seal and check of an entry; the outcomes need the service."""
    with Harness(tmp_path / "basebackup_cache") as harness:
        timeline = harness.prepared()
        path = harness.path(timeline)
        assert main(["why", "--root", str(tmp_path), *ids_of(harness, timeline)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"file: {path}"
    assert lines[2].startswith(f"  at {LSN_A}, ")
    assert lines[3].startswith("  seal: xxh3-128 ")
    assert lines[4] == "  good"
    assert lines[-1] == "note: the outcomes are known to the service alone: ask it with --url"


def test_saved_habits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of the last clean-up; a damaged file is named as such."""

    def said(*arguments: str) -> str:
        assert main(["why", "--root", str(tmp_path), *arguments]) == 0
        return capsys.readouterr().out

    with Harness(tmp_path, cleanup_period=0.02) as harness:
        assert "habits: none are saved" in said(*NOBODY)
        timeline = harness.prepared()
        ids = ids_of(harness, timeline)
        assert harness.get(timeline) is not None
        wait_until(lambda: "1 seen; runs now, as of the last clean-up" in said(*ids))
    assert json.loads(said("--json", *ids))["habits"]["sleeps_seen"] == 1
    assert "habits: not known, as of the last clean-up" in said(*NOBODY)
    (tmp_path / ".bbcache.habits").write_bytes(b"bad")
    assert "habits: .bbcache.habits is damaged" in said(*ids)


def test_a_directory_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has the same facts; the cache's own directory will do as well."""
    with Harness(tmp_path) as harness:
        timeline = harness.prepared()
        ids = ids_of(harness, timeline)
    assert main(["why", "--json", "--root", str(tmp_path), *ids]) == 0
    document = json.loads(capsys.readouterr().out)
    (file,) = document["files"]
    assert (file["lsn"], file["verdict"]) == (str(LSN_A), "good")
    assert file["seal"]["tar_bytes"] == len(timeline.tarball(LSN_A))
    assert (document["quarantined"], document["outcomes"]) == ([], None)


def test_bad_and_quarantined_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad file is named with the reason, and one that was moved away with its new path."""
    with Harness(tmp_path) as harness:
        timeline = harness.prepared()
        ids = ids_of(harness, timeline)
        harness.path(timeline).write_bytes(b"bad")
    assert main(["why", "--root", str(tmp_path), *ids]) == 0
    assert "  bad: the file does not begin with a gzip header" in capsys.readouterr().out
    assert main(["verify", "--quarantine", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["why", "--root", str(tmp_path), *ids]) == 0
    out = capsys.readouterr().out
    assert "file: none" in out
    assert f"quarantined: {tmp_path / 'quarantine'}/" in out


def test_no_cache_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory without a cache has an exit code of its own, as for `verify`."""
    assert main(["why", "--root", str(tmp_path), *NOBODY]) == 3
    assert f"{tmp_path} is not a cache" in capsys.readouterr().err
    assert main(["why", "--root", str(tmp_path / "nowhere"), *NOBODY]) == 2
    assert "hint: Is the name spelled right" in capsys.readouterr().err


def test_url_and_root_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """One source is asked, not two."""
    with pytest.raises(SystemExit, match="2"):
        main(["why", "--url", "http://here", "--root", "there", *NOBODY])
    assert "not allowed with" in capsys.readouterr().err
