"""Figures as text."""

from __future__ import annotations

from typing import Final

_SECONDS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_BYTES: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_DIGITS: Final = 3
_MANY: Final = 100


def format_seconds(seconds: float) -> str:
    """Format in s, ms, us or ns, with three digits: ``1.23 ms``."""
    for unit_s, name in _SECONDS:
        if seconds >= unit_s:
            return f"{_short(seconds / unit_s)} {name}"
    return f"{_short(seconds * 1e9)} ns" if seconds > 0 else "0"


def format_bytes(size_bytes: float) -> str:
    """Format in GB, MB, kB or B, by powers of ten, with three digits."""
    for unit_bytes, name in _BYTES:
        if size_bytes >= unit_bytes:
            return f"{_short(size_bytes / unit_bytes)} {name}"
    return f"{_short(size_bytes)} B"


def format_figure(value: float, unit: str) -> str:
    """Format a figure of a bar: ``1.23x``, or ``211 bytes``."""
    text = f"{value:.0f}" if value >= _MANY else f"{value:.{_DIGITS}g}"
    return f"{text}x" if unit == "x" else f"{text} {unit}"


def format_spread(spread: float | None) -> str:
    """Format half the distance between the quartiles: ``+-3%``."""
    return "once" if spread is None else f"+-{100 * spread:.0f}%"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= _MANY else f"{value:.{_DIGITS}g}"
