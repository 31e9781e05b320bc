"""What Ray runs on the nodes: finding images, and inspecting chunks of them."""

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pyarrow as pa
import ray

from inspectad.errors import InspectadError, OutputError
from inspectad.image_files import RESULTS_MARKER
from inspectad.ray_engine.inspector import Inspects
from inspectad.ray_engine.job import Found, Job
from inspectad.ray_engine.listing import chunks, find_roots, walk
from inspectad.ray_engine.place import Place
from inspectad.ray_engine.session import check_version
from inspectad.ray_engine.shards import FOLDER, Earlier, find_shards, read_shards, row_name
from inspectad.ray_engine.supervised import Supervised
from inspectad.records import Verdict
from inspectad.results import FORMATS, significant

ENTRIES: Final = pa.schema({"folder": pa.string(), "names": pa.list_(pa.binary())})
"""What is to be listed: a folder, or names that are known already."""
CHUNKS: Final = pa.schema({"names": pa.list_(pa.binary())})
_VERDICTS: Final = tuple(v.value for v in Verdict)
INSPECTED: Final = pa.schema(
    {
        "records": pa.binary(),
        **dict.fromkeys(_VERDICTS, pa.int64()),
        "distorted": pa.list_(pa.string()),
        "note": pa.string(),
    }
)
"""Of a chunk of images: rows as they are written, how many of each verdict, and what the user is to be told."""
_FILES_AN_ENTRY: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is to be found out before a job begins."""

    images: tuple[str, ...]
    output: Place
    kind: str
    resume: bool
    digest: str
    threshold: float
    tile_note: bytes
    run: str


@dataclass(frozen=True, slots=True)
class Ready:
    """What was found out: what names are relative to, and the verdicts of rows that are there already."""

    root: Place
    earlier: Counter[str]


def prepare(version: str, asked: Preparation) -> Iterator[object]:
    """Runs on some node: `Ready`, then the names that are done, then tables of `ENTRIES`.

    Raises: InspectadError.
    """
    check_version(version)
    roots = find_roots(asked.images, asked.output)
    earlier = _earlier(asked)
    (asked.output / RESULTS_MARKER).write(asked.tile_note)
    if not asked.output.is_url:
        job_marker(asked.output, asked.run).write(b"")
    yield Ready(roots.place, earlier.verdicts)
    yield frozenset(earlier.images)
    for folder in roots.folders:
        yield pa.table({"folder": [folder.address], "names": [[]]}, schema=ENTRIES)
    for names in chunks(roots.files, _FILES_AN_ENTRY):
        yield pa.table({"folder": [""], "names": [names]}, schema=ENTRIES)


def job_marker(output: Place, run: str) -> Place:
    """A file that each node must see in an output on a disk, while a job runs."""
    return output / f"{FOLDER}/.{run}"


def _earlier(asked: Preparation) -> Earlier:
    """The rows that are there. Raises: OutputError where they may not stay."""
    output = asked.output
    for kind in FORMATS:
        if (file := output / f"results.{kind}").exists():
            raise OutputError(f"{file}: rows of a scan without --engine ray; choose another folder with -o")
    # Not this job's own, which are there when Ray runs this again, for what a dead node had of it.
    shards = [s for s in find_shards(output) if not s.address.rpartition("/")[2].startswith(f"{asked.run}-")]
    if shards and not asked.resume:
        raise OutputError(
            f"{output / FOLDER}: has rows of an earlier scan; go on with --resume, choose another folder with -o, "
            "or remove rows, heatmaps and maps"
        )
    earlier = read_shards(shards, asked.kind)
    marker = output / RESULTS_MARKER
    if earlier.images and marker.exists() and marker.read() != asked.tile_note:
        raise OutputError(f"{output}: its rows were made with other tiles; give the same --tile, or another -o")
    if not earlier.models <= {asked.digest} or not earlier.thresholds <= {str(significant(asked.threshold))}:
        raise OutputError(f"{output}: its rows were made by another model or threshold; choose another folder with -o")
    return earlier


def list_entries(
    entries: pa.Table, root: Place, output: Place, kind: str, size: int, done: "ray.ObjectRef", tally: Any
) -> Iterator[pa.Table]:
    """Chunks of names, each a table of its own, as soon as it is full. Args: done: `Earlier.images`."""
    finished: frozenset[str] = ray.get(done)
    in_rows = partial(row_name, kind=kind)
    for entry in entries.to_pylist():
        names = walk(Place(entry["folder"]), root, output) if entry["folder"] else entry["names"]
        for chunk in chunks(names, size, finished, in_rows):
            tally.listed.remote(len(chunk))
            yield pa.table({"names": [chunk]}, schema=CHUNKS)


class InspectChunks:
    """One worker: a child process with the model, and a chunk of images after the other."""

    def __init__(
        self,
        version: str,
        digest: str,
        job: "ray.ObjectRef",
        tally: Any,
        opened: Callable[[Job], Inspects],
    ) -> None:
        """Args: digest: the model's, short. opened: see `Supervised`."""
        self._version = version
        self._digest = digest
        self._job = job
        self._tally = tally
        self._opened = opened
        self._supervised: Supervised | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """From `CHUNKS` to `INSPECTED`. Raises: InspectadError."""
        if self._supervised is None:  # not above, where Ray would try again and again
            self._supervised = self._start()
        rows = [self._row(self._supervised, names) for names in table.column("names").to_pylist() if names]
        return pa.Table.from_pylist(rows, schema=INSPECTED)

    def _start(self) -> Supervised:
        check_version(self._version)
        job: Job = ray.get(self._job)
        for place, what in ((job.root, "the images"), (job.output / job.marker, "the output folder")):
            if not (place.is_url and place != job.root) and place.has_path and not place.exists():
                raise InspectadError(
                    f"{place}: the node {platform.node()} does not see {what} there; all nodes must have the folder "
                    "under the same path (a network share), or use an object store (s3://...)"
                )
        return Supervised(job, self._digest, self._opened)

    def _row(self, supervised: Supervised, names: list[bytes]) -> dict[str, object]:
        found = supervised.inspect(names)
        verdicts = Counter(f.verdict for f in found)
        self._tally.inspected.remote(len(found), verdicts["NG"])
        return {
            "records": b"".join(f.record for f in found),
            **{verdict: verdicts[verdict] for verdict in _VERDICTS},
            "distorted": [name.decode("utf-8", "backslashreplace") for name in _distorted(names, found)],
            "note": supervised.note,
        }


def _distorted(names: list[bytes], found: list[Found]) -> list[bytes]:
    return [name for name, f in zip(names, found, strict=True) if f.is_distorted]


class Tally:
    """How far the job is, for whoever watches; what is done twice after a failure is counted twice."""

    def __init__(self) -> None:
        self._counts = [0, 0, 0]

    def listed(self, images: int) -> None:
        self._counts[0] += images

    def inspected(self, images: int, defects: int) -> None:
        self._counts[1] += images
        self._counts[2] += defects

    def counts(self) -> tuple[int, int, int]:
        """Images found, images inspected, defects among them."""
        listed, inspected, defects = self._counts
        return listed, inspected, defects
