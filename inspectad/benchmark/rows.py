"""Rows of the benchmark: what one cell gave, kept in ``rows.csv`` from the moment it is known."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Final

from inspectad.atomic import output_error, write_atomically
from inspectad.csv_cells import csv_line, safe_text, text_of
from inspectad.errors import OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination to measure, with all that its outcome depends on: two cells are equal, or both are run.

    Attributes:
        good_shots: how many good images are drawn to train on, or ``all``.
        seed: of the draw, and of the training.
        size: longer side of the network's input in pixels, or ``auto``.
        asked_rate: the false-reject rate that was asked for.
        images: digest of the set's names and sizes of files, see `Dataset`.
        version: of inspectad, or of the peer's program.
        options: what else was asked of the method, in words.
    """

    dataset: str
    method: str
    good_shots: str
    defect_shots: int
    seed: int
    size: str
    asked_rate: float
    images: str
    version: str
    options: str = ""

    def __str__(self) -> str:
        drawn = f"{self.good_shots} good" + (f" and {self.defect_shots} defective" if self.defect_shots else "")
        return f"{self.dataset}, {self.method}, {drawn}, seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured; nan where it cannot be had.

    Attributes:
        good_images, defect_images: how many the model learnt from, after unusable files and copies were left out.
        test_good, test_defects: how many were scored.
        masks: how many of the defects had a mask; pixel figures are over these and the good images.
        unreadable: test images that could not be read.
        trained_on: test images that are copies of training images.
        image_f1, false_reject_rate, escape_rate: at the shipped threshold; best_f1: at the best for these images.
        fit_s: the whole training, with calibration and export, in seconds.
        images_per_s: reading, decoding and inference of the test images, without heatmaps.
        model_mb: megabytes (10^6) of the file that goes to the line.
    """

    good_images: int
    defect_images: int
    test_good: int
    test_defects: int
    masks: int
    unreadable: int
    trained_on: int
    image_auroc: float
    aupr: float
    pixel_auroc: float
    aupro: float
    image_f1: float
    best_f1: float
    false_reject_rate: float
    escape_rate: float
    fit_s: float
    images_per_s: float
    model_mb: float


@dataclass(frozen=True, slots=True)
class Row:
    """A cell with its figures, or with the reason why it has none."""

    cell: Cell
    figures: Figures | None
    error: str = ""


COLUMNS: Final = (*(f.name for f in fields(Cell)), *(f.name for f in fields(Figures)), "error")


def read_rows(path: Path) -> dict[Cell, Row]:
    """The rows of a file, {} when there is none. Raises: OutputError when it is not one of ours."""
    if not path.exists():
        return {}
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise output_error(path, error) from error
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError
        rows = [_parse(dict(zip(COLUMNS, map(text_of, line), strict=True))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise OutputError(
            f"{path}: not as this version of inspectad writes it; move it away, or choose another folder with -o"
        ) from error
    return {row.cell: row for row in rows}


def put_row(path: Path, row: Row) -> None:
    """Add a row, or replace the one of the same cell; the file is whole at any moment. Raises: OutputError."""
    rows = read_rows(path)  # once more, since another benchmark may write to the same folder
    rows.pop(row.cell, None)
    write_atomically(path, to_csv([*rows.values(), row]))


def to_csv(rows: Iterable[Row]) -> bytes:
    """The rows as CSV with a header; figures that cannot be had are empty."""
    lines = [csv_line(COLUMNS)]
    for row in rows:
        figures = [""] * len(fields(Figures)) if row.figures is None else map(_format, astuple(row.figures))
        cell = (safe_text(value) if isinstance(value, str) else value for value in astuple(row.cell))
        lines.append(csv_line([*cell, *figures, safe_text(row.error)]))
    return b"".join(lines)


def _format(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.7g}"


def _parse(cells: dict[str, str]) -> Row:
    cell = Cell(**_values(Cell, cells))
    if cells["error"]:
        return Row(cell, None, cells["error"])
    return Row(cell, Figures(**_values(Figures, cells)))


def _values(kind: type[Cell] | type[Figures], cells: dict[str, str]) -> dict[str, Any]:
    convert: dict[object, Callable[[str], str | float]] = {
        str: str,
        int: int,
        float: lambda text: float(text) if text else math.nan,
    }
    return {f.name: convert[f.type](cells[f.name]) for f in fields(kind)}
