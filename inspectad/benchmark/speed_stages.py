"""The stages of a scan, each alone: the very functions of the pipeline over images that are held in memory."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from inspectad.atomic import write_atomically
from inspectad.benchmark.speed_images import Sample
from inspectad.benchmark.speed_ratios import Timing
from inspectad.detector import OnnxDetector
from inspectad.images import decode_image, read_file, resize, to_8_bit
from inspectad.jpeg import jpeg_reduction
from inspectad.judge import Judge
from inspectad.network import Network
from inspectad.pipeline import Prepared, Scored
from inspectad.png import encode_png
from inspectad.records import ByteArray
from inspectad.results import format_row

Work = Callable[[int], object]
"""Does its part of the image of that number."""


def time_work(work: Work, items: int, threads: int, seconds: float) -> Timing:
    """Run a stage on images 0 to ``items`` - 1, round and round, in many threads.

    Each thread ends with the image that it has begun, and its images are divided by its own time, so that threads
    that wait for the last image do not count.
    """
    numbers = itertools.count()
    begin = time.perf_counter()
    begin_core = time.process_time()

    def loop() -> tuple[int, float]:
        done, now = 0, time.perf_counter()
        while not done or now - begin < seconds:
            work(next(numbers) % items)
            done, now = done + 1, time.perf_counter()
        return done, now - begin

    with ThreadPoolExecutor(threads) as pool:
        parts = [future.result() for future in [pool.submit(loop) for _ in range(threads)]]
    core = time.process_time() - begin_core
    return Timing(sum(done / took for done, took in parts), 1000 * core / sum(done for done, _ in parts))


class Stages:
    """All stages for one model; their inputs are made beforehand, once.

    Attributes:
        works: the stages that run on the cores whatever the network runs on, by name, in the order of the pipeline.
    """

    def __init__(self, sample: Sample, detector: OnnxDetector, folder: Path) -> None:
        """Args: folder: where ``write`` writes."""
        full_scale, hw = detector.manifest.full_scale, detector.input_size_hw
        reductions = [jpeg_reduction(data, hw) for data in sample.data]
        decoded = [
            source if reduction == 1 else np.asarray(decode_image(data, reduction).pixels, np.uint8)
            for source, data, reduction in zip(sample.sources, sample.data, reductions, strict=True)
        ]
        self._resized = [resize(source, hw) for source in decoded]
        self._scored = [Scored(*detector.predict_resized(pixels[None]).only) for pixels in self._resized]
        self._judge = Judge(detector, folder, None)
        self._prepared = [
            Prepared(
                file,
                0.0,
                source_hw=(source.shape[0], source.shape[1]),
                data=data,
                source=source if reduction == 1 else None,
            )
            for file, source, data, reduction in zip(sample.files, sample.sources, sample.data, reductions, strict=True)
        ]
        self._overlays = [self._draw(i) for i in range(len(sample))]
        self._pictures = [encode_png(overlay) for overlay in self._overlays]
        self.works: dict[str, Work] = {
            "read": lambda i: read_file(sample.files[i].path),
            "decode": lambda i: to_8_bit(decode_image(sample.data[i], reductions[i]), full_scale),
            "resize": lambda i: resize(decoded[i], hw),
            "judge": lambda i: format_row(self._judge.finish(self._prepared[i], self._scored[i]), "csv"),
            "heatmap": self._draw,
            "encode": lambda i: encode_png(self._overlays[i]),
            "write": lambda i: write_atomically(folder / f"{i}.png", self._pictures[i]),
        }

    def infer(self, network: Network) -> Work:
        """The network as the pipeline calls it."""
        return lambda i: network.score(self._resized[i])

    @property
    def picture_bytes(self) -> float:
        """Mean size of a heatmap's file."""
        return sum(map(len, self._pictures)) / len(self._pictures)

    def _draw(self, i: int) -> ByteArray:
        return self._judge.draw(self._prepared[i], self._scored[i], *self._judge.look(self._scored[i]))
