"""Checks of arguments, and one wording for arguments of a wrong type. Thread-safe."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from typing import Final

from bbcache.errors import ArgumentError, BbcacheError, ParseError, safe_repr

_PLAIN: Final = (str, bytes, bytearray, int, float)  # shown by their values
_MOST_SHOWN: Final = 80


def wrong_type(name: str, value: object, wanted: str, hint: str = "") -> ArgumentError:
    """The error for an argument of a wrong type.

    Args:
        name: the argument's name.
        value: the argument.
        wanted: the right type, with its article.
        hint: what to do, as a sentence.
    """
    text = f"{name} must be {wanted}, not {_described(value)}"
    return ArgumentError(f"{text}\nhint: {hint}" if hint else text)


def check_methods(name: str, value: object, wanted: str, methods: tuple[str, ...]) -> None:
    """Check that an argument has the methods that will be called; see `wrong_type`.

    Raises:
        ArgumentError: (a `TypeError`) it is a class, lacks a method or has an ``async`` one.
    """
    if isinstance(value, type):
        raise wrong_type(name, value, wanted, f"Pass an object of it: {value.__name__}(...).")
    missing = [each for each in methods if not callable(getattr(value, each, None))]
    if missing:
        raise wrong_type(name, value, wanted, f"Give it the missing {_listed(missing)}.")
    if found := [each for each in methods if is_async(getattr(value, each))]:
        raise wrong_type(name, value, wanted, f"Make its {_listed(found)} plain, not async.")


def is_async(function: object) -> bool:
    """Whether a call would return a coroutine or an asynchronous generator."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def seconds(name: str, value: object) -> float | None:
    """A timeout that the system can wait for.

    Args:
        name: the argument's name.
        value: seconds; None for no limit.

    Returns:
        Seconds, at least 0; None for no limit, or for more than the system can wait for.

    Raises:
        ArgumentError: (a `TypeError`) it is not a number.
        ParseError: (a `ValueError`) it is nan.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        is_delta = callable(getattr(value, "total_seconds", None))
        hint = f"Pass {name}.total_seconds()." if is_delta else "Pass an int or a float."
        raise wrong_type(name, value, "a number of seconds or None", hint)
    if value >= threading.TIMEOUT_MAX:
        return None
    if value != value:  # noqa: PLR0124 - nan
        raise ParseError(f"{name} must be a number of seconds or None, not nan")
    return max(0.0, value)


def check_passable(
    what: str, text: str | bytes | os.PathLike[str] | os.PathLike[bytes], error: type[BbcacheError]
) -> None:
    """Check that the operating system takes a text as a path or as an argument of a program.

    Python raises a plain `ValueError` otherwise, or C code reads the text up to the NUL.

    Args:
        what: the noun that the error begins with, such as ``the data directory``.
        text: the text.
        error: the class of the error.

    Raises:
        BbcacheError: of that class: it has a NUL, or a character that has no encoding.
    """
    if (fault := fault_of(text)) is not None:
        raise error(f"{what} has {fault}: {_described(os.fspath(text))}")


def fault_of(text: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str | None:
    """Why the operating system takes no such text; None if it does. See `check_passable`."""
    try:
        has_nul = b"\0" in os.fsencode(text)
    except UnicodeEncodeError:
        return f"a character that cannot be encoded as {sys.getfilesystemencoding()}"
    return "a NUL" if has_nul else None


def with_article(name: str) -> str:
    """The name of a class after its article."""
    return f"{'an' if name[0] in 'AEIOUaeiou' or name == 'Lsn' else 'a'} {name}"


def _described(value: object) -> str:
    """A value as an error names it: a plain one by its value, any other by its type."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if type(value) in _PLAIN:
        text = safe_repr(value)
        shown = text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
        return f"the {name} {shown}"
    return with_article(name)


def _listed(methods: list[str]) -> str:
    return f"method{'s' if len(methods) > 1 else ''} {' and '.join(methods)}"
