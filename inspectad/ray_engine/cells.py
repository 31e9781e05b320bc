"""``inspectad benchmark accuracy --engine ray``: each cell is a task of the cluster."""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence

import ray

from inspectad import __version__
from inspectad.benchmark.accuracy import Watcher
from inspectad.benchmark.cells import run_cell
from inspectad.benchmark.datasets import Dataset
from inspectad.benchmark.peer_process import Peer
from inspectad.benchmark.plan import AccuracyConfig
from inspectad.benchmark.rows import Cell, Row
from inspectad.progress import silent
from inspectad.ray_engine.session import check_version, meaning


def run_cells_on_ray(
    cells: Sequence[Cell], datasets: Mapping[str, Dataset], config: AccuracyConfig, peer: Peer | None, watcher: Watcher
) -> Iterator[tuple[Row, float]]:
    """As `inspectad.benchmark.accuracy.run_here`, in the order in which they are done.

    A cell has a processor of its own (and a GPU where the cluster has some), so that many run at a time.
    Raises: InspectadError: a node with another version.
    """
    assert peer is None  # its Python is on one machine
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    # A cell that takes a node down is tried once more, elsewhere perhaps.
    measure = ray.remote(num_cpus=1, num_gpus=int(has_gpu), max_retries=1)(_measure)
    sent = {name: ray.put(dataset) for name, dataset in datasets.items()}
    running = {measure.remote(__version__, cell, sent[cell.dataset], config): cell for cell in cells}
    try:
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(done)
            watcher.cell(cell)
            yield _answer(done, cell)
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _answer(task: "ray.ObjectRef", cell: Cell) -> tuple[Row, float]:
    try:
        row, seconds = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise meaning(error) from error
    except ray.exceptions.RayError as error:  # the process died, twice
        return Row(cell, None, " ".join(f"{type(error).__name__}: {error}".split())[:500]), 0.0
    return row, seconds


def _measure(version: str, cell: Cell, dataset: Dataset, config: AccuracyConfig) -> tuple[Row, float]:
    """Runs on a node."""
    check_version(version)
    started = time.monotonic()
    folders = {file.path.parent for file in (*dataset.train_good, *dataset.defects)}
    if missing := sorted(str(f) for f in folders if not f.is_dir()):
        why = f"{missing[0]}: the node {platform.node()} does not see it; all nodes must, under the same path"
        return Row(cell, None, why), 0.0
    row = run_cell(cell, dataset, config, None, silent)
    return row, time.monotonic() - started
