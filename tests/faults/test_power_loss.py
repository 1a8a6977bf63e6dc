"""Whatever a power loss leaves on the disk: no bad entry, and a good start."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import pytest
from faults import power_loss
from faults.power_loss import Content, Disk, File, Write

if TYPE_CHECKING:
    from pathlib import Path

    from faults.harness import FaultHarness

_TAKES_ALL: Final = os.environ.get("BBCACHE_FAULTS") == "all"
_STARTS: Final = 10


@pytest.mark.slow
@pytest.mark.timeout(7200 if _TAKES_ALL else 120)
@pytest.mark.parametrize("verify_reads", ["first", "never"])
def test_every_image_starts_well(harness: FaultHarness, verify_reads: str) -> None:
    """No image holds a corrupt entry, and a start on it keeps every invariant."""
    rng = random.Random(random.random())
    disk, calls = power_loss.record_life(harness.benches[0])
    images = power_loss.all_images(disk, calls, rng, 40 if _TAKES_ALL else 5)
    if not _TAKES_ALL:
        images = rng.sample(images, _STARTS)
    answers = harness.each(lambda b, image: power_loss.start_on(b, image, verify_reads), images)
    complaints = [line for found in answers for line in found]
    assert not complaints, f"{len(images)} images: {complaints[:5]}"


def test_the_model_agrees_with_the_disk(harness: FaultHarness) -> None:
    """With nothing lost, the model holds what the directory holds after the life."""
    bench = harness.benches[0]
    disk, calls = power_loss.record_life(bench)
    assert sum(disk.apply(call) for call in calls) > 80
    image = next(disk.images(random.Random(0), 0))
    assert {name: content.data for name, content in image.items()} == _files(
        bench.directory / "cache"
    )


def test_the_images_find_a_missing_fsync(harness: FaultHarness) -> None:
    """A cache that renames what it has not synced leaves corrupt entries in some image."""
    disk, calls = power_loss.record_life(harness.benches[0], mutation="no fsync")
    images = power_loss.all_images(disk, calls, random.Random(0), 2)
    corrupt = [image for image in images if power_loss.corrupt_entries(image)]
    assert corrupt
    complaints = power_loss.start_on(harness.benches[0], corrupt[0], "never")
    assert complaints


def test_the_images_find_a_patch_after_the_fsync(harness: FaultHarness) -> None:
    """A seal that is patched in after the fsync can be missing."""
    disk, calls = power_loss.record_life(harness.benches[0], mutation="fsync before the patch")
    images = power_loss.all_images(disk, calls, random.Random(0), 2)
    assert any(power_loss.corrupt_entries(image) for image in images)


def test_unsynced_writes_may_be_lost_in_any_way() -> None:
    """Zeros, an old state, a part, a later write without an earlier one: all are possible."""
    file = File(b"old", [Write(0, b"abcdef"), Write(0, b"XY")])
    assert (file.whole(), file.synced, file.zeroed()) == (b"XYcdef", b"old", bytes(6))
    torn = {file.torn(random.Random(seed)) for seed in range(200)}
    assert torn >= {b"XYcdef", b"abcdef", b"old", b"XYd", b"Xbcdef"}


def test_a_name_may_stand_for_any_of_its_files(tmp_path: Path) -> None:
    """An old name, a renamed one and none may each be on the disk, independent of other names."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    disk = Disk(tmp_path)
    disk.bind("b", disk.names["a"][-1], is_outside=False)
    disk.bind("a", None, is_outside=False)
    images = disk.images(random.Random(0), 100)
    seen = {tuple(sorted((n, c.data) for n, c in image.items())) for image in images}
    one, two = Content(b"1", is_damaged=False).data, Content(b"2", is_damaged=False).data
    assert seen == {
        (("b", one),),
        (("b", two),),
        (("a", one), ("b", one)),
        (("a", one), ("b", two)),
    }


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
