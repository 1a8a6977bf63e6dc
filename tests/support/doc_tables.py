"""The tables of docs/ that come from declarations.

`python tests/support/doc_tables.py` writes them.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. tests/test_docs.py
fails where a page and the declarations differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bbcache.cli.service_metrics import DeploymentMetrics
from bbcache.config import BasebackupCacheConfig
from bbcache.http_service.config import HttpConfig
from bbcache.metrics import Metrics
from bbcache.outcomes import Outcome, SkipReason
from bbcache.page_service.config import PageServiceConfig
from bbcache.page_service.metrics import ServiceMetrics
from bbcache.pageserver.metrics import ROWS
from bbcache.setting_rows import Setting, settings_of
from bbcache.tier_config import TierConfig
from bbcache.tier_metrics import TierMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bbcache.metric_rows import Row

DOCS: Final = Path(__file__).parents[2] / "docs"
_TABLE: Final = re.compile(r"(<!-- table: (.+) -->\n)(?:.*\n)*?(<!-- end of table -->)")
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def table(*rows: Iterable[str]) -> str:
    """Lay out a table in Markdown; the first row is its head."""
    head, *others = (tuple(row) for row in rows)
    lines = [head, ("---",) * len(head), *others]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def settings_table(config: type) -> str:
    """All keys of a dataclass."""
    return table(
        ("key", "takes", "default", "unit", "meaning"),
        *(
            (f"`{key}`", row.kind.wanted, default_of(row), row.kind.unit, row.text)
            for key, row in settings_of(config).items()
        ),
    )


def default_of(row: Setting) -> str:
    """The default of a key, as people write it."""
    if row.default_text:
        return row.default_text
    if row.kind.unit == "seconds":
        return f"`{row.default:g}s`" if row.kind.parse else f"{row.default:g}"
    if row.kind.unit == "bytes":
        return next(f"{row.default // size} {name}" for size, name in _SIZES if row.default >= size)
    if isinstance(row.default, bool):
        return "yes" if row.default else "no"
    return str(row.default) if isinstance(row.default, int) else f"`{row.default}`"


def metrics_table(rows: Iterable[Row[Any]]) -> str:
    """All metrics of a set."""
    return table(
        ("metric", "kind", "labels", "meaning"),
        *(
            (
                f"`{row.name}`",
                row.kind,
                "; ".join(f"`{label}`: {', '.join(row.labels[label])}" for label in row.labels),
                row.text,
            )
            for row in rows
        ),
    )


def values_table(rows: Iterable[Row[Any]]) -> str:
    """The values of labels that are declared with a text."""
    return table(
        ("metric", "label", "meaning"),
        *(
            (f"`{row.name}`", f'`{label}="{value}"`', value.text)
            for row in rows
            for label, values in row.labels.items()
            for value in values
            if isinstance(value, Outcome)
        ),
    )


def outcomes_table(head: str, outcomes: Iterable[Outcome]) -> str:
    """The members of one kind."""
    return table((head, "meaning"), *((f"`{each}`", each.text) for each in outcomes))


TABLES: Final = {
    "settings of the cache": settings_table(BasebackupCacheConfig),
    "settings of the tier": settings_table(TierConfig),
    "settings of the page service": settings_table(PageServiceConfig),
    "settings of the HTTP service": settings_table(HttpConfig),
    "metrics of the cache": metrics_table(Metrics.rows()),
    "metrics of the tier": metrics_table(TierMetrics.rows()),
    "metrics of the page service": metrics_table(ServiceMetrics.rows()),
    "metrics of the reference pageserver": metrics_table(ROWS),
    "metrics of bbcache serve": metrics_table(DeploymentMetrics.rows()),
    "label values of the cache": values_table(Metrics.rows()),
    "label values of the tier": values_table(TierMetrics.rows()),
    "label values of the page service": values_table(ServiceMetrics.rows()),
    "reasons of skips": outcomes_table("skip", SkipReason),
}


def names_in(page: str) -> list[str]:
    """The tables that a page has."""
    return [match[2] for match in _TABLE.finditer(page)]


def filled_in(page: str) -> str:
    """The page with its tables as they are declared."""
    return _TABLE.sub(lambda match: match[1] + TABLES[match[2]] + match[3], page)


if __name__ == "__main__":
    for path in DOCS.glob("*.md"):
        path.write_text(filled_in(path.read_text()))
