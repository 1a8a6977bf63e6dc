"""The end of a process that has a tier: it comes in time, whatever was left open."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import CHILD_DEADLINE_S, DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tier.lab import Lab
    from tier.object_store import ObjectStore

_CHILD = """
import io, os, sys
from prometheus_client import CollectorRegistry
from bbcache import EntryInfo, Lsn, TenantId, TierConfig, TimelineId
from bbcache.tier import ObjectTier

url, endpoint, key, how, flush_s = sys.argv[1:]
options = {"endpoint": endpoint, "region": "local", "allow_http": True} if endpoint else None
config = TierConfig(
    url=url, key_files=(key,), options=options, upload_timeout=0.2, flush_timeout=float(flush_s)
)
tier = ObjectTier(config, CollectorRegistry())
tier.wait_checked()
if how != "idle":
    info = EntryInfo(TenantId.generate(), TimelineId.generate(), Lsn(1), 4)
    tier.offer(info, lambda: io.BytesIO(b"data"), None)
print("ready", flush=True)
if how == "raise":
    raise SystemExit(3)
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the child to its end."""
    return subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=CHILD_DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize(("how", "code"), [("idle", 0), ("upload", 0), ("raise", 3)])
def test_a_tier_that_was_not_closed_ends_with_the_process(
    local: Lab, tmp_path: Path, key_file: Path, how: str, code: int
) -> None:
    """Offered archives are uploaded, and no thread keeps the interpreter."""
    done = run(f"file://{tmp_path}/store", "", key_file, how, DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (code, "ready\n", "")
    assert len(local.objects) == (0 if how == "idle" else 1)


@pytest.mark.usefixtures("remote")
def test_an_upload_that_hangs_does_not_keep_the_process(store: ObjectStore, key_file: Path) -> None:
    """It ends with `upload_timeout`; the exit code is that of the program."""
    store.fault, store.faulty_methods = "hang", frozenset({"PUT"})
    done = run("s3://bucket", store.endpoint, key_file, "upload", 0.1)
    assert (done.returncode, done.stdout) == (0, "ready\n")
