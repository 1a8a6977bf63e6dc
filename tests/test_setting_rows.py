"""Settings that are declared in rows: checks, defaults and texts follow from each row."""

from __future__ import annotations

import dataclasses

import pytest

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import ConfigError
from bbcache.http_service.config import HttpConfig
from bbcache.page_service.config import PageServiceConfig
from bbcache.setting_rows import (
    add_keys_to_docstring,
    check_settings,
    integer,
    optional,
    setting,
    settings_of,
)

CONFIGS = [BasebackupCacheConfig, PageServiceConfig, HttpConfig]
ROWS = [
    pytest.param(config, key, id=f"{config.__name__}.{key}")
    for config in CONFIGS
    for key in settings_of(config)
]


@dataclasses.dataclass(frozen=True)
class Oven:
    """Settings of an oven."""

    heat: int = setting(integer(0, 9, unit="notches"), 5, "how hot")
    hours: int | None = setting(optional(integer(1)), None, "how long")
    colour: str = "red"

    def __post_init__(self) -> None:
        """Check."""
        check_settings(self)


add_keys_to_docstring(Oven)


def test_one_row_checks_and_explains_its_key() -> None:
    """Default, range, error and docstring come from the row; other fields are left alone."""
    assert Oven() == Oven(heat=5, hours=None)
    assert Oven(heat=9, hours=1).heat == 9
    for bad in (-1, 10, True, "5", None):
        with pytest.raises(ConfigError, match=r"heat is .* int of at least 0 and at most 9"):
            Oven(heat=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"hours is 0, but must be an int of at least 1"):
        Oven(hours=0)
    assert list(settings_of(Oven)) == ["heat", "hours"]
    assert Oven.__doc__ is not None
    assert Oven.__doc__.splitlines() == [
        *("Settings of an oven.", "", "    Attributes:"),
        "        heat: how hot (an int of at least 0 and at most 9, in notches).",
        "        hours: how long (an int of at least 1).",
    ]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_that_can_be_given_is_a_row(config: type) -> None:
    """No key is without type, range and text."""
    given = [field.name for field in dataclasses.fields(config) if field.init]
    assert given == list(settings_of(config))


@pytest.mark.parametrize(("config", "key"), ROWS)
def test_each_key_takes_its_default_and_refuses_an_object(config: type, key: str) -> None:
    """The error names key, value and range; the docstring has the text."""
    row = settings_of(config)[key]
    assert getattr(config(), key) == row.default
    assert row.kind.accepts(row.default)
    value = object()
    with pytest.raises(ConfigError) as caught:
        config(**{key: value})
    assert str(caught.value) == f"{key} is {value!r}, but must be {row.kind.wanted}"
    assert f"{key}: {row.text} (" in (config.__doc__ or "")


@pytest.mark.parametrize(("config", "key"), ROWS)
def test_each_text_fits_a_table(config: type, key: str) -> None:
    """One line without a bar; a default that is no value is told in words."""
    row = settings_of(config)[key]
    for text in (row.text, row.kind.wanted, row.default_text):
        assert text == text.strip()
        assert not set(text) & set("|\n")
        assert not text.endswith(".")
    assert (row.default is None) <= bool(row.default_text)
