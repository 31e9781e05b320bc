"""Rows of results: written as they come, each whole or not at all, and read back to go on after an interruption."""

import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, Final, Self

from inspectad.atomic import output_error
from inspectad.csv_cells import csv_line, name_of, safe_name, safe_text, text_of
from inspectad.errors import OutputError
from inspectad.names import NameSet
from inspectad.records import Inspection

COLUMNS: Final = tuple(f.name for f in fields(Inspection))
FORMATS: Final = ("csv", "jsonl")
SHARDS: Final = "rows"
"""Folder, in an output, of the rows that ``--engine ray`` writes."""
_LONGEST_RECORD: Final = 2**20  # bytes; the longest of ours are some 30,000


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
    cells["image"], cells["error"] = safe_name(row.image), safe_text(row.error)
    cells["boxes"] = ";".join(f"{b.x} {b.y} {b.width} {b.height}" for b in row.boxes)
    return csv_line("" if cells[name] is None else cells[name] for name in COLUMNS)


CSV_HEADER: Final = csv_line(COLUMNS)
_GAP: Final = bytes(16)  # a single one may be part of a name that somebody listed


@dataclass(frozen=True, slots=True)
class Done:
    """What an interrupted scan left: the images that have a whole row, and the rows' common facts."""

    images: NameSet = field(default_factory=NameSet)
    verdicts: Counter[str] = field(default_factory=Counter)
    models: frozenset[str] = frozenset()
    thresholds: frozenset[str] = frozenset()
    whole_bytes: int = 0


def read_done(path: Path, kind: str) -> Done:
    """Read the whole rows of a results file; a torn last row is left out, and so is all from a gap of zeros on.

    Such gaps are what a power cut leaves where the size of a file was noted and its content was not.

    Raises: OutputError when the file is not one of ours.
    """
    images, models, thresholds, end = NameSet(), set(), set(), 0
    verdicts: Counter[str] = Counter()
    for record, after in _whole_records(path, kind):
        end = after
        if record:
            images.add(record["image"])
            verdicts[record["verdict"]] += 1
            models.add(record["model"])
            if record["threshold"]:
                thresholds.add(record["threshold"])
    return Done(images, verdicts, frozenset(models), frozenset(thresholds), end)


def read_names(path: Path, kind: str) -> Iterator[str]:
    """Names of the images that have a whole row, one after the other. Raises: as `read_done`."""
    return (record["image"] for record, _ in _whole_records(path, kind) if record)


def read_records(data: bytes, kind: str, path: Path) -> Iterator[dict[str, str]]:
    """The whole rows in the bytes of a results file, column to text. Args: path: for messages.

    Raises: as `read_done`.
    """
    return (record for record, _ in _records_of(io.BytesIO(data), kind, path) if record)


def _whole_records(path: Path, kind: str) -> Iterator[tuple[dict[str, str], int]]:
    """Records and the offset behind each, read as they are asked for: a file of months has gigabytes.

    The CSV header comes first, as an empty record.
    """
    try:
        with path.open("rb") as file:
            yield from _records_of(file, kind, path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(path, error) from error


def _records_of(file: BinaryIO, kind: str, path: Path) -> Iterator[tuple[dict[str, str], int]]:
    end = 0
    if kind == "csv":
        header = file.readline(len(CSV_HEADER))
        if header != CSV_HEADER:
            if CSV_HEADER.startswith(header.partition(_GAP)[0]):
                return  # nothing, or killed while the header was written
            raise OutputError(_foreign(path))
        end = len(header)
        yield {}, end
    record, quotes = bytearray(), 0
    while line := file.readline(_LONGEST_RECORD):
        if _GAP in line:
            return
        record += line
        quotes += line.count(b'"')
        if len(record) >= _LONGEST_RECORD:
            raise OutputError(_foreign(path))
        if not line.endswith(b"\n"):
            return  # torn
        if kind == "csv" and quotes % 2:
            continue  # a newline inside a quoted name
        end += len(record)
        yield _parse(bytes(record), kind, path), end
        record, quotes = bytearray(), 0


def _parse(record: bytes, kind: str, path: Path) -> dict[str, str]:
    try:
        if kind == "jsonl":
            cells = json.loads(record)
            return {name: str(cells[name]) if cells[name] is not None else "" for name in COLUMNS}
        text = record.decode("utf-8", "surrogateescape")
        (values,) = csv.reader(io.StringIO(text, newline=""))
        cells = dict(zip(COLUMNS, values, strict=True))
        return {**cells, "image": name_of(cells["image"]), "error": text_of(cells["error"])}
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
            with contextlib.suppress(OSError):  # then the row stays torn, which `read_done` knows
                os.ftruncate(self._file.fileno(), self._size)
            if isinstance(error, OSError):
                raise output_error(self._path, error) from error
            raise
        self._size += len(record)
