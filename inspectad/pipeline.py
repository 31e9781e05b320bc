"""The way of images through a scan: each in one worker from file to row, many at a time, rows in the files' order.

One image: `Pipeline._inspect`, all of it in one thread: read and decode, resize, run the network, and the ``finish`` of
the caller (verdict, pictures). So no image waits for another, no two stages compete for a core that a third one has,
and the images that are in memory are those that are being worked on.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import cv2

from inspectad.cores import cores
from inspectad.errors import UnreadableImageError
from inspectad.image_files import ImageFile
from inspectad.images import read_image, resize, to_8_bit
from inspectad.manifest import Manifest
from inspectad.network import Network
from inspectad.records import ByteArray, FloatArray, Inspection

_IN_FLIGHT_BYTES: Final = 512 * 2**20  # decoded pixels of all workers, beyond which the next image waits
_MOST_WORKERS: Final = 32
_WAITING: Final = 4  # images a worker that may be waiting for it, or for their turn to be a row


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image on its way: its pixels, or why there are none."""

    file: ImageFile
    started: float  # time.perf_counter() when reading began
    error: str = ""
    source: ByteArray | None = None  # (H, W, 3) as in the file; gone when the row is there
    source_hw: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Scored:
    """What the network says of one image: its score, and its anomaly map (H, W) at the model's input size."""

    score: float
    anomaly_map: FloatArray


Finish = Callable[["Prepared", Scored | None], Inspection]
"""From a decoded image and what the network said of it (None: it could not be read) to its row; runs in a worker."""

_Row = tuple[Prepared, Inspection]
_Ahead = queue.Queue["Future[_Row] | BaseException | None"]


def inspect_files(
    files: Iterator[ImageFile], manifest: Manifest, network: Network, finish: Finish, *, workers: int = 0
) -> Iterator[_Row]:
    """Rows in the order of the files, each as soon as it and all before it are known.

    Args:
        manifest: of the model that the network is of.
        workers: threads; 0 for one a core, and those that keep a GPU busy.
    """
    workers = workers or workers_for(network)
    ahead: _Ahead = queue.Queue(_WAITING * workers)
    pipeline = Pipeline(manifest, network, finish)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inspectad")
    feeder = threading.Thread(target=pipeline.feed, args=(files, pool, ahead), daemon=True)
    threads_before = cv2.getNumThreads()
    if workers > 1:
        cv2.setNumThreads(1)  # the workers are the parallelism; OpenCV's own threads would only take turns with them
    feeder.start()
    try:
        while (item := _take(ahead)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result()
    finally:
        pipeline.stop(ahead)
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(threads_before)


def workers_for(network: Network) -> int:
    """Threads that `inspect_files` starts unless told otherwise."""
    return min(cores(), _MOST_WORKERS) + (network.callers if network.callers > 1 else 0)


def _take(ahead: _Ahead) -> "Future[_Row] | BaseException | None":
    """The next one, waking up now and then: on Windows Ctrl-C does not interrupt an endless wait."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ahead.get(timeout=0.5)


class Pipeline:
    """Files to rows; see the module's text."""

    def __init__(self, manifest: Manifest, network: Network, finish: Finish) -> None:
        self._manifest = manifest
        self._network = network
        self._finish = finish
        self._budget = _Budget(_IN_FLIGHT_BYTES)
        self._stopped = threading.Event()

    def feed(self, files: Iterator[ImageFile], pool: ThreadPoolExecutor, ahead: _Ahead) -> None:
        """Runs in a thread of its own, since reading paths from a pipe may block for hours."""
        last: BaseException | None = None
        try:
            for file in files:
                if self._stopped.is_set():
                    return
                ahead.put(pool.submit(self._inspect, file))
        except BaseException as error:
            last = error
        if not self._stopped.is_set():
            ahead.put(last)

    def stop(self, ahead: _Ahead) -> None:
        """End `feed` and the workers, wherever they wait."""
        self._stopped.set()
        self._budget.close()
        with contextlib.suppress(queue.Empty):
            while True:
                ahead.get_nowait()

    def _inspect(self, file: ImageFile) -> _Row:
        """One image, from its file to its row."""
        with self._budget.room() as room:
            prepared = self._decode(file)
            if prepared.source is None:
                return prepared, self._finish(prepared, None)
            room.holds(prepared.source.nbytes)
            row = self._finish(prepared, self._score(prepared.source))
            return replace(prepared, source=None), row

    def _decode(self, file: ImageFile) -> Prepared:
        """Whatever is wrong with the image becomes its error."""
        started = time.perf_counter()
        try:
            source = to_8_bit(read_image(file.path), self._manifest.full_scale)
        except UnreadableImageError as error:
            return Prepared(file, started, error=str(error))
        except MemoryError:
            return Prepared(file, started, error="too large for the memory of this machine")
        return Prepared(file, started, source=source, source_hw=(source.shape[0], source.shape[1]))

    def _score(self, source: ByteArray) -> Scored:
        return Scored(*self._network.score(resize(source, self._manifest.input_size_hw)))


class _Budget:
    """Holds workers back while the images being worked on hold too many pixels; one is always let through.

    How large an image is shows only when it is decoded, so each reserves what the largest so far took.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._images, self._largest = limit, 0, 0, limit // 8
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def room(self) -> Iterator["_Room"]:
        """Wait for room for an image, and keep it while the block runs."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._images or self._used + self._largest <= self._limit
            )
            self._images += 1
            self._used += self._largest
            room = _Room(self, self._largest)
        try:
            yield room
        finally:
            with self._changed:
                self._used -= room.reserved
                self._images -= 1
                self._changed.notify_all()

    def correct(self, room: "_Room", held: int) -> None:
        """Replace what was reserved for an image by what it holds."""
        with self._changed:
            self._used += held - room.reserved
            self._largest = max(self._largest, held)
            room.reserved = held
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody through: the scan is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Room:
    """What one image reserved, in bytes."""

    def __init__(self, budget: _Budget, reserved: int) -> None:
        self._budget, self.reserved = budget, reserved

    def holds(self, held: int) -> None:
        """So much it really holds."""
        self._budget.correct(self, held)
