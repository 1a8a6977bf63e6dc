"""The settings of the second tier, one row for each key: plain data.

They are the table ``tier`` in the settings of a cache. `bbcache.tier` implements the tier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from bbcache.arguments import fault_of
from bbcache.durations import DURATION
from bbcache.errors import ConfigError, without_credentials
from bbcache.setting_rows import (
    Kind,
    add_keys_to_docstring,
    bad_value,
    check_settings,
    instance,
    integer,
    one_of,
    optional,
    read_table,
    setting,
)

OptionValue = str | bool | int

SCHEMES: Final = ("s3", "gs", "az", "file")
_EPOCH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SECRET: Final = re.compile(r"secret|token|(?<!kms_)key|password|sas|credential", re.IGNORECASE)
_CREDENTIALS_HINT: Final = (
    "\nhint: Give credentials by the environment (such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY) or by a role of the machine."
)


def _is_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    names = parts.path.strip("/").split("/")
    if parts.scheme == "file":
        has_place = bool(names[0]) and not parts.netloc
    else:  # "@" and ":" are those of credentials, also of a password with a slash
        has_place = bool(parts.netloc) and not set("@:") & set(parts.netloc)
    is_plain = not set("?#") & set(value) and value.isprintable()
    is_plain = is_plain and value.startswith(f"{parts.scheme}://")  # in lower case
    return parts.scheme in SCHEMES and has_place and is_plain and not {".", ".."} & set(names)


def _is_epoch(value: object) -> bool:
    return isinstance(value, str) and _EPOCH.fullmatch(value) is not None


def _are_paths(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(each, str) and each and fault_of(each) is None for each in value
    )


def _parse_paths(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise bad_value(key, value, _PATHS.wanted)
    return tuple(value)


def _are_options(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(each, OptionValue)
        and fault_of(name) is fault_of(str(each)) is None
        for name, each in value.items()
    )


_URL: Final = Kind(
    f"a URL of {', '.join(SCHEMES)}, without credentials, `?`, `#`, `.` and `..`", _is_url
)
_EPOCH_KIND: Final = Kind("1 to 64 of the characters A-Z a-z 0-9 . _ -", _is_epoch)
_PATHS: Final = Kind("a tuple of paths (a list in TOML)", _are_paths, parse=_parse_paths)
_OPTIONS: Final = Kind("a table of texts, numbers and bools, without secrets", _are_options)


def _check_options(options: object) -> None:
    """Refuse secrets in the options, and http unless it is allowed."""
    if not isinstance(options, Mapping):
        return
    texts = {str(name): str(value) for name, value in options.items()}
    secrets = sorted(
        name
        for name, value in texts.items()
        if _SECRET.search(name) or without_credentials(value) != value
    )
    if secrets:
        raise ConfigError(
            f"options of the tier hold secrets, which do not belong into a configuration: "
            f"{', '.join(secrets)}{_CREDENTIALS_HINT}"
        )
    allow_http = options.get("allow_http", False)
    if not isinstance(allow_http, bool):
        raise bad_value("option allow_http of the tier", allow_http, "true or false")
    for name, value in texts.items():
        if value.startswith("http://") and not allow_http:
            raise ConfigError(
                f"option {name} of the tier is {value}, which is not encrypted\n"
                "hint: Use https, or set the option allow_http to true."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """Settings of a second tier in object storage. Immutable, hence thread-safe.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range; for a secret in
            the options; and where neither `key_files` nor `allow_unsigned` is given.
    """

    url: str = setting(
        _URL,
        "",
        "the bucket and the prefix of the names, such as `s3://bucket/prefix`",
        "must be given",
    )
    epoch: str = setting(
        _EPOCH_KIND, "1", "a part of the names and the signatures: change it to disown every object"
    )
    key_files: tuple[str, ...] = setting(
        _PATHS,
        (),
        "files of the signing keys, of at least 32 bytes and mode 0600; the first one signs, each "
        "one verifies; they are read again when they change",
        "none",
    )
    allow_unsigned: bool = setting(
        instance("a bool", bool),
        default=False,
        text="fetch objects that are not signed: anyone who can write to the bucket can then "
        "write every tenant's basebackups",
    )
    mode: Literal["read-write", "read-only", "write-only"] = setting(
        one_of("read-write", "read-only", "write-only"),
        "read-write",
        "whether archives are fetched and uploaded",
    )
    connect_timeout: float = setting(DURATION, 0.2, "time to connect, of a fetch")
    first_byte_timeout: float = setting(
        DURATION, 0.2, "time until the first byte of a fetch, and between two pieces of it"
    )
    fetch_timeout: float = setting(
        DURATION, 2.0, "time of a fetch, the wait for a thread included; then the archive is built"
    )
    upload_timeout: float = setting(DURATION, 20.0, "time of one attempt to upload or delete")
    flush_timeout: float = setting(
        DURATION, 5.0, "time that a close waits for the archives that are still to be uploaded"
    )
    fetch_concurrency: int = setting(integer(1, unit="archives"), 16, "archives fetched at once")
    upload_concurrency: int = setting(integer(1, unit="archives"), 1, "archives uploaded at once")
    upload_queue_size: int = setting(
        integer(1, unit="archives"),
        1000,
        "archives that wait for their upload; one more drops the oldest",
    )
    max_object_size_bytes: int = setting(
        integer(1, unit="bytes"), 64 * 1024**2, "size of one object; an upload holds it in memory"
    )
    options: Mapping[str, OptionValue] | None = setting(
        optional(_OPTIONS),
        None,
        "options of the object store by their names there, such as `endpoint` and `region`, and "
        "`allow_http`",
        "none",
    )

    def __post_init__(self) -> None:
        _check_options(self.options)  # first, since a bad value is shown
        check_settings(self)
        if not (self.key_files or self.allow_unsigned):
            raise ConfigError(
                "key_files of the tier is empty, so nothing could be signed or verified\n"
                "hint: Make a key with `(umask 077; head -c 32 /dev/urandom > FILE)` and name "
                "the file, or set allow_unsigned."
            )

    @property
    def may_fetch(self) -> bool:
        """Whether archives are fetched."""
        return self.mode != "write-only"

    @property
    def may_upload(self) -> bool:
        """Whether archives are uploaded."""
        return self.mode != "read-only"


add_keys_to_docstring(TierConfig)


def _parse(value: object, key: str) -> TierConfig:
    if not isinstance(value, Mapping):
        raise bad_value(key, value, "a table")
    try:
        return read_table(TierConfig, value, "the settings")
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


TIER: Final = Kind(
    "a `TierConfig` (a table in TOML)", lambda v: isinstance(v, TierConfig), parse=_parse
)
