"""Random histories of two nodes: the newest object stays, and nothing wrong is served."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import pytest
from tier.histories import CrashError, play_many

from bbcache.tier.uploader import Uploader

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache.tier.upload_queue import Upload

COUNT: Final = int(os.environ.get("BBCACHE_TIER_HISTORIES", "40"))


@pytest.mark.timeout(3600)
def test_two_nodes_never_remove_the_newest_object(
    tmp_path: Path, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The nodes that attach, stop, upload late, delete late or die."""
    caplog.set_level(logging.CRITICAL)
    counts, store = play_many(tmp_path, key_file, range(COUNT))
    counts["fetches"] = store.fetch_count
    print(f"\n{dict(counts)}")  # noqa: T201 - tox -e reliability shows it
    assert store.wrong == []
    assert counts["histories"] == COUNT
    for wanted in ("fetches", "start: hit", "start: built", "die_in_a_request"):
        assert counts[wanted] > 0, counts


def test_the_histories_find_a_wrong_rule(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that removes its own object, as at a detach, removes the newest one of another."""
    run = Uploader.run

    def remove_own(uploader: Uploader, upload: Upload) -> None:
        run(uploader, upload)
        try:
            uploader._bucket.delete(uploader._address(upload).name)
        except CrashError:
            return

    monkeypatch.setattr(Uploader, "run", remove_own)
    _, store = play_many(tmp_path, key_file, range(5))
    assert store.wrong != []
