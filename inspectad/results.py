"""Rows of results: written as they come, each whole or not at all, and read back to go on after an interruption."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Self

from inspectad.atomic import output_error
from inspectad.errors import OutputError
from inspectad.records import Inspection

COLUMNS: Final = tuple(f.name for f in fields(Inspection))
FORMATS: Final = ("csv", "jsonl")


def to_cells(row: Inspection) -> dict[str, object]:
    """Column to value, in column order: numbers rounded to what they mean, None where there is none."""
    return {
        "image": row.image,
        "verdict": row.verdict.value,
        "score": significant(row.score),
        "threshold": significant(row.threshold),
        "severity": significant(row.severity),
        "area_px": row.area_px,
        "boxes": [[b.x, b.y, b.width, b.height] for b in row.boxes],
        "peak_x": row.peak_x,
        "peak_y": row.peak_y,
        "elapsed_ms": None if row.elapsed_ms is None else round(row.elapsed_ms, 1),
        "model": row.model,
        "error": row.error,
    }


def significant(value: float | None) -> float | None:
    """Rounded to 7 digits, what a 32-bit float holds."""
    return None if value is None else float(f"{value:.7g}")


def format_row(row: Inspection, kind: str) -> bytes:
    """One record with its line end: CSV (RFC 4180 quoting, boxes as ``x y w h`` joined by ``;``) or JSON."""
    cells = to_cells(row)
    if kind == "jsonl":
        return json.dumps(cells, ensure_ascii=True).encode() + b"\n"
    cells["boxes"] = ";".join(f"{b.x} {b.y} {b.width} {b.height}" for b in row.boxes)
    return csv_line("" if cells[name] is None else cells[name] for name in COLUMNS)


def csv_line(values: Iterable[object]) -> bytes:
    """One record of a CSV file, values quoted where they must be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)  # so that a lone \r in a name is quoted as well
    line = text.getvalue().removesuffix("\r\n") + "\n"
    return line.encode("utf-8", "surrogateescape")  # file names need not be UTF-8


CSV_HEADER: Final = csv_line(COLUMNS)


@dataclass(frozen=True, slots=True)
class Done:
    """What an interrupted scan left: the images that have a whole row, and the rows' common facts."""

    images: frozenset[str] = frozenset()
    verdicts: tuple[str, ...] = ()
    models: frozenset[str] = frozenset()
    thresholds: frozenset[str] = frozenset()
    whole_bytes: int = 0


def read_done(path: Path, kind: str) -> Done:
    """Read the whole rows of a results file; a torn last row is left out.

    Raises: OutputError when the file is not one of ours.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise output_error(path, error) from error
    images, models, thresholds, verdicts, end = set(), set(), set(), [], 0
    for record, after in _whole_records(data, kind, path):
        end = after
        if record:
            images.add(record["image"])
            verdicts.append(record["verdict"])
            models.add(record["model"])
            if record["threshold"]:
                thresholds.add(record["threshold"])
    return Done(frozenset(images), tuple(verdicts), frozenset(models), frozenset(thresholds), end)


def read_records(data: bytes, kind: str, path: Path) -> Iterator[dict[str, str]]:
    """The whole rows in the bytes of a results file, column to text. Args: path: for messages.

    Raises: as `read_done`.
    """
    return (record for record, _ in _whole_records(data, kind, path) if record)


def _whole_records(data: bytes, kind: str, path: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Records and the offset behind each; the CSV header comes first, as an empty record."""
    header = CSV_HEADER
    if kind == "csv" and data:
        if not data.startswith(header):
            if header.startswith(data):
                return  # killed while the header was written
            raise OutputError(_foreign(path))
        yield {}, len(header)
    start = end = len(header) if kind == "csv" else 0
    while (end := data.find(b"\n", end)) >= 0:
        end += 1
        record = data[start:end]
        if kind == "csv" and record.count(b'"') % 2:
            continue  # a newline inside a quoted name
        yield _parse(record, kind, path), end
        start = end


def _parse(record: bytes, kind: str, path: Path) -> dict[str, str]:
    try:
        if kind == "jsonl":
            cells = json.loads(record)
            return {name: str(cells[name]) if cells[name] is not None else "" for name in COLUMNS}
        text = record.decode("utf-8", "surrogateescape")
        (values,) = csv.reader(io.StringIO(text, newline=""))
        return dict(zip(COLUMNS, values, strict=True))
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise OutputError(_foreign(path)) from error


def _foreign(path: Path) -> str:
    return (
        f"{path}: not as this version of inspectad writes it (saved by a spreadsheet, perhaps); "
        "move it away, or choose another folder with -o"
    )


class RowWriter:
    """Appends records to a file, each with one unbuffered write; a write that fails half-way is taken back."""

    def __init__(self, path: Path, kind: str, keep_bytes: int = 0) -> None:
        """Args: keep_bytes: how much of an existing file stays (``--resume``); the rest is cut off."""
        self._path = path
        self._kind = kind
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if keep_bytes else "wb", buffering=0)
            self._file.truncate(keep_bytes)
            self._file.seek(keep_bytes)
        except OSError as error:
            raise output_error(path, error) from error
        self._size = keep_bytes
        if kind == "csv" and not keep_bytes:
            self._append(CSV_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: bytes) -> None:
        """Append one record, as `format_row` makes it."""
        self._append(record)

    def _append(self, record: bytes) -> None:
        try:
            left = memoryview(record)
            while left:  # a full disk may take a part of it first
                left = left[self._file.write(left) or 0 :]
        except BaseException as error:  # Ctrl-C in the middle must not leave half a row either
            os.ftruncate(self._file.fileno(), self._size)
            if isinstance(error, OSError):
                raise output_error(self._path, error) from error
            raise
        self._size += len(record)
