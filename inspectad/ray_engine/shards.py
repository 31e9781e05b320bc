"""The rows of a job: many files in ``OUTPUT/rows``, each whole, each with its header, none written twice."""

import contextlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from inspectad.atomic import remove_leftovers
from inspectad.errors import OutputError, UnreadableImageError
from inspectad.ray_engine.place import Place
from inspectad.results import CSV_HEADER, FORMATS, SHARDS, read_records

if TYPE_CHECKING:
    import pyarrow

FOLDER: Final = SHARDS
SHARD_FORMATS: Final = (*FORMATS, "parquet")
_MARK: Final = re.compile(r"\.\d{8}-\d{6}-[0-9a-f]{6}")  # a dot and a `run_id`
ROWS_A_SHARD: Final = 4096
"""At least, but for the last one: 0.7 MB of CSV. What an interruption loses is at most so much, and what is on its
way."""
_READERS: Final = 16


def record_format(kind: str) -> str:
    """The format of single records that shards of a kind are made of."""
    return "jsonl" if kind == "parquet" else kind


def run_id() -> str:
    """Of a job: its shards have it in their names, so that those of a second one (``--resume``) have others."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"


def remove_killed(folder: Path) -> None:
    """What jobs that were killed left beside their shards: temporary files, and the marks that nodes looked for."""
    remove_leftovers(folder)
    if folder.is_dir():
        for path in folder.iterdir():
            if _MARK.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()


def shard_name(run: str, task: int, kind: str) -> str:
    """The same for each attempt at a task, so that what a second one writes replaces what the first one did."""
    return f"{run}-{task:06}.{kind}"


def encode_shard(records: Sequence[bytes], kind: str) -> bytes:
    """A whole file of records as `inspectad.results.format_row` makes them, in `record_format`."""
    data = b"".join(records)
    if kind == "csv":
        return CSV_HEADER + data
    return _to_parquet(data) if kind == "parquet" else data


def _to_parquet(data: bytes) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [json.loads(line) for line in data.splitlines()]
    for row in rows:
        row["image"] = stored_name(row["image"])
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=_schema()), sink, compression="zstd")
    return sink.getvalue()


def stored_name(name: str) -> str:
    """The name as Parquet holds it, which has no room for bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def row_name(name: str, kind: str) -> str:
    """What an image is called in `Earlier`."""
    return stored_name(name) if kind == "parquet" else name


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    types = {
        "image": pa.string(),
        "verdict": pa.string(),
        "score": pa.float64(),
        "threshold": pa.float64(),
        "severity": pa.float64(),
        "area_px": pa.int64(),
        "boxes": pa.list_(pa.list_(pa.int32(), 4)),
        "peak_x": pa.int32(),
        "peak_y": pa.int32(),
        "elapsed_ms": pa.float64(),
        "model": pa.string(),
        "error": pa.string(),
    }
    return pa.schema(list(types.items()))


@dataclass(slots=True)
class Earlier:
    """What is there already.

    Attributes:
        images: their names; `stored_name` of them where the rows are Parquet.
    """

    images: set[str] = field(default_factory=set)
    verdicts: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)
    thresholds: set[str] = field(default_factory=set)


def find_shards(output: Place) -> list[Place]:
    """Files of rows in an output. Raises: InspectadError."""
    return [f for f in (output / FOLDER).files() if f.address.rpartition(".")[2] in SHARD_FORMATS]


def read_shards(shards: Iterable[Place], kind: str) -> Earlier:
    """The rows of earlier jobs. Raises: OutputError: of another format, or not ours."""
    found = Earlier()
    with ThreadPoolExecutor(_READERS) as pool:
        for rows in pool.map(lambda shard: _read_shard(shard, kind), shards):
            for image, verdict, model, threshold in rows:
                found.images.add(image)
                found.verdicts[verdict] += 1
                found.models.add(model)
                if threshold:
                    found.thresholds.add(threshold)
    return found


def _read_shard(shard: Place, kind: str) -> list[tuple[str, str, str, str]]:
    """Image, verdict, model and threshold of each row."""
    if not shard.address.endswith(f".{kind}"):
        other = shard.address.rpartition(".")[2]
        raise OutputError(f"{shard}: its rows are {other}; give --format {other}, or another folder with -o")
    try:
        data = shard.read()
    except UnreadableImageError as error:
        raise OutputError(f"{shard}: {error}") from error
    if kind == "parquet":
        return _read_parquet(data, shard)
    records = read_records(data, kind, Path(shard.address))
    return [(r["image"], r["verdict"], r["model"], r["threshold"]) for r in records]


def _read_parquet(data: bytes, shard: Place) -> list[tuple[str, str, str, str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data), columns=["image", "verdict", "model", "threshold"])
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{shard}: not as inspectad writes it; move it away, or choose another -o") from error
    columns = [column.to_pylist() for column in table.columns]
    return [(i, v, m, "" if t is None else str(t)) for i, v, m, t in zip(*columns, strict=True)]
