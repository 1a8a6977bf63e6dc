"""``bbcache tier check``, and ``bbcache verify`` of a second tier, as commands."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import Worker
from tier.conftest import key_file, local, remote, store  # noqa: F401 - fixtures

from bbcache.cli import main
from bbcache.storage.verify import Verdict
from bbcache.tier.audit import BucketAudit

if TYPE_CHECKING:
    from pathlib import Path

    from tier.lab import Lab
    from tier.object_store import ObjectStore


def options_of(store: ObjectStore) -> list[str]:  # noqa: F811 - the fixture's object
    """How the commands reach our server."""
    named = {"endpoint": store.endpoint, "region": "local", "allow_http": "true"}
    return [each for name, value in named.items() for each in ("--option", f"{name}={value}")]


def test_a_bucket_that_works_passes_every_step(
    store: ObjectStore,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each step is printed with its time; nothing is left in the bucket."""
    assert main(["tier", "check", "s3://bucket/prefix", *options_of(store)]) == 0
    steps = [line.rpartition(" (")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == [
        *("list: ok", "put: ok", "put again: ok", "get: ok", "get what is not there: ok"),
        *("overwrite: ok", "delete: ok"),
    ]
    assert store.objects == {}


def test_a_directory_is_tried_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the steps for scripts."""
    (tmp_path / "store").mkdir()
    assert main(["tier", "check", f"file://{tmp_path}/store", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert len(steps) == 7
    assert not any(step["is_fatal"] or step["problem"] for step in steps)


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hint is for a file system, which has no endpoint and no credentials."""
    assert main(["tier", "check", f"file://{tmp_path}/missing"]) == 1
    printed = capsys.readouterr().out
    assert f"{tmp_path}/missing" in printed
    assert printed.endswith("\nhint: Is the directory there, mounted, and open to this user?\n")


@pytest.mark.parametrize(
    ("method", "failed"), [("LIST", "list"), ("PUT", "put"), ("GET", "get"), ("DELETE", "delete")]
)
def test_a_step_that_fails_is_named(
    store: ObjectStore,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
    method: str,
    failed: str,
) -> None:
    """The command exits with 1, and says what the store has answered."""
    store.fault, store.faulty_methods = "denied", frozenset({method})
    assert main(["tier", "check", "s3://bucket", *options_of(store)]) == 1
    lines = capsys.readouterr().out.splitlines()
    (bad,) = (line for line in lines if line.startswith(f"{failed}: "))
    assert "403 Forbidden: AccessDenied: the message of AccessDenied (" in bad
    assert "hidden" not in bad
    assert lines[-1] == "hint: Check bucket, endpoint and credentials."


def test_a_store_that_lets_both_writers_win_is_good_enough(
    store: ObjectStore,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Equal objects are written twice there: it is said, and no failure."""
    store.ignores_conditions = True
    assert main(["tier", "check", "s3://bucket", *options_of(store)]) == 0
    assert "put again: was not refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ftp://bucket"], "url is 'ftp://bucket', but must be a URL"),
        (["s3://bucket", "--epoch", "a/b"], "epoch is 'a/b'"),
        (["s3://bucket", "--option", "secret_access_key=x"], "hold secrets"),
        (["s3://bucket", "--option", "bogus=x"], "bogus"),
    ],
)
def test_wrong_arguments_are_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Wrong arguments are explained before any request is made."""
    assert main(["tier", "check", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket", "az://bucket"])
def test_no_test_asks_a_machine_for_credentials(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any, a store asks the address of the environment, where nobody listens."""
    for name in set(os.environ):
        if name.startswith(("AWS_ACCESS", "AWS_SECRET", "AWS_SESSION", "GOOGLE_", "AZURE_STORAGE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = [] if url == "gs://bucket" else ["endpoint=http://127.0.0.1:9", "allow_http=true"]
    if url == "az://bucket":
        place.append("account_name=x")
    options = [f"--option={each}" for each in place]
    assert main(["tier", "check", url, *options]) == 1
    asked = r"(PUT|GET) http://127\.0\.0\.1:9/(latest/api/token|computeMetadata/|\?)"
    assert re.search(asked, capsys.readouterr().out)


def test_verify_reads_every_object(
    remote: Lab,  # noqa: F811 - the fixture
    store: ObjectStore,  # noqa: F811 - the fixture
    key_file: Path,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The number of requests is said first; a bad object is listed, and exits with 1."""
    arguments = ["verify", "s3://bucket", "--key-file", str(key_file), *options_of(store)]
    tier = remote.tier()
    for lsn in (0x1000, 0x2000):
        remote.upload(tier, remote.archive(lsn))
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "2 objects of" in printed.err
    assert "2 GET requests, after 1 to list them" in printed.err
    assert printed.out == "2 good, 0 bad, 0 unreadable, 0 foreign\n"
    name = next(iter(store.objects))
    store.objects[name] = store.objects[name][:-1] + b"?"
    store.objects["1/strange"] = b"x"
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"bad: {name!r}" in lines[0]
    assert "its signature is wrong" in lines[0]
    assert lines[-1] == "1 good, 1 bad, 0 unreadable, 1 foreign"


def test_verify_reads_objects_of_any_size(local: Lab) -> None:  # noqa: F811 - the fixture
    """The limit is that of the nodes, which may have a higher one than the default."""
    local.upload(local.tier(), local.archive(size_bytes=3000))

    def check() -> list[Verdict]:
        audit = BucketAudit(local.config(max_object_size_bytes=1000))
        return [each.verdict for each in audit.run(audit.objects())]

    assert Worker(check).result() == [Verdict.GOOD]


@pytest.mark.parametrize("how", [["--epoch", "2"], ["--json", "--epoch", "2"]])
def test_verify_of_nothing_is_not_good(
    local: Lab,  # noqa: F811 - the fixture
    key_file: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: list[str],
) -> None:
    """A prefix or an epoch that is mistyped has an exit code of its own, as a directory has."""
    local.upload(local.tier(), local.archive())
    local.objects["2/strange"] = b"x"
    url = f"file://{tmp_path}/store"
    assert main(["verify", url, "--key-file", str(key_file), *how]) == 3
    printed = capsys.readouterr()
    assert f"{url} has no basebackup of epoch 2\nhint: " in printed.err
    assert "2/strange" in printed.out


def test_verify_names_a_bucket_that_cannot_be_listed(
    store: ObjectStore,  # noqa: F811 - the fixture
    key_file: Path,  # noqa: F811 - the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what the store has answered, and what to look at."""
    store.fault = "denied"
    assert main(["verify", "s3://bucket", "--key-file", str(key_file), *options_of(store)]) == 2
    error = capsys.readouterr().err
    assert "cannot list s3://bucket: " in error
    assert "AccessDenied" in error
    assert error.endswith("\nhint: Check bucket, endpoint and credentials.\n")


def test_verify_needs_the_key(
    local: Lab,  # noqa: F811 - the fixture
    key_file: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without one nothing is read; with another one every object is bad. --json has them all."""
    local.upload(local.tier(), local.archive())
    url = f"file://{tmp_path}/store"
    assert main(["verify", url]) == 2
    error = capsys.readouterr().err
    assert "no key is named, so no signature can be checked\nhint: " in error
    assert "--key-file" in error
    other = key_file.with_name("other")
    other.write_bytes(b"k" * 32)
    other.chmod(0o600)
    assert main(["verify", url, "--key-file", str(other), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["objects"]
    assert (found["verdict"], found["reason"]) == ("bad", "its key is not known here")


def test_verify_of_a_bucket_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The quarantine is that of a directory."""
    assert main(["verify", "s3://bucket", "--quarantine", "--allow-unsigned"]) == 2
    assert "--quarantine moves files of a directory" in capsys.readouterr().err
