"""The way of images through a scan: each in one worker from file to row, many at a time, rows in the files' order.

One image: `Pipeline._inspect`, all of it in one thread: read and decode, resize, run the network, and the ``finish`` of
the caller (verdict, pictures). So no image waits for another, no two stages compete for a core that a third one has,
and the images that are in memory are those that are being worked on. Only where a model sees tiles, those of an image
are scored by several threads.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np

from inspectad.cores import cores
from inspectad.errors import UnreadableImageError
from inspectad.image_files import ImageFile
from inspectad.images import LoadedImage, decode_image, load_image, read_file
from inspectad.manifest import Manifest
from inspectad.network import Network
from inspectad.records import ByteArray, FloatArray, Inspection
from inspectad.tiles import score_tiles

TOO_LARGE: Final = "too large for the memory of this machine"
_IN_FLIGHT_BYTES: Final = 512 * 2**20  # decoded pixels of all workers, beyond which the next image waits
_MOST_WORKERS: Final = 32
_MOST_CALLERS: Final = 224
_WAITING: Final = 4  # images a worker that may be waiting for it, or for their turn to be a row


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image on its way: its pixels, or why there are none."""

    file: ImageFile
    started: float  # time.perf_counter() when reading began
    error: str = ""
    source_hw: tuple[int, int] = (0, 0)
    data: bytes = b""  # the file; gone when the row is there, as is the source
    source: ByteArray | None = None  # (H, W, 3) as in the file; None where the network needed less of it

    def whole(self) -> ByteArray:
        """The image in its own size, (H, W, 3). Raises: UnreadableImageError."""
        if self.source is not None:
            return self.source
        return np.asarray(decode_image(self.data).pixels, np.uint8)  # a JPEG: they have 8 bits


@dataclass(frozen=True, slots=True)
class Scored:
    """What the network says of one image: its score, and its anomaly map (H, W).

    The map is at the model's input size, or blended from tiles (`inspectad.tiles.score_tiles`).
    """

    score: float
    anomaly_map: FloatArray


Read = Callable[[ImageFile], bytes]
"""The bytes of an image's file. Raises: UnreadableImageError."""

Finish = Callable[["Prepared", Scored | None], Inspection]
"""From a decoded image and what the network said of it (None: it could not be read) to its row; runs in a worker."""

_Row = tuple[Prepared, Inspection]
_Ahead = queue.Queue["Future[_Row] | BaseException | None"]


def _read(file: ImageFile) -> bytes:
    return read_file(file.path)


def inspect_files(
    files: Iterator[ImageFile],
    manifest: Manifest,
    network: Network,
    finish: Finish,
    *,
    workers: int = 0,
    read: Read = _read,
) -> Generator[_Row, None, None]:
    """Rows in the order of the files, each as soon as it and all before it are known.

    Args:
        manifest: of the model that the network is of.
        workers: threads; 0 for one a core, and those that keep a GPU busy.
        read: where the files are not on a disk.
    """
    workers = workers or workers_for(network)
    ahead: _Ahead = queue.Queue(_WAITING * workers)
    tiles = None if manifest.tiling is None else ThreadPoolExecutor(workers, thread_name_prefix="inspectad-tile")
    pipeline = Pipeline(manifest, network, finish, tiles, read)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inspectad")
    feeder = threading.Thread(target=pipeline.feed, args=(files, pool, ahead), daemon=True)
    with opencv_threads(workers):
        feeder.start()
        try:
            while (item := _take(ahead)) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item.result()
        finally:
            pipeline.stop(ahead)
            if tiles is not None:
                tiles.shutdown(wait=True, cancel_futures=True)  # an image of many tiles need not be finished
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def opencv_threads(workers: int) -> Iterator[None]:
    """OpenCV's own threads off while many workers run: they are the parallelism, those would only take turns."""
    before = cv2.getNumThreads()
    if workers > 1:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def workers_for(network: Network) -> int:
    """Threads that `inspect_files` starts unless told otherwise."""
    return min(cores(), _MOST_WORKERS) + (min(network.callers, _MOST_CALLERS) if network.callers > 1 else 0)


def _take(ahead: _Ahead) -> "Future[_Row] | BaseException | None":
    """The next one, waking up now and then: on Windows Ctrl-C does not interrupt an endless wait."""
    while True:
        with contextlib.suppress(queue.Empty):
            return ahead.get(timeout=0.5)


class Pipeline:
    """Files to rows; see the module's text."""

    def __init__(
        self,
        manifest: Manifest,
        network: Network,
        finish: Finish,
        tiles: ThreadPoolExecutor | None = None,
        read: Read = _read,
    ) -> None:
        """Args: tiles: where the tiles of an image are scored, many at a time, if the model sees tiles: there may be
        few images in memory at a time, and they take long."""
        self._manifest = manifest
        self._network = network
        self._finish = finish
        self._tiles = tiles
        self._read = read
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
            prepared, loaded = self._load(file)
            if loaded is None:
                return prepared, self._finish(prepared, None)
            height, width = loaded.size_hw
            room.holds(3 * height * width)  # of what was decoded smaller, a heatmap needs all
            row = self._finish(prepared, self._score(loaded))
            return replace(prepared, source=None, data=b""), row

    def _load(self, file: ImageFile) -> tuple[Prepared, LoadedImage | None]:
        """Whatever is wrong with the image becomes its error."""
        started = time.perf_counter()
        try:
            data = self._read(file)
            size_hw = None if self._manifest.tiling else self._manifest.input_size_hw
            loaded = load_image(data, size_hw, self._manifest.full_scale)
        except UnreadableImageError as error:
            return Prepared(file, started, error=str(error)), None
        except MemoryError:
            return Prepared(file, started, error=TOO_LARGE), None
        return Prepared(file, started, source=loaded.source, source_hw=loaded.size_hw, data=data), loaded

    def _score(self, loaded: LoadedImage) -> Scored:
        if (tiling := self._manifest.tiling) is not None:
            size_hw = self._manifest.input_size_hw
            return Scored(*score_tiles(loaded.pixels, tiling, size_hw, self._network.score, self._tiles))
        return Scored(*self._network.score(loaded.pixels))


class _Budget:
    """Holds workers back while the images being worked on hold too many pixels; one is always let through.

    How large an image is shows only when it is decoded, so each reserves what the largest so far took; the first, which
    may be as large as any, all there is.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._images, self._largest = limit, 0, 0, 0
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def room(self) -> Iterator["_Room"]:
        """Wait for room for an image, and keep it while the block runs."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._images or self._used + (self._largest or 1) <= self._limit
            )
            self._images += 1
            room = _Room(self, self._largest or self._limit)
            self._used += room.reserved
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
            self._largest = max(self._largest - self._largest // 8, held)  # one huge image is soon forgotten
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
