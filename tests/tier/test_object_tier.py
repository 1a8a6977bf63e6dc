"""A tier on a directory and on our server: stored objects come back, old ones are removed."""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from tier.lab import Sink, make_key_file

from bbcache import BasebackupCacheConfig
from bbcache.errors import ArgumentError, ConfigError
from bbcache.outcomes import FetchResult
from bbcache.tier import ObjectTier
from bbcache.tier.object_format import PREAMBLE_SIZE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tier.lab import Lab

both = pytest.mark.parametrize("lab", ["local", "remote"], indirect=True)
MIB = 1 << 20


@both
def test_another_node_fetches_what_one_has_stored(lab: Lab) -> None:
    """The archive comes back byte for byte; an LSN that was not stored is absent."""
    archive = lab.archive(size_bytes=3 * MIB)
    lab.upload(lab.tier(), archive)
    assert lab.count("upload_total", result="stored") == 1
    other = lab.tier()
    assert lab.fetch(other, archive) == (FetchResult.HIT, archive.data)
    assert lab.fetch(other, lab.archive(0x2000)) == (FetchResult.ABSENT, b"")
    assert (lab.count("fetch_total", result="hit"), lab.count("fetch_seconds_count")) == (1, 1)
    assert lab.count("fetched_bytes_total") == PREAMBLE_SIZE_BYTES + len(archive.data)


def test_an_object_is_named_by_epoch_timeline_and_lsn(local: Lab) -> None:
    """The name is one exact key, and the object is a preamble and the archive as on disk."""
    archive = local.archive(0x16B5A50)
    local.upload(local.tier(epoch="e1"), archive)
    (name,) = local.objects
    assert name == f"e1/{local.tenant_id}/{local.timeline_id}/00000000016B5A50"
    data = local.objects[name]
    assert data[PREAMBLE_SIZE_BYTES:] == archive.data
    assert data[:4] == b"BBT\x01"


@both
def test_a_stored_archive_removes_the_one_it_has_replaced(lab: Lab) -> None:
    """The replaced LSN goes after the newer one is stored; a fetch finds the newer one alone."""
    tier, old, new = lab.tier(), lab.archive(0x1000), lab.archive(0x2000)
    lab.upload(tier, old)
    lab.upload(tier, new, replaced=0x1000)
    assert lab.fetch(tier, old)[0] is FetchResult.ABSENT
    assert lab.fetch(tier, new)[0] is FetchResult.HIT
    assert lab.count("delete_total", result="deleted") == 1


@both
def test_an_archive_that_is_there_already_removes_nothing(lab: Lab) -> None:
    """The object of another node stays, and so does every other one: its owner removes them."""
    old, new = lab.archive(0x1000), lab.archive(0x2000)
    lab.upload(lab.tier(), old)
    lab.upload(lab.tier(), new)
    late = lab.tier()
    lab.upload(late, new, replaced=0x1000)
    assert lab.count("upload_total", result="exists") == 1
    assert lab.fetch(late, old)[0] is FetchResult.HIT


@pytest.mark.parametrize("replaced", [0x2000, 0x3000])
def test_an_object_at_a_higher_lsn_is_never_removed(local: Lab, replaced: int) -> None:
    """Whatever a cache says that it has replaced, only lower LSNs are removed."""
    tier = local.tier()
    for lsn in (0x2000, 0x3000):
        local.upload(tier, local.archive(lsn))
    local.upload(tier, local.archive(0x1000), replaced=replaced)
    assert local.fetch(tier, local.archive(0x2000))[0] is FetchResult.HIT
    assert local.fetch(tier, local.archive(0x3000))[0] is FetchResult.HIT


@both
def test_nothing_is_removed_at_a_close(lab: Lab) -> None:
    """Neither a close nor the next tier removes an object."""
    archive = lab.archive()
    tier = lab.tier()
    lab.upload(tier, archive)
    tier.close()
    assert lab.fetch(lab.tier(), archive)[0] is FetchResult.HIT


@both
@pytest.mark.parametrize("change", ["flip", "cut", "swap", "epoch", "key", "unsigned"])
def test_a_bad_object_is_not_served_and_is_overwritten(
    lab: Lab, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong: a result that builds, an error in the log, and a new object after it."""
    caplog.set_level(logging.CRITICAL)
    archive, other = lab.archive(0x1000), lab.archive(0x2000)
    settings: dict[str, dict[str, Any]] = {
        "epoch": {"epoch": "other"},
        "key": {"key_files": (str(make_key_file(tmp_path / "other")),)},
        "unsigned": {"key_files": (), "allow_unsigned": True},
    }
    bad = lab.tier(**settings.get(change, {}))
    lab.upload(bad, archive)
    lab.upload(bad, other)
    edit(lab, change)
    tier = lab.tier()
    result, _ = lab.fetch(tier, archive)
    assert result is FetchResult.BAD
    lab.upload(tier, archive)
    assert lab.count("upload_total", result="stored") == 1
    assert lab.fetch(tier, archive) == (FetchResult.HIT, archive.data)


def edit(lab: Lab, change: str) -> None:
    """Damage the object at the first LSN, or put another one in its place."""
    first, second = (f"1/{lab.tenant_id}/{lab.timeline_id}/{lsn:016X}" for lsn in (0x1000, 0x2000))
    objects = lab.objects
    match change:
        case "flip":
            data = bytearray(objects[first])
            data[-20] ^= 1
            objects[first] = bytes(data)
        case "cut":
            objects[first] = objects[first][:-1]
        case "swap":
            objects[first] = objects[second]
        case "epoch":  # an object of a disowned epoch under the name of this one
            objects[first] = objects[first.replace("1/", "other/", 1)]


def test_unsigned_objects_are_served_only_if_that_is_allowed(local: Lab) -> None:
    """With `allow_unsigned` the seal is still checked."""
    loose = local.tier(key_files=(), allow_unsigned=True)
    archive = local.archive()
    local.upload(loose, archive)
    assert local.fetch(loose, archive) == (FetchResult.HIT, archive.data)
    edit(local, "flip")
    assert local.fetch(loose, archive)[0] is FetchResult.BAD


def test_keys_rotate_without_a_restart(local: Lab, tmp_path: Path, key_file: Path) -> None:
    """A second key signs what is new, while objects of the first one are still verified."""
    new_key = make_key_file(tmp_path / "new")
    first, second = tmp_path / "first", tmp_path / "second"
    for path, source in ((first, key_file), (second, key_file)):
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
    tier = local.tier(key_files=(str(first), str(second)))
    old, new = local.archive(0x1000), local.archive(0x2000)
    local.upload(tier, old)
    replaced = make_key_file(tmp_path / "replaced")
    replaced.write_bytes(new_key.read_bytes())
    os.replace(replaced, first)
    tier.refresh_keys()
    local.upload(tier, new)
    assert [local.fetch(tier, each)[0] for each in (old, new)] == [FetchResult.HIT] * 2
    only_new = local.tier(key_files=(str(new_key),))
    assert [local.fetch(only_new, each)[0] for each in (new, old)] == [
        FetchResult.HIT,
        FetchResult.BAD,
    ]


def test_an_archive_that_is_gone_or_too_big_is_not_uploaded(local: Lab) -> None:
    """Each has its own count, and the tier goes on."""
    tier = local.tier(max_object_size_bytes=2000)
    gone = local.archive(0x1000, 1000)

    def open_gone() -> io.BytesIO:
        raise FileNotFoundError(2, "gone")

    tier.offer(gone.info, open_gone, None)
    tier.wait_idle()
    local.upload(tier, local.archive(0x2000, 3000))
    short = local.archive(0x3000, 1000)
    tier.offer(short.info, lambda: io.BytesIO(short.data[:-1]), None)
    tier.wait_idle()
    assert local.count("upload_total", result="gone") == 2
    assert local.count("upload_total", result="too_big") == 1
    assert list(local.objects) == []


def test_modes_bound_what_a_tier_does(local: Lab) -> None:
    """A read-only tier uploads nothing, a write-only one fetches nothing."""
    archive = local.archive()
    local.upload(local.tier(mode="read-only"), archive)
    assert local.count("upload_total", result="skipped") == 1
    writer = local.tier(mode="write-only")
    local.upload(writer, archive)
    assert local.fetch(writer, archive)[0] is FetchResult.SKIPPED
    assert local.fetch(local.tier(mode="read-only"), archive)[0] is FetchResult.HIT


def test_a_directory_that_is_missing_is_one_error_and_tried_again(
    local: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong bucket is an error in the log, not an endless miss."""
    (tmp_path / "store").rename(tmp_path / "away")
    tier = local.tier()
    assert local.fetch(tier, local.archive())[0] is FetchResult.SKIPPED
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert "cannot be used" in record.message
    assert "\nhint: " in record.message
    assert tier.problem is not None


def test_a_directory_that_vanishes_is_an_error(local: Lab, tmp_path: Path) -> None:
    """An object that is not there is a miss, a store that is not there is none."""
    tier, archive = local.tier(), local.archive()
    assert local.fetch(tier, archive)[0] is FetchResult.ABSENT
    (tmp_path / "store").rename(tmp_path / "away")
    assert local.fetch(tier, archive)[0] is FetchResult.ERROR
    (tmp_path / "away").rename(tmp_path / "store")
    assert local.fetch(tier, archive)[0] is FetchResult.ABSENT


def test_a_closed_tier_does_nothing(local: Lab) -> None:
    """Offers are dropped, fetches skipped, and a second close is harmless."""
    tier, archive = local.tier(), local.archive()
    tier.close()
    tier.close()
    local.upload(tier, archive)
    assert local.count("upload_total", result="dropped") == 1
    assert local.fetch(tier, archive)[0] is FetchResult.SKIPPED


def test_a_request_in_the_main_thread_is_refused(local: Lab) -> None:
    """Python would handle no signal until it ends."""
    tier, archive = local.tier(), local.archive()
    with pytest.raises(RuntimeError, match="main thread"):
        tier.fetch(*archive.info[:3], Sink(archive.key, archive.info.lsn), 0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_nothing(local: Lab) -> None:
    """A child neither uploads nor fetches, nor hangs at its end."""
    tier, archive = local.tier(), local.archive()
    local.upload(tier, archive)
    pid = os.fork()
    if pid == 0:
        tier.offer(local.archive(0x2000).info, archive.open, None)
        is_skipped = (
            tier.fetch(*archive.info[:3], Sink(archive.key, archive.info.lsn), 0.0)
            is FetchResult.SKIPPED
        )
        tier.close()
        os._exit(0 if is_skipped else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert local.count("fetch_total", result="skipped") == 0


def test_two_tiers_need_registries_of_their_own(local: Lab) -> None:
    """The second one of a registry is refused, and leaves no thread."""
    local.tier()
    with pytest.raises(ConfigError, match="metrics of another tier"):
        ObjectTier(local.config(), local.registry)


@pytest.mark.parametrize(
    "options", [{"bogus": "1"}, {"region": "x", "connect_timout": "1s"}], ids=["name", "typo"]
)
def test_an_option_that_is_not_known_is_an_error(remote: Lab, options: dict[str, str]) -> None:
    """The engine names it."""
    with pytest.raises(ConfigError, match="cannot use the tier s3://bucket"):
        ObjectTier(remote.config(options=options))


def test_settings_without_a_tier_are_named() -> None:
    """`ObjectTier(config.tier)` is what the docs show, and None without the table."""
    nothing: Any = BasebackupCacheConfig().tier
    with pytest.raises(
        ArgumentError, match=r"config must be a TierConfig, not None\nhint: .*table"
    ):
        ObjectTier(nothing)
