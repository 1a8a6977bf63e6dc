"""How the demo looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from bbcache.cli.demo_scenario import EXTRA_STEPS, STEPS_PER_ROUND

if TYPE_CHECKING:
    from bbcache.cli.demo_scenario import Report

_WIDTH = 100  # where output goes to a file
_MIN_WIDTH = 80  # a narrower terminal breaks lines; it must lose no figures


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error for the command to handle; rich exits with status 1 otherwise."""
        raise BrokenPipeError


class Progress:
    """Progress on stderr: a bar on a terminal that can show one, else one line for each step."""

    def __init__(self, round_count: int, extra_steps: int = EXTRA_STEPS) -> None:
        self._console = _Console(stderr=True)
        self._has_bar = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._has_bar,
        )
        steps = round_count * STEPS_PER_ROUND + extra_steps
        self._task = self._bar.add_task("", total=steps)
        self._is_first = True

    def advance(self, what: str) -> None:
        """Show that the last step has ended and that the step `what` begins."""
        self._bar.update(self._task, description=what, advance=0 if self._is_first else 1)
        self._is_first = False
        if not self._has_bar:
            self._console.print(what, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def print_report(report: Report) -> None:
    """Print tables of the rounds, the codecs and the metrics to stdout."""
    terminal = _Console()
    console = _Console(width=max(terminal.width, _MIN_WIDTH) if terminal.is_terminal else _WIDTH)
    console.print(f"\nPostgreSQL {report.postgres_version}, {len(report.rounds)} rounds\n")
    if report.is_via_page_service:
        console.print("Every basebackup came over the network, from a page service.\n")
    if report.has_two_nodes:
        console.print(
            "The tenant moved to the other of two pageservers before each start but the first. "
            "Its\nbasebackup was fetched from the store that they share, and was a hit.\n"
        )
    console.print(_rounds(report))
    if report.codecs:
        console.print(_codecs(report))
    if report.cleaned_lsn is not None:
        console.print(
            f"A compute node was started and wrote: its old basebackup at {report.cleaned_lsn} "
            "was cleaned away.\n",
            highlight=False,
        )
    console.print(_metrics(report))
    verdict = "[red]not as promised[/red]" if report.failures else "[green]as promised[/green]"
    console.print(f"Everything checked: {verdict}.")


def _rounds(report: Report) -> Table:
    title = "Each round: a start, some work, a stop; the next archive is built"
    table = Table(title=title, title_justify="left")
    for heading in (  # in two lines, to fit into 80 columns
        *("round", "cache", "get\nms", "unpack\nms", "start\nms"),
        *("stopped at", "archive\nMB", "build\nms"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in report.rounds:
        table.add_row(
            str(each.number),
            "[green]hit[/green]" if each.is_hit else "[yellow]miss[/yellow]",
            *(f"{seconds * 1e3:.2f}" for seconds in (each.get_s, each.unpack_s, each.start_s)),
            str(each.lsn),
            f"{each.archive_bytes / 1e6:.2f}",
            f"{each.build_s * 1e3:.1f}",
        )
    return table


def _codecs(report: Report) -> Table:
    title = f"The last tarball, {report.tar_bytes / 1e6:.1f} MB; the codecs take a sample of it"
    table = Table(title=title, title_justify="left")
    for heading in ("what", "MB in", "MB out", "ms", "MB/s"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    last = report.rounds[-1]
    for name, in_bytes, out_bytes, seconds in (
        (
            "bbcache's build: read, compress, write",
            report.tar_bytes,
            last.archive_bytes,
            last.build_s,
        ),
        *(
            (f"{each.name}, in memory", each.sample_bytes, each.size_bytes, each.seconds)
            for each in report.codecs
        ),
    ):
        table.add_row(
            name,
            f"{in_bytes / 1e6:.1f}",
            f"{out_bytes / 1e6:.2f}",
            f"{seconds * 1e3:.1f}",
            f"{in_bytes / 1e6 / seconds:,.0f}" if seconds else "",
        )
    return table


def _metrics(report: Report) -> Table:
    table = Table(title="Metrics", title_justify="left")
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in report.metrics.items():
        table.add_row(name, f"{value:,.0f}" if value == int(value) else f"{value:.6f}")
    return table
