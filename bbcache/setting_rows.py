"""Settings declared as rows: type, range, default, unit and text of each key, once.

The rows are the fields of a dataclass. The checks, the docstring of the class, the reading
of TOML and the tables of the docs follow from them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bbcache.arguments import fault_of
from bbcache.errors import ConfigError, safe_repr, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_C = TypeVar("_C")
_KEY: Final = "bbcache"  # of a field's metadata
_LEAST_S: Final = 1e-9
_MOST_S: Final = 1e9  # 31 years; no clock of the system can wait for much more


@dataclass(frozen=True, slots=True)
class Kind:
    """The values that a key takes.

    Attributes:
        wanted: type and range, as an error and the docs give them.
        accepts: whether it takes a value.
        unit: of the numbers; empty if there is none.
        parse: makes a value of the one in TOML, given the key for an error; None if TOML has
            the value itself.
    """

    wanted: str
    accepts: Callable[[Any], bool]
    unit: str = ""
    parse: Callable[[object, str], Any] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one key.

    Attributes:
        kind: the values that it takes.
        default: the value without the key.
        text: what it sets: lower case, no full stop.
        default_text: the default in words, if the value alone says too little.
    """

    kind: Kind
    default: Any
    text: str
    default_text: str


def setting(kind: Kind, default: object, text: str, default_text: str = "") -> Any:
    """Declare the field of a dataclass as a key; the arguments are those of `Setting`."""
    return field(default=default, metadata={_KEY: Setting(kind, default, text, default_text)})


def settings_of(config: type) -> dict[str, Setting]:
    """The declared keys of a dataclass, in their order."""
    return {each.name: each.metadata[_KEY] for each in fields(config) if _KEY in each.metadata}


def check_settings(config: Any) -> None:
    """Check every key of an object.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by key, value and range.
    """
    for key, row in settings_of(type(config)).items():
        value = getattr(config, key)
        if not row.kind.accepts(value):
            raise bad_value(key, value, row.kind.wanted)


def read_table(config: type[_C], table: Mapping[Any, Any], what: str) -> _C:
    """Make an object of a table of TOML.

    Args:
        config: the dataclass.
        table: a parsed table.
        what: what its keys set, for the error.

    Raises:
        ConfigError: (a `ValueError`) an unknown key or a bad value, by name.
    """
    known = settings_of(config)
    unknown = sorted(
        key if type(key) is str else safe_repr(key) for key in table if key not in known
    )
    if unknown:
        raise ConfigError(
            f"unknown key in {what}: {', '.join(unknown)}\n"
            f"hint: Known keys are {', '.join(sorted(known))}."
        )
    values: dict[str, Any] = {}
    for key, value in table.items():
        parse = known[key].kind.parse
        values[key] = value if parse is None else parse(value, key)
    return config(**values)


def add_keys_to_docstring(config: type) -> None:
    """List the keys of a dataclass as the attributes in its docstring."""
    lines = []
    for key, row in settings_of(config).items():
        kind = row.kind
        unit = f", in {kind.unit}" if kind.unit and kind.unit not in kind.wanted else ""
        lines.append(f"        {key}: {row.text} ({kind.wanted}{unit}).")
    config.__doc__ = "\n".join([(config.__doc__ or "").rstrip(), "", "    Attributes:", *lines, ""])


def integer(least: int, most: int | None = None, *, unit: str = "") -> Kind:
    """An int, but no bool, in a range."""
    upper = "" if most is None else f" and at most {most}"
    return Kind(
        f"an int of at least {least}{upper}",
        lambda value: (
            isinstance(value, int)
            and not isinstance(value, bool)
            and least <= value
            and (most is None or value <= most)
        ),
        unit,
    )


def seconds(parse: Callable[[object, str], float] | None = None) -> Kind:
    """A number of seconds that a clock can wait for, which TOML may have as a text."""
    return Kind(
        f"a number of seconds from {_LEAST_S:g} to {_MOST_S:g}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and _LEAST_S <= value <= _MOST_S
        ),
        "seconds",
        parse,
    )


def one_of(*words: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in words)


def instance(wanted: str, of: type) -> Kind:
    """Any object of a class."""
    return Kind(wanted, lambda value: isinstance(value, of))


def optional(kind: Kind) -> Kind:
    """The values of `kind`, or None, for which TOML leaves the key out."""
    return replace(kind, accepts=lambda value: value is None or kind.accepts(value))


def directory() -> Kind:
    """The path of a directory, which need not exist yet."""
    return Kind("the path of a directory, neither empty nor with a NUL", _is_path)


def _is_path(value: object) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    return isinstance(path, str) and bool(path) and fault_of(path) is None


def bad_value(key: str, value: object, wanted: str) -> ConfigError:
    """The error for a value that a key does not take."""
    shown = without_credentials(safe_repr(value))
    return ConfigError(f"{key} is {shown}, but must be {wanted}")
