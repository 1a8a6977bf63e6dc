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
        *("s3://b/p#q", "s3://b/../p", "s3://b/./p", "s3://b/p\nq", "file://host/p"),
        *("file:/srv/store", "FILE:///srv/store", "S3://b"),
    ],
)
def test_other_urls_are_refused(url: object) -> None:
    """URLs of other schemes, without a bucket or with credentials are refused."""
    with pytest.raises(ConfigError, match=r"url is .*, but must be a URL"):
        TierConfig(**{**GOOD, "url": url})


@pytest.mark.parametrize(
    "url", ["s3://id:hidden@b", "s3://id:hid/hidden@b", "az://b/p?sv=1&sig=hidden"]
)
def test_credentials_in_a_url_are_not_shown(url: str) -> None:
    """The error says what a URL is, without the secret in this one."""
    with pytest.raises(ConfigError, match="without credentials") as caught:
        TierConfig(**{**GOOD, "url": url})
    assert "hidden" not in str(caught.value)


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


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "https://id:hidden@h"},
        {"endpoint": "https://h?sig=hidden"},
        {"password": "hidden", "region": 1.5},
    ],
)
def test_secrets_are_found_in_values_and_beside_bad_ones(options: dict[str, Any]) -> None:
    """A URL of an option has no credentials, and no error shows a secret."""
    with pytest.raises(ConfigError, match="hold secrets") as caught:
        TierConfig(**GOOD, options=options)
    assert "hidden" not in str(caught.value)


def test_http_must_be_allowed() -> None:
    """An endpoint without encryption is refused here, since the engine does not say why."""
    with pytest.raises(ConfigError, match=r"option endpoint .*http://h(?s:.*)allow_http"):
        TierConfig(**GOOD, options={"endpoint": "http://h"})
    TierConfig(**GOOD, options={"endpoint": "http://h", "allow_http": True})
    with pytest.raises(ConfigError, match="allow_http of the tier is 'false', but must be true"):
        TierConfig(**GOOD, options={"allow_http": "false"})


def test_the_name_of_a_key_of_the_store_is_no_secret() -> None:
    """An operator may say by which key the store encrypts."""
    TierConfig(**GOOD, options={"sse_kms_key_id": "arn:aws:kms:r:1:key/k"})


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
    """A bad value in TOML is named by its key."""
    table = {"url": "s3://b", "key_files": ["k"], key: value}
    with pytest.raises(ConfigError, match=f"^tier: .*{key}"):
        BasebackupCacheConfig.from_toml({"tier": table})
    with pytest.raises(ConfigError, match="tier is 3"):
        BasebackupCacheConfig.from_toml({"tier": 3})
