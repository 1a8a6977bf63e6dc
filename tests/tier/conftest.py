"""A tier on a directory, and one on our server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tier.lab import DirectoryObjects, Lab, make_key_file
from tier.object_store import BUCKET, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key that nobody else may read."""
    return make_key_file(tmp_path / "key")


@pytest.fixture
def local(tmp_path: Path, key_file: Path) -> Iterator[Lab]:
    """Tiers on a directory."""
    (tmp_path / "store").mkdir()
    objects = DirectoryObjects(tmp_path / "store")
    lab = Lab(f"file://{tmp_path}/store", key_file, objects, {})
    yield lab
    lab.close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Our server, and credentials for it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with ObjectStore() as server:
        yield server


@pytest.fixture
def remote(store: ObjectStore, key_file: Path) -> Iterator[Lab]:
    """Tiers on our server."""
    options = {"endpoint": store.endpoint, "region": "local", "allow_http": True}
    lab = Lab(f"s3://{BUCKET}", key_file, store.objects, {"options": options})
    yield lab
    store.ends.set()
    lab.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Lab:
    """Tiers on what the test is parametrized with."""
    found: Lab = request.getfixturevalue(request.param)
    return found
