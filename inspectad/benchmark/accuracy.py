"""``inspectad benchmark accuracy``: all cells, one after the other; what was done before is not done again."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inspectad import __version__
from inspectad.atomic import write_together
from inspectad.benchmark.cells import method_options, run_cell, warm_up
from inspectad.benchmark.datasets import Dataset, read_datasets
from inspectad.benchmark.peer_process import Peer, find_peer
from inspectad.benchmark.plan import PEER, AccuracyConfig, plan
from inspectad.benchmark.report import Report, make_report, to_json
from inspectad.benchmark.rows import Cell, Row, put_row, read_rows
from inspectad.benchmark.tables import to_markdown
from inspectad.errors import UsageError
from inspectad.methods import METHODS
from inspectad.train_config import TrainConfig, check_config, torch_device


class Watcher(Protocol):
    """Whoever wants to know how far it is."""

    def start(self, cells: int, done: int) -> None:
        """So many cells are to be measured; so many of them were measured before."""

    def step(self, text: str, done: int, total: int, detail: str = "", /) -> None:
        """What is done within the cell."""

    def cell(self, cell: Cell) -> None:
        """This one begins."""

    def row(self, row: Row, seconds: float) -> None:
        """It is done, in so many seconds, and on disk."""


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """What came out: the rows of the cells that were asked for, measured now or before, and the tables of them."""

    rows: tuple[Row, ...]
    report: Report
    markdown: str
    files: tuple[Path, ...]


RunCells = Callable[
    [Sequence[Cell], Mapping[str, Dataset], AccuracyConfig, Peer | None, Watcher], Iterator[tuple[Row, float]]
]
"""Measures cells, in any order: each row, as soon as it is known, and how many seconds it took."""


def run_here(
    cells: Sequence[Cell], datasets: Mapping[str, Dataset], config: AccuracyConfig, peer: Peer | None, watcher: Watcher
) -> Iterator[tuple[Row, float]]:
    """One after the other, in this process."""
    if any(cell.method != PEER for cell in cells):
        warm_up()
    for cell in cells:
        watcher.cell(cell)
        started = time.monotonic()
        row = run_cell(cell, datasets[cell.dataset], config, peer, watcher.step)
        yield row, time.monotonic() - started


def run_accuracy(
    config: AccuracyConfig, watcher: Watcher, stopped: Callable[[], bool], run_cells: RunCells = run_here
) -> AccuracyResult:
    """Measure all cells that ``rows.csv`` in the output folder does not hold yet, and write the tables.

    Args: stopped: whether the user asked to stop: libraries turn the interruption into errors of their own, which
        are not the cell's.

    Raises:
        UsageError: options or datasets that make no sense.
        OutputError: the output folder holds something else, or cannot be written.
        KeyboardInterrupt: stopped; finished cells stay.
    """
    _check(config)
    datasets = read_datasets(config.datasets)
    peer = find_peer(config.peer) if config.peer is not None else None
    options = {method: _in_words(method_options(method, config)) for method in config.methods}
    cells = plan(config, datasets, peer.version if peer else "", options)
    path = config.output / "rows.csv"
    done = {cell: row for cell, row in read_rows(path).items() if row.figures is not None}
    watcher.start(len(cells), sum(cell in done for cell in cells))
    missing = [cell for cell in cells if cell not in done]
    for row, seconds in run_cells(missing, datasets, config, peer, watcher):
        if stopped():
            raise KeyboardInterrupt
        put_row(path, row)
        done[row.cell] = row
        watcher.row(row, seconds)
    rows = tuple(done[cell] for cell in cells)
    report = make_report(rows, _settings(config, peer.version if peer else "", on_ray=run_cells is not run_here))
    markdown = to_markdown(report)
    encoded = {"summary.json": to_json(report).encode(), "summary.md": markdown.encode("utf-8", "surrogateescape")}
    files = {config.output / name: data for name, data in encoded.items()}
    write_together(files)
    return AccuracyResult(rows, report, markdown, (path, *files))


def _check(config: AccuracyConfig) -> None:
    """Raises: UsageError."""
    for method in config.methods:
        check_config(
            TrainConfig(
                good=Path(),
                output=config.output,
                method=method,
                size_px=config.size_px,
                false_reject_rate=config.false_reject_rate,
                **method_options(method, config),
            )
        )
    known = [METHODS[method] for method in config.methods]
    for option, value, is_known, what in (
        ("--steps", config.steps, any(m.has_steps for m in known), "has scales or stages"),
        ("--transformations", config.transformations, any(m.tells_transformations for m in known), "tells them apart"),
    ):
        if value is not None and not is_known:
            raise UsageError(f"{option} {value}: none of {', '.join(config.methods)} {what}; leave it out")


def _in_words(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def _settings(config: AccuracyConfig, peer_version: str, *, on_ray: bool) -> dict[str, str]:
    import onnxruntime
    import torch

    return {
        "inspectad": __version__,
        **({"beside": peer_version} if peer_version else {}),
        **({"engine": "Ray; times are of one core of a node"} if on_ray else {}),
        "size": "auto" if config.size_px is None else f"{config.size_px} px",
        **{name: str(value) for name in ("steps", "transformations") if (value := getattr(config, name)) is not None},
        "asked false-reject rate": f"{config.false_reject_rate:g}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "training on": torch_device("auto"),
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": str(onnxruntime.__version__),
    }
