"""One model on one device: its stages alone, the pipelines of all batch sizes, and the latency of single images."""

import contextlib
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from inspectad.benchmark.speed_images import ManyNames, Sample
from inspectad.benchmark.speed_plan import SpeedConfig, is_cpu
from inspectad.benchmark.speed_process import cold_start, peak_memory
from inspectad.benchmark.speed_ratios import INFER, Latency, Timing, latency, median, ratios, stages_of
from inspectad.benchmark.speed_records import BatchRun, PipelineRun, Target, TargetRun
from inspectad.benchmark.speed_stages import Stages, Work, time_work
from inspectad.cores import cores
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError
from inspectad.image_files import ImageFile
from inspectad.judge import Judge
from inspectad.network import open_network, share
from inspectad.pipeline import inspect_files, opencv_threads, workers_for
from inspectad.progress import Step
from inspectad.scan import ScanConfig, scan

ROUNDS: Final = 3
_WARM_UP_S: Final = 0.3
_LEAST_ROUNDS: Final = 8  # images for each core, or batches, that a pipeline is run on: its ends must not count
_MOST_IMAGES: Final = 50_000
_MOST_WRITTEN: Final = 2 * 2**30  # bytes of heatmaps of one run, on the disk
_LATENCY_RUNS: Final = 100
_LATENCY_SECONDS: Final = 10  # times `SpeedConfig.seconds`, after which fewer runs must do
_LATENCY_WARM_UP: Final = 5
_MEMORY_IMAGES: Final = 64

_Run = Callable[[float], Timing]
"""Runs for about so many seconds."""


def measure_target(
    target: Target, sample: Sample, work: Path, config: SpeedConfig, batch_sizes: tuple[int, ...], step: Step
) -> tuple[TargetRun, float]:
    """Everything of one target, and the mean bytes of a heatmap.

    All stages and pipelines are run once in each round, one after the other, so that whatever else the machine does
    hits all alike; each figure is the median over the rounds.

    Args: work: an empty folder for what is written.
    Raises: InspectadError: the device does not take this model, with the reason.
    """
    detector = _load(target)
    stages = Stages(sample, detector, work / "write")
    names = ManyNames(work / "images", sample.files)
    runs = _runs(detector, stages, names, sample, work, config, batch_sizes)
    found = _in_rounds(runs, config.seconds, lambda done, of: step(f"measuring {target}", done, of))
    batches = tuple(_batch(size, detector, found, config) for size in batch_sizes)
    step(f"latency, start and memory of {target}", 0, 1)
    start = cold_start(sample.files[0].path, target.path, work / "start", target.device)
    few = ManyNames(work / "memory-images", sample.files)
    few.first(max(_MEMORY_IMAGES, _LEAST_ROUNDS * cores()))
    memory = peak_memory(work / "memory-images", target.path, work / "memory", target.device)
    measured = TargetRun(
        device=target.device,
        precision=target.precision,
        input_hw=target.input_hw,
        stages={name: timing for name, timing in found.items() if name in stages.works},
        batches=batches,
        latency={h: _latency(target, sample.files, h, work / "latency", config) for h in config.heatmaps},
        cold_start=start,
        peak_memory=memory,
    )
    return measured, stages.picture_bytes


def _load(target: Target) -> OnnxDetector:
    """As `inspectad.network.open_network` does."""
    detector = OnnxDetector.load(target.path, target.device, threads=1)
    if detector.provider.device != target.device.partition(":")[0]:
        raise InspectadError(detector.provider.reason or f"it runs on {detector.provider.device} instead")
    return detector


def threads_of(workers: int) -> int:
    """Threads that run a stage which needs the cores, when the pipeline has so many workers (0: by default)."""
    return min(workers or cores(), cores())


def _runs(
    detector: OnnxDetector,
    stages: Stages,
    names: ManyNames,
    sample: Sample,
    work: Path,
    config: SpeedConfig,
    batch_sizes: tuple[int, ...],
) -> dict[str, _Run]:
    threads = threads_of(config.workers)
    runs: dict[str, _Run] = {name: _StageRun(stage, len(sample), threads) for name, stage in stages.works.items()}
    for size in batch_sizes:
        runs[f"{INFER} {size}"] = _InferRun(detector, stages, len(sample), size, config.workers)
        for heatmaps in config.heatmaps:
            limit = _most_images(work, stages.picture_bytes) if heatmaps == "all" else _MOST_IMAGES
            runs[f"{heatmaps} {size}"] = _ScanRun(detector, names, work, size, heatmaps, config.workers, limit)
    return runs


def _most_images(folder: Path, picture_bytes: float) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    room = min(_MOST_WRITTEN, shutil.disk_usage(folder).free // 4)
    return max(min(int(room / picture_bytes), _MOST_IMAGES), 1)


def _in_rounds(runs: dict[str, _Run], seconds: float, on_run: Callable[[int, int], None]) -> dict[str, Timing]:
    found: dict[str, list[Timing]] = {name: [] for name in runs}
    total = (ROUNDS + 1) * len(runs)
    for run in runs.values():  # caches fill, threads and memory come, and a scan's length is found
        run(min(_WARM_UP_S, seconds))
    for i, (name, run) in enumerate(list(runs.items()) * ROUNDS, len(runs)):
        on_run(i, total)
        found[name].append(run(seconds))
    return {name: median(timings) for name, timings in found.items()}


class _StageRun:
    """A stage that needs nothing but the cores."""

    def __init__(self, stage: Work, items: int, threads: int) -> None:
        self._stage, self._items, self._threads = stage, items, threads

    def __call__(self, seconds: float) -> Timing:
        with opencv_threads(self._threads):
            return time_work(self._stage, self._items, self._threads, seconds)


class _InferRun:
    """The network alone, called by as many threads as the pipeline has."""

    def __init__(self, detector: OnnxDetector, stages: Stages, items: int, batch_size: int, workers: int) -> None:
        self._detector, self._stages, self._items = detector, stages, items
        self._batch_size, self._workers = batch_size, workers

    def __call__(self, seconds: float) -> Timing:
        with contextlib.closing(share([self._detector], self._batch_size)) as network:
            threads = self._workers or workers_for(network)
            return time_work(self._stages.infer(network), self._items, threads, seconds)


class _ScanRun:
    """The real `inspectad.scan.scan` on as many images as it takes to last; each run writes into a new folder."""

    def __init__(
        self,
        detector: OnnxDetector,
        names: ManyNames,
        work: Path,
        batch_size: int,
        heatmaps: str,
        workers: int,
        limit: int,
    ) -> None:
        self._detector, self._names, self._work = detector, names, work
        self._batch_size, self._heatmaps, self._workers = batch_size, heatmaps, workers
        self._limit = limit
        self._rate = 0.0
        self.images = 0

    def __call__(self, seconds: float) -> Timing:
        network = share([self._detector], self._batch_size)
        workers = self._workers or workers_for(network)
        least = _LEAST_ROUNDS * max(threads_of(self._workers), self._batch_size) if self._rate else workers
        self.images = min(max(round(self._rate * seconds), least), self._limit)
        names = self._names.first(self.images)
        self._work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="scan-", dir=self._work, ignore_cleanup_errors=True) as output:
            config = ScanConfig(
                images=names,
                output=Path(output),
                heatmaps="all" if self._heatmaps == "all" else "",
                batch_size=self._batch_size,
                workers=self._workers,
            )
            begin, begin_core = time.perf_counter(), time.process_time()
            with contextlib.closing(network):
                summary = scan(config, self._detector, network)
            took, core = time.perf_counter() - begin, time.process_time() - begin_core
        self._rate = summary.images / took
        return Timing(self._rate, 1000 * core / summary.images)


def _batch(size: int, detector: OnnxDetector, found: dict[str, Timing], config: SpeedConfig) -> BatchRun:
    on_gpu = not is_cpu(detector.provider.device)
    with contextlib.closing(share([detector], size)) as network:
        workers = config.workers or workers_for(network)
    infer = found[f"{INFER} {size}"]
    pipelines = []
    for heatmaps in config.heatmaps:
        timing = found[f"{heatmaps} {size}"]
        parts = {name: infer if name == INFER else found[name] for name in stages_of(heatmaps)}
        said = ratios(timing.images_per_s, parts, threads_of(config.workers), on_gpu=on_gpu)
        pipelines.append(PipelineRun(heatmaps, timing, said))
    return BatchRun(size, workers, infer, tuple(pipelines))


def _latency(target: Target, files: tuple[ImageFile, ...], heatmaps: str, output: Path, config: SpeedConfig) -> Latency:
    """One image at a time through the pipeline of ``scan --watch``, from its file to its verdict (and heatmap)."""
    detector, network = open_network(target.path, target.device, is_stream=True)
    judge = Judge(detector, output, None, heatmaps="all" if heatmaps == "all" else "")
    begun, took = [0.0], list[float]()
    turn, over = threading.Event(), threading.Event()

    def one_by_one() -> Iterator[ImageFile]:
        for file in itertools.cycle(files):
            turn.wait()
            turn.clear()
            if over.is_set():
                return
            begun[0] = time.perf_counter()
            yield file

    rows = inspect_files(one_by_one(), detector.manifest, network, judge.finish, workers=config.workers)
    start = time.perf_counter()
    turn.set()
    with contextlib.closing(network):
        try:
            for _ in rows:
                now = time.perf_counter()
                took.append(now - begun[0])
                if _is_enough(len(took) - _LATENCY_WARM_UP, now - start, config.seconds):
                    break
                turn.set()
        finally:
            over.set()
            turn.set()  # for the thread that waits in there for its next turn
            rows.close()
    return latency(took[_LATENCY_WARM_UP:])


def _is_enough(runs: int, seconds: float, wanted: float) -> bool:
    if runs < _LATENCY_RUNS:
        return runs > 0 and seconds > _LATENCY_SECONDS * wanted
    return seconds > wanted
