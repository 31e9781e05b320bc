"""``inspectad scan --engine ray``: the same scan as a Ray Data job, its rows in shards."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inspectad import __version__
from inspectad.detector import OnnxDetector, parse_devices
from inspectad.errors import InspectadError, UsageError
from inspectad.lock import locked
from inspectad.model_file import onnx_path, read_model_bytes
from inspectad.ray_engine.inspector import Inspector, Inspects
from inspectad.ray_engine.job import Counts, Job
from inspectad.ray_engine.listing import CHUNK, GPU_CHUNK, MOST_CHUNK
from inspectad.ray_engine.place import Place, absolute
from inspectad.ray_engine.session import meaning, session
from inspectad.ray_engine.shards import FOLDER, record_format, remove_killed, run_id
from inspectad.scan import UNCALIBRATED, ScanSummary, no_images, remove_temporary, tile_note, tiled

if TYPE_CHECKING:
    from ray import ObjectRef

    from inspectad.ray_engine.actor import Ready

_STORE_READERS: Final = 4  # threads of a core that wait for an object store, most of the time
_POLL_S: Final = 0.5
_LATE_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayScanConfig:
    """What to scan, with what, and where to write.

    Attributes:
        images: folders, files, patterns; paths that all nodes see, or URLs.
        output: such a path, or a URL.
        model: read here and sent to the nodes.
        format: ``csv``, ``jsonl`` or ``parquet``.
        device: ``auto`` takes the GPUs of the cluster where it has some; ``cpu``, ``cuda``, ``tensorrt``.
        address: of the cluster; None starts Ray on this machine.

    The others are as in `inspectad.scan.ScanConfig`.
    """

    images: tuple[str, ...]
    output: str = "results"
    model: Path = Path("model")
    format: str = "csv"
    heatmaps: str = ""
    maps: bool = False
    threshold: float | None = None
    tile: int | str | None = None
    resume: bool = False
    device: str = "auto"
    address: str | None = None

    @property
    def rows_place(self) -> str:
        """Where the rows are, for people."""
        return f"{self.output}/{FOLDER}/*.{self.format}"


def scan_on_ray(
    config: RayScanConfig,
    *,
    opened: Callable[[Job], Inspects] = Inspector,
    on_progress: Callable[[int, int, int], None] = lambda _listed, _inspected, _defects: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> ScanSummary:
    """Inspect all images, write shards of rows to ``OUTPUT/rows`` and pictures beside them, and count.

    Args:
        opened: makes what inspects, in a process on a node.
        on_progress: told how many images were found, were inspected, and are NG, now and then.
        on_warning: told what a user should know.
    Raises: as `inspectad.scan.scan`; MissingDependencyError without Ray.
    """
    started = time.perf_counter()
    _check(config)
    model = _Model(config)
    with _alone(Place(absolute(config.output)), on_warning), session(config.address):
        if tiled(config.tile, model.detector.manifest).tiling != model.detector.manifest.tiling:
            on_warning(UNCALIBRATED)
        try:
            ready, counts = _run(config, model, opened, on_progress, on_warning)
        except Exception as error:  # Ray wraps what a task raises in classes of its own
            found = meaning(error)
            if found is error:
                raise
            raise found from error
    for note in sorted(counts.notes):
        on_warning(note)
    summary = ScanSummary(counts.verdicts, ready.earlier, counts.distorted, time.perf_counter() - started)
    if not summary.all_verdicts:
        raise InspectadError(no_images(config.images))
    return summary


@contextlib.contextmanager
def _alone(output: Place, on_warning: Callable[[str], None]) -> Iterator[None]:
    """No other scan writes there, while the block runs. Object stores have no locks."""
    if output.is_url:
        yield
        return
    with locked(output.path) as warning:
        if warning:
            on_warning(warning)
        remove_temporary(output.path)
        remove_killed(output.path / FOLDER)
        yield


def _check(config: RayScanConfig) -> None:
    if "-" in config.images:
        raise UsageError("--engine ray finds the images by itself: name folders or URLs instead of - (paths on stdin)")
    if len(parse_devices(config.device)) > 1 or ":" in config.device:
        raise UsageError(f"--device {config.device}: Ray gives each worker a GPU; say auto, cpu, cuda or tensorrt")


class _Model:
    """The model as it is sent to the nodes; read once, so that all judge by the same."""

    def __init__(self, config: RayScanConfig) -> None:
        path = onnx_path(config.model)
        self.data = read_model_bytes(path)
        self.detector = OnnxDetector.from_bytes(self.data, "cpu", 1, path)
        self.digest = self.detector.digest[:12]
        self.threshold = self.detector.threshold if config.threshold is None else config.threshold


@dataclass(frozen=True, slots=True)
class _Workers:
    """What the cluster gives: how many actors at once, what each needs, and images a task."""

    device: str
    actors: int
    cpus: int
    gpus: int
    chunk: int


def workers_of_cluster(device: str) -> _Workers:
    """Raises: UsageError: a GPU where there is none."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    with_gpu = [n for n in nodes if n.get("GPU", 0) >= 1]
    if device != "cpu" and with_gpu:
        cpus = max(1, min(int(n.get("CPU", 1) // n["GPU"]) for n in with_gpu))
        return _Workers(device, sum(int(n["GPU"]) for n in with_gpu), cpus, 1, GPU_CHUNK)
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device}: no node of the cluster has a GPU; say auto or cpu")
    actors = sum(int(n.get("CPU", 0)) for n in nodes)
    if not actors:
        raise UsageError("no node of the cluster has a processor to give; 'ray status' says what it has")
    # The driver hands out some 140 chunks a second, whatever their size.
    return _Workers("cpu", actors, 1, 0, min(MOST_CHUNK, CHUNK * math.ceil(actors / CHUNK)))


def _run(
    config: RayScanConfig,
    model: _Model,
    opened: Callable[[Job], Inspects],
    on_progress: Callable[[int, int, int], None],
    on_warning: Callable[[str], None],
) -> "tuple[Ready, Counts]":
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from inspectad.ray_engine import actor
    from inspectad.ray_engine.sink import ShardSink

    workers, output, run = workers_of_cluster(config.device), Place(absolute(config.output)), run_id()
    asked = actor.Preparation(
        images=tuple(absolute(image) for image in config.images),
        output=output,
        kind=config.format,
        resume=config.resume,
        digest=model.digest,
        threshold=model.threshold,
        tile_note=tile_note(config.tile, model.detector.manifest),
        run=run,
    )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # it outlives other nodes
    prepare = ray.remote(num_returns="streaming", num_cpus=0, scheduling_strategy=here)(actor.prepare)
    answers = prepare.remote(__version__, asked)
    ready: Ready = ray.get(next(answers))
    done, *entries = answers  # names of images stay where they are
    tally = ray.remote(num_cpus=0, scheduling_strategy=here)(actor.Tally).remote()
    marker = actor.job_marker(output, run)
    job = Job(
        model=model.data,
        device=workers.device,
        workers=workers.cpus if workers.gpus else _STORE_READERS if ready.root.is_url else 1,
        root=ready.root,
        output=output,
        marker=marker.address.removeprefix(f"{output}/"),
        kind=record_format(config.format),
        heatmaps=config.heatmaps,
        maps=config.maps,
        threshold=config.threshold,
        tile=config.tile,
        environment={name: value for name, value in os.environ.items() if name.startswith("INSPECTAD_")},
    )
    sink = ShardSink(output, config.format, run, workers.chunk)
    constructor = {
        "version": __version__,
        "digest": model.digest,
        "job": ray.put(job),
        "tally": tally,
        "opened": opened,
    }
    listing = {
        "root": ready.root,
        "output": output,
        "kind": config.format,
        "size": workers.chunk,
        "done": done,
        "tally": tally,
    }
    try:
        with _watched(tally, on_progress, on_warning):
            _execute(entries, listing, constructor, workers, sink)
    finally:
        if not output.is_url:
            marker.path.unlink(missing_ok=True)
    return ready, sink.counts


def _execute(
    entries: "list[ObjectRef]", listing: dict[str, Any], constructor: dict[str, Any], workers: _Workers, sink: Any
) -> None:
    import ray.data

    from inspectad.ray_engine import actor

    context = ray.data.DataContext.get_current()
    # A block for each row: a chunk of names is what a task gets, however long the names are, and goes on as soon as it
    # is listed. Also, a task that is run again gives blocks that are cut in the same places.
    context.target_max_block_size = 1
    context.raise_original_map_exception = True  # whose class and text `meaning` looks for
    # Tasks that wait for disks and stores, mostly; with a processor each they could wait for ever behind the actors.
    (
        ray.data.from_arrow_refs(entries)
        .map_batches(actor.list_entries, batch_format="pyarrow", batch_size=None, fn_kwargs=listing, num_cpus=0)
        .map_batches(
            actor.InspectChunks,
            batch_format="pyarrow",
            batch_size=None,
            fn_constructor_kwargs=constructor,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=workers.actors),
        )
        .write_datasink(sink, ray_remote_args={"num_cpus": 0})
    )


@contextlib.contextmanager
def _watched(
    tally: Any, on_progress: Callable[[int, int, int], None], on_warning: Callable[[str], None]
) -> Iterator[None]:
    """Ask how far it is, now and then, while the block runs."""
    import ray

    over, started = threading.Event(), time.monotonic()

    def ask() -> None:
        is_late = False
        while not over.wait(_POLL_S):
            with contextlib.suppress(Exception):  # its node may be gone, and with it only the progress
                listed, inspected, defects = ray.get(tally.counts.remote(), timeout=10)
                on_progress(listed, inspected, defects)
                if not inspected and not is_late and time.monotonic() > started + _LATE_S:
                    is_late = True
                    on_warning(
                        f"no image was inspected in {_LATE_S:.0f} s: 'ray status' says whether the cluster has "
                        "processors to give"
                    )

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
