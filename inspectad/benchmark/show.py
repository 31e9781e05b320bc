"""What a person sees of a benchmark: progress and messages on standard error, the tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from inspectad import console

if TYPE_CHECKING:
    from inspectad.benchmark.accuracy import AccuracyResult
    from inspectad.benchmark.rows import Cell, Row
    from inspectad.benchmark.soak import SoakResult
    from inspectad.benchmark.speed import SpeedResult


@dataclass(slots=True)
class CellProgress:
    """A bar over the cells with what is done within one, on a terminal; a line for each finished cell everywhere."""

    bar: Progress | None
    task: TaskID | None = None
    number: int = 0
    cells: int = 0
    name: str = ""

    def start(self, cells: int, done: int) -> None:
        self.cells, self.number = cells, done
        if done:
            console.err.print(f"{done} of {cells} cells were measured before")
        if self.bar is not None:
            self.task = self.bar.add_task("", total=cells, completed=done)

    def cell(self, cell: Cell) -> None:
        self.name = console.printable(str(cell))
        self.step("", 0, 1)

    def step(self, text: str, done: int, total: int, detail: str = "", /) -> None:
        if self.bar is not None and self.task is not None:
            share = (f" {done}/{total}" if total > 1 else "") + (f", {detail}" if detail else "")
            self.bar.update(self.task, description=escape(f"{self.name}: {text}{share}" if text else self.name))

    def row(self, row: Row, seconds: float) -> None:
        self.number += 1
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.number)
        place = f"{self.number} of {self.cells}: {escape(console.printable(str(row.cell)))}"
        if row.figures is None:
            console.err.print(f"{place}: [bold red]failed[/], {console.plain(row.error)}")
        else:
            console.err.print(f"{place}: image AUROC {row.figures.image_auroc:.3f} ({seconds:.1f} s)")


@contextmanager
def cell_progress() -> Iterator[CellProgress]:
    """Progress of a benchmark, shown while the block runs."""
    if not console.err.is_terminal:
        yield CellProgress(None)
        return
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console.err, transient=True) as bar:
        yield CellProgress(bar)


def report_accuracy(result: AccuracyResult) -> None:
    """What ``benchmark accuracy`` says when it is done: Markdown where something reads standard output."""
    from inspectad.benchmark.tables import COMPARISON, FIGURES, table

    console.warn(_oddities(result))
    if console.stdout_is_data():
        sys.stdout.buffer.write(result.markdown.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    else:
        out = console.console(stderr=False)
        out.print(_rich_table(*table(result.report.lines, FIGURES, brief=True)))
        if result.report.comparison:
            out.print("\nbeside the peer", _rich_table(*table(result.report.comparison, COMPARISON, brief=True)))
    console.err.print(console.plain(f"wrote {', '.join(map(str, result.files))}"))
    if result.report.failures:
        failed = f"{len(result.report.failures)} of {len(result.rows)} cells failed"
        console.err.print(f"[bold red]{failed}[/], the column error says why; the same command tries them again")


def _oddities(result: AccuracyResult) -> list[str]:
    """What makes a figure doubtful though it is there, once for each set."""
    found: dict[str, None] = {}
    for row in result.rows:
        f, name = row.figures, row.cell.dataset
        if f is None:
            continue
        if row.cell.good_shots not in ("all", str(f.good_images)):
            found[f"{row.cell}: {f.good_images} good images could be used, see 'inspectad train' for why"] = None
        if f.trained_on:
            found[f"{row.cell}: {f.trained_on} test images are copies of training images, which flatters"] = None
        if f.unreadable:
            found[f"{name}: {f.unreadable} test images cannot be read, and were left out"] = None
        if 0 < f.masks < f.test_defects:
            found[f"{name}: {f.test_defects - f.masks} defects have no mask, and were left out of pixel figures"] = None
    return list(found)


def report_speed(result: SpeedResult) -> None:
    """What ``benchmark speed`` says when it is done: Markdown where something reads standard output."""
    from inspectad.benchmark.speed_report import brief, tables

    console.warn([f"{what}: not measured, {why}" for what, why in result.report.skipped.items()])
    if console.stdout_is_data():
        sys.stdout.buffer.write(result.markdown.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    else:
        out = console.console(stderr=False)
        for table in map(brief, tables(result.report)):
            out.print(f"\n[bold]{escape(table.title)}[/]", _rich_table(table.headings, table.rows))
    for note in result.report.notes:
        console.err.print(console.plain(note))
    console.err.print(console.plain(f"wrote {', '.join(map(str, result.files))}"))


def report_soak(result: SoakResult) -> None:
    """What ``benchmark soak`` says when it is done: Markdown where something reads standard output."""
    from inspectad.benchmark.soak import HEADINGS, figures, rows_of

    if console.stdout_is_data():
        sys.stdout.buffer.write(result.markdown.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    else:
        out = console.console(stderr=False)
        out.print(_rich_table(HEADINGS, rows_of(result.promises)))
        out.print(_rich_table(("figure", "value"), list(figures(result.run).items())))
    for note in result.notes:
        console.err.print(escape(note))
    console.err.print(escape(f"wrote {', '.join(map(str, result.files))}"))


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    found = Table(box=None, pad_edge=False)
    for heading in headings:
        found.add_column(heading, overflow="fold")
    for row in rows:
        found.add_row(*(console.plain(cell) for cell in row))
    return found
