"""One run: where it took place, every figure and every sample. As JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bbcache.bench.bars import Bar, Outcome, Sense, Verdict
from bbcache.bench.contest import CodecPoint, Curve, Figures
from bbcache.bench.latency import Distribution
from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT: Final = 1


@dataclass(frozen=True)
class Report:
    """All there is to say about a run.

    Attributes:
        started_at: UTC, by ISO 8601.
        counts: how much was measured, by the names of `bbcache.bench.scene.Counts`.
        machine: where, as of `bbcache.bench.machine`.
        versions: of what took part.
        outcomes: the lines of the table.
        figures: what the plots show.
    """

    started_at: str
    counts: Mapping[str, Any]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    outcomes: list[Outcome]
    figures: Figures

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        document = {
            "format": FORMAT,
            "started_at": self.started_at,
            "counts": dict(self.counts),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "bars": [_outcome_to_dict(outcome) for outcome in self.outcomes],
            "codecs": [point._asdict() for point in self.figures.codecs],
            "latencies": {
                name: each._asdict() for name, each in self.figures.distributions.items()
            },
            "curves": [curve._asdict() for curve in self.figures.curves],
            "notes": self.figures.notes,
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str, name: str) -> Report:
        """Read what `to_json` has written.

        Args:
            text: what was written.
            name: of the file, for errors.

        Raises:
            ConfigError: it is something else.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ConfigError(
                    f"{name} has format {document['format']!r}, but {FORMAT} is known here"
                )
            return cls(
                document["started_at"],
                document["counts"],
                document["machine"],
                document["versions"],
                [_outcome_from_dict(each) for each in document["bars"]],
                _figures_from(document),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{name} is no file of `bbcache bench --json`: {type(error).__name__}: {error}"
            ) from error


def read_report(path: Path) -> Report:
    """Read a file that was written with ``--json``.

    Raises:
        ConfigError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        return Report.from_json(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no file of `bbcache bench --json`: {error}") from error


def _outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    return {**outcome.bar._asdict(), **outcome._asdict(), "bar": None}


def _outcome_from_dict(values: dict[str, Any]) -> Outcome:
    bar = Bar(*(values[name] for name in Bar._fields))
    bar = bar._replace(sense=Sense(bar.sense))
    return Outcome(
        bar,
        values["group"],
        Verdict(values["verdict"]),
        values["value"],
        values["spread"],
        tuple(values["values"]),
        tuple(values["what_samples"]),
        tuple(values["against_samples"]),
        values["reason"],
    )


def _figures_from(document: dict[str, Any]) -> Figures:
    return Figures(
        [CodecPoint(**each) for each in document["codecs"]],
        {name: Distribution(**each) for name, each in document["latencies"].items()},
        [
            Curve(
                each["title"],
                {
                    name: [(point[0], point[1]) for point in points]
                    for name, points in each["series"].items()
                },
            )
            for each in document["curves"]
        ],
        document["notes"],
    )
