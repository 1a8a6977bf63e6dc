"""The settings of the second tier: plain data, without secrets."""

from __future__ import annotations

from typing import Any

import pytest

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import ConfigError
from bbcache.tier_config import TierConfig

GOOD: dict[str, Any] = {"url": "s3://bucket/prefix", "key_files": ("/etc/bbcache/key",)}


def test_a_table_of_toml_is_the_tier_of_a_cache() -> None:
    """The keys are those of the specification; times are texts, lists become tuples."""
    config = BasebackupCacheConfig.from_toml(
        {
            "tier": {
                "url": "gs://bucket",
                "key_files": ["a", "b"],
                "mode": "read-only",
                "fetch_timeout": "500ms",
                "fetch_concurrency": 4,
                "options": {"endpoint": "http://127.0.0.1:1", "allow_http": True},
            }
        }
    )
    assert config.tier == TierConfig(
        url="gs://bucket",
        key_files=("a", "b"),
        mode="read-only",
        fetch_timeout=0.5,
        fetch_concurrency=4,
        options={"endpoint": "http://127.0.0.1:1", "allow_http": True},
    )
    assert BasebackupCacheConfig().tier is None


@pytest.mark.parametrize(
    "url",
    [
        *("s3://b", "s3://b/p/q", "gs://b/p", "az://container/p", "file:///srv/store"),
    ],
)
def test_urls_of_every_store_are_taken(url: str) -> None:
    """A bucket, and a prefix if it has one."""
    assert TierConfig(**{**GOOD, "url": url}).url == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "b/p", "ftp://b", "s3://", "file://", "file:///", "memory:///", "http://h/b"),
        *("s3://id:secret@b", "s3://b?token=x", None, 3, "s3://["),
    ],
)
def test_other_urls_are_refused(url: object) -> None:
    """Also those with credentials in them."""
    with pytest.raises(ConfigError, match=r"url is .*, but must be a URL"):
        TierConfig(**{**GOOD, "url": url})


@pytest.mark.parametrize("epoch", ["", ".", "a/b", "..", "a b", "x" * 65, "é", None, 1])
def test_an_epoch_is_a_plain_part_of_a_name(epoch: object) -> None:
    """No slash, no dot at the start, nothing that a store may encode."""
    with pytest.raises(ConfigError, match="epoch is"):
        TierConfig(**GOOD, epoch=epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        *("secret_access_key", "access_key_id", "AWS_SESSION_TOKEN", "account_key", "sas_token"),
        *("client_secret", "service_account_key", "password"),
    ],
)
def test_secrets_in_the_options_are_refused(name: str) -> None:
    """The error names the option, not its value, and says where credentials belong."""
    with pytest.raises(ConfigError) as caught:
        TierConfig(**GOOD, options={name: "hidden"})
    assert name in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "\nhint: Give credentials by the environment" in str(caught.value)


def test_without_a_key_unsigned_objects_must_be_allowed() -> None:
    """Nothing is served unsigned by an oversight."""
    with pytest.raises(ConfigError, match="key_files of the tier is empty"):
        TierConfig(url="s3://b")
    assert TierConfig(url="s3://b", allow_unsigned=True).key_files == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("key_files", "/etc/key"),
        ("key_files", [1]),
        ("options", []),
        ("options", {"region": 1.5}),
        ("bogus", 1),
    ],
)
def test_a_bad_value_in_toml_is_named(key: str, value: object) -> None:
    """By the key, as for every setting."""
    table = {"url": "s3://b", "key_files": ["k"], key: value}
    with pytest.raises(ConfigError, match=f"^tier: .*{key}"):
        BasebackupCacheConfig.from_toml({"tier": table})
    with pytest.raises(ConfigError, match="tier is 3"):
        BasebackupCacheConfig.from_toml({"tier": 3})
