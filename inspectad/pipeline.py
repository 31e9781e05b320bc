"""The way of images through the workers: read ahead, batch, infer, finish behind; rows in the order of the files.

One image: `_Reader.prepare` (file to pixels at input size, in a worker) -> `OnnxDetector` (in a batch, on the calling
thread) -> the ``finish`` of the caller (verdict, heatmap, in a worker) -> its row (calling thread).
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from inspectad.detector import OnnxDetector
from inspectad.errors import UnreadableImageError
from inspectad.image_files import ImageFile
from inspectad.images import read_image, resize, to_8_bit
from inspectad.manifest import Manifest
from inspectad.records import ByteArray, FloatArray, Inspection

_IN_FLIGHT_BYTES: Final = 512 * 2**20  # decoded pixels between reader and writer, beyond which reading waits


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image on its way: its pixels at input size, or why there are none."""

    file: ImageFile
    seconds: float
    error: str = ""
    pixels: ByteArray | None = None  # (H, W, 3) at the model's input size
    source: ByteArray | None = None  # (H, W, 3) as in the file, only when a heatmap is wanted
    source_hw: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Scored:
    """What the network says of one image.

    Attributes:
        score: image score.
        anomaly_map: (H, W) at the model's input size.
        seconds: the image's share of the batch.
    """

    score: float
    anomaly_map: FloatArray
    seconds: float


Finish = Callable[["Prepared", Scored | None], Inspection]
"""From a prepared image and what the network said of it (None: it could not be read) to its row; runs in a worker."""

_Ahead = queue.Queue["Future[Prepared] | BaseException | None"]


def inspect_files(
    files: Iterator[ImageFile],
    detector: OnnxDetector,
    finish: Finish,
    *,
    keep_source: bool,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Prepared, Inspection]]:
    """Rows in the order of the files; at any moment a bounded number of images is on its way.

    Args:
        keep_source: hand the source pixels on to ``finish``.
        workers: threads; 0 for one a core, at most 8.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    ahead: _Ahead = queue.Queue(2 * batch_size + workers)
    budget = _Budget(_IN_FLIGHT_BYTES)
    reader = _Reader(detector.manifest, budget, keep_source=keep_source)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inspectad")
    feeder = threading.Thread(target=reader.feed, args=(files, pool, ahead), daemon=True)
    feeder.start()
    waiting: deque[tuple[Prepared, Future[Inspection]]] = deque()
    try:
        more = True
        while more:
            batch, more = _next_batch(ahead, batch_size)
            for prepared, scored in _infer(batch, detector):
                waiting.append((prepared, pool.submit(finish, prepared, scored)))
            # With nothing to read ahead, hand out what is known instead of waiting for the next image.
            while waiting and (len(waiting) > 2 * batch_size or ahead.empty()):
                prepared, future = waiting.popleft()
                row = future.result()
                budget.release(_held(prepared))
                yield prepared, row
    finally:
        reader.stop(ahead)
        pool.shutdown(wait=True, cancel_futures=True)


def _next_batch(ahead: _Ahead, size: int) -> tuple[list[Prepared], bool]:
    """Wait for one image, then take those that are there already, at most ``size``; False when it was the last."""
    batch: list[Prepared] = []
    while len(batch) < size and (not batch or not ahead.empty()):
        item = _take(ahead)
        if item is None:
            return batch, False
        if isinstance(item, BaseException):
            raise item
        batch.append(item.result())
    return batch, True


def _take(ahead: _Ahead) -> "Future[Prepared] | BaseException | None":
    """The next one, waking up now and then: on Windows Ctrl-C does not interrupt an endless wait."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ahead.get(timeout=0.5)


def _infer(batch: list[Prepared], detector: OnnxDetector) -> Iterator[tuple[Prepared, Scored | None]]:
    readable = [p.pixels for p in batch if p.pixels is not None]
    started = time.perf_counter()
    prediction = detector.predict_resized(np.stack(readable)) if readable else None
    share = (time.perf_counter() - started) / max(len(readable), 1)
    position = 0
    for prepared in batch:
        if prediction is None or prepared.pixels is None:
            yield prepared, None
        else:
            yield prepared, Scored(float(prediction.image_scores[position]), prediction.anomaly_maps[position], share)
            position += 1


def _held(prepared: Prepared) -> int:
    return sum(a.nbytes for a in (prepared.pixels, prepared.source) if a is not None)


class _Budget:
    """Holds the reader back while the images on their way hold too many pixels; one is always let through.

    How large an image is shows only when it is decoded, so each reserves what the largest so far took.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._images, self._largest = limit, 0, 0, limit // 8
        self._changed = threading.Condition()
        self._closed = False

    def reserve(self) -> int:
        """Wait for room; returns the bytes reserved."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._images or self._used + self._largest <= self._limit
            )
            self._images += 1
            self._used += self._largest
            return self._largest

    def correct(self, reserved: int, held: int) -> None:
        """Replace what was reserved for an image by what it holds."""
        with self._changed:
            self._used += held - reserved
            self._largest = max(self._largest, held)
            self._changed.notify()

    def release(self, held: int) -> None:
        """The image has its row."""
        with self._changed:
            self._used -= held
            self._images -= 1
            self._changed.notify()

    def close(self) -> None:
        """Let everybody through: the scan is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Reader:
    """From paths to pixels at input size, ahead of the network."""

    def __init__(self, manifest: Manifest, budget: _Budget, *, keep_source: bool) -> None:
        self._manifest = manifest
        self._keep_source = keep_source
        self._budget = budget
        self._stopped = threading.Event()

    def feed(self, files: Iterator[ImageFile], pool: ThreadPoolExecutor, ahead: _Ahead) -> None:
        """Runs in a thread of its own, since reading paths from a pipe may block for hours."""
        last: BaseException | None = None
        try:
            for file in files:
                reserved = self._budget.reserve()
                if self._stopped.is_set():
                    return
                ahead.put(pool.submit(self.prepare, file, reserved))
        except BaseException as error:
            last = error
        if not self._stopped.is_set():
            ahead.put(last)

    def stop(self, ahead: _Ahead) -> None:
        """End `feed`, wherever it waits."""
        self._stopped.set()
        self._budget.close()
        with contextlib.suppress(queue.Empty):
            while True:
                ahead.get_nowait()

    def prepare(self, file: ImageFile, reserved: int) -> Prepared:
        """Decode one image and bring it to the input size. Whatever is wrong with it becomes its error."""
        prepared = self._decode(file)
        self._budget.correct(reserved, _held(prepared))
        return prepared

    def _decode(self, file: ImageFile) -> Prepared:
        started = time.perf_counter()
        try:
            source = to_8_bit(read_image(file.path), self._manifest.full_scale)
        except UnreadableImageError as error:
            return Prepared(file, time.perf_counter() - started, error=str(error))
        except MemoryError:
            return Prepared(file, time.perf_counter() - started, error="too large for the memory of this machine")
        pixels = resize(source, self._manifest.input_size_hw)
        kept = source if self._keep_source else None
        seconds, size_hw = time.perf_counter() - started, (source.shape[0], source.shape[1])
        return Prepared(file, seconds, pixels=pixels, source=kept, source_hw=size_hw)
