"""``inspectad benchmark accuracy``: all cells, one after the other; what was done before is not done again."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inspectad import __version__
from inspectad.atomic import write_together
from inspectad.benchmark.cells import run_cell, warm_up
from inspectad.benchmark.datasets import read_datasets
from inspectad.benchmark.peer_process import find_peer
from inspectad.benchmark.plan import PEER, AccuracyConfig, plan
from inspectad.benchmark.report import Report, make_report, to_json
from inspectad.benchmark.rows import Cell, Row, put_row, read_rows
from inspectad.benchmark.tables import to_markdown
from inspectad.train_config import TrainConfig, check_config, torch_device


class Watcher(Protocol):
    """Whoever wants to know how far it is."""

    def start(self, cells: int, done: int) -> None:
        """So many cells are to be measured; so many of them were measured before."""

    def step(self, text: str, done: int, total: int, detail: str = "", /) -> None:
        """What is done within the cell."""

    def cell(self, cell: Cell) -> None:
        """This one begins."""

    def row(self, row: Row) -> None:
        """It is done, and on disk."""


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """What came out: the rows of the cells that were asked for, measured now or before, and the tables of them."""

    rows: tuple[Row, ...]
    report: Report
    markdown: str
    files: tuple[Path, ...]


def run_accuracy(config: AccuracyConfig, watcher: Watcher, stopped: Callable[[], bool]) -> AccuracyResult:
    """Measure all cells that ``rows.csv`` in the output folder does not hold yet, and write the tables.

    Args: stopped: whether the user asked to stop: libraries turn the interruption into errors of their own, which
        are not the cell's.

    Raises:
        UsageError: options or datasets that make no sense.
        OutputError: the output folder holds something else, or cannot be written.
        KeyboardInterrupt: stopped; finished cells stay.
    """
    for method in config.methods:
        check_config(
            TrainConfig(
                good=Path(),
                output=config.output,
                method=method,
                size_px=config.size_px,
                false_reject_rate=config.false_reject_rate,
            )
        )
    datasets = read_datasets(config.datasets)
    peer = find_peer(config.peer) if config.peer is not None else None
    cells = plan(config, datasets, peer.version if peer else "")
    path = config.output / "rows.csv"
    done = {cell: row for cell, row in read_rows(path).items() if row.figures is not None}
    watcher.start(len(cells), sum(cell in done for cell in cells))
    missing = [cell for cell in cells if cell not in done]
    if any(cell.method != PEER for cell in missing):
        warm_up()
    for cell in missing:
        watcher.cell(cell)
        row = run_cell(cell, datasets[cell.dataset], config, peer, watcher.step)
        if stopped():
            raise KeyboardInterrupt
        put_row(path, row)
        done[cell] = row
        watcher.row(row)
    rows = tuple(done[cell] for cell in cells)
    report = make_report(rows, _settings(config, peer.version if peer else ""))
    markdown = to_markdown(report)
    encoded = {"summary.json": to_json(report).encode(), "summary.md": markdown.encode("utf-8", "surrogateescape")}
    files = {config.output / name: data for name, data in encoded.items()}
    write_together(files)
    return AccuracyResult(rows, report, markdown, (path, *files))


def _settings(config: AccuracyConfig, peer_version: str) -> dict[str, str]:
    import onnxruntime
    import torch

    return {
        "inspectad": __version__,
        **({"beside": peer_version} if peer_version else {}),
        "size": "auto" if config.size_px is None else f"{config.size_px} px",
        "asked false-reject rate": f"{config.false_reject_rate:g}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "training on": torch_device("auto"),
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": str(onnxruntime.__version__),
    }
