"""The way of images through a scan: each in one worker from file to row, many at a time, rows in the files' order.

One image: `Pipeline._inspect`, all of it in one thread: read and decode, resize, run the network, and the ``finish`` of
the caller (verdict, pictures). So no image waits for another, no two stages compete for a core that a third one has,
and the images that are in memory are those that are being worked on. Only where a model sees tiles, those of an image
are scored by several threads.

A file that does not come (a network drive that hangs) must not stop the others: its row is made without it, and the
thread that waits for it is left behind. So the threads are our own: those of the standard library's pool cannot be
left, not even when the program ends.
"""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from inspectad.budget import Budget, Room
from inspectad.cores import cores
from inspectad.errors import InspectadError, OutputError, UnreadableImageError
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
READ_SECONDS: Final = 60.0
"""A file of which nothing comes for longer is UNREADABLE, and the thread that reads it is left behind."""
_MOST_LEFT_BEHIND: Final = 16  # threads, beyond which it is not the file but the drive
MOST_FAILURES: Final = 10  # images in a row, beyond which it is not the image but the model or the machine
_POLL_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 1.0  # for a file that is being read while the scan ends
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
    failed: bool = False  # the error may be ours: nobody knows that the image is at fault

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


Read = Callable[[ImageFile, Callable[[], None]], bytes]
"""The bytes of an image's file; calls what it is given when a part has come. Raises: UnreadableImageError."""

Finish = Callable[["Prepared", Scored | None], Inspection]
"""From a decoded image and what the network said of it (None: it could not be read) to its row; runs in a worker, or
in the thread that asks for the rows."""

_Row = tuple[Prepared, Inspection]


def _read(file: ImageFile, on_part: Callable[[], None]) -> bytes:
    return read_file(file.path, on_part=on_part)


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
    Raises:
        InspectadError: no thread can be started; `MOST_FAILURES` images in a row failed, or so many files cannot be
            read that the drive must be gone. What ``files`` and ``finish`` raise of it.
    """
    workers = workers or workers_for(network)
    tiles = None if manifest.tiling is None else ThreadPoolExecutor(workers, thread_name_prefix="inspectad-tile")
    pipeline = Pipeline(manifest, network, finish, workers, tiles, read)
    with opencv_threads(workers):
        try:
            yield from pipeline.rows(files)
        finally:
            pipeline.stop()
            if tiles is not None:
                tiles.shutdown(wait=True, cancel_futures=True)  # an image of many tiles need not be finished
            pipeline.join()


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


class _TooLateError(Exception):
    """The file was read too late: its row is there without it."""


class _Job:
    """One image on its way to its row."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
        self.row: Future[_Row] = Future()
        self.room: Room | None = None
        self.started = self._came = 0.0
        self._lock = threading.Lock()
        self._reading = False
        self._given_up = False

    def read(self, read: Read) -> bytes:
        """The file. Raises: UnreadableImageError; _TooLateError."""
        self.started = self._came = time.perf_counter()
        self._reading = True
        try:
            return read(self.file, self._part_came)
        finally:
            with self._lock:
                self._reading = False
                if self._given_up:
                    raise _TooLateError

    def _part_came(self) -> None:
        self._came = time.perf_counter()

    def give_up(self, seconds: float) -> bool:
        """If nothing of it has come for so long: nobody waits for it any more."""
        with self._lock:
            if self._reading and time.perf_counter() - self._came > seconds:
                self._given_up = True
        return self._given_up


class Pipeline:
    """Files to rows; see the module's text."""

    def __init__(
        self,
        manifest: Manifest,
        network: Network,
        finish: Finish,
        workers: int,
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
        self._budget = Budget(_IN_FLIGHT_BYTES)
        self._stopped = threading.Event()
        self._ahead: queue.Queue[_Job | BaseException | None] = queue.Queue(_WAITING * workers)
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._wanted = workers
        self._workers: dict[threading.Thread, _Job | None] = {}  # and the image that each is at
        self._left_behind: list[threading.Thread] = []

    def rows(self, files: Iterator[ImageFile]) -> Iterator[_Row]:
        """See `inspect_files`."""
        feeder = threading.Thread(target=self._feed, args=(files,), name="inspectad-feeder", daemon=True)
        _start(feeder)
        for _ in range(self._wanted):
            self._add_worker()
        failures = 0
        while (job := self._next(feeder)) is not None:
            prepared, row = self._wait(job)
            failures = failures + 1 if prepared.failed else 0
            if failures == MOST_FAILURES:
                raise InspectadError(
                    f"{failures} images in a row failed, the last with: {row.error}; the model or this machine is "
                    "broken, 'inspectad doctor' may know more. Mend it, and go on with --resume; "
                    f"the last {failures - 1} rows stay UNREADABLE"
                )
            yield prepared, row

    def _feed(self, files: Iterator[ImageFile]) -> None:
        """Runs in a thread of its own, since reading paths from a pipe may block for hours."""
        last: BaseException | None = None
        try:
            for file in files:
                if self._stopped.is_set():
                    return
                job = _Job(file)
                self._ahead.put(job)
                self._jobs.put(job)
        except BaseException as error:
            last = error
        if not self._stopped.is_set():
            self._ahead.put(last)

    def _next(self, feeder: threading.Thread) -> _Job | None:
        """The next one, waking up now and then: on Windows Ctrl-C does not interrupt an endless wait."""
        while True:
            is_fed = feeder.is_alive()
            try:
                item = self._ahead.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not is_fed:
                    raise InspectadError("the list of images broke off; go on with --resume") from None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _wait(self, job: _Job) -> _Row:
        """Its row. Meanwhile, whoever has been reading for too long is left behind."""
        while True:
            with contextlib.suppress(TimeoutError):
                job.row.exception(timeout=_POLL_SECONDS)  # waits for either
            if job.row.done():
                return job.row.result()
            for worker, at in list(self._workers.items()):  # this job may wait for the room that another one holds
                if at is not None and at.give_up(READ_SECONDS):
                    self._leave_behind(worker, at)
            if not any(worker.is_alive() for worker in self._workers):
                raise InspectadError(f"{job.file.path}: all threads of the scan died; go on with --resume")

    def _leave_behind(self, worker: threading.Thread, job: _Job) -> None:
        """The file that it reads gets its row here, and another thread takes its place."""
        error = f"could not be read within {READ_SECONDS:.0f} s; see to the drive that holds it"
        prepared = Prepared(job.file, job.started, error=error)
        job.row.set_result((prepared, self._finish(prepared, None)))
        assert job.room is not None  # it reads
        job.room.leave()
        del self._workers[worker]
        self._left_behind = [thread for thread in (*self._left_behind, worker) if thread.is_alive()]
        if len(self._left_behind) > _MOST_LEFT_BEHIND:
            raise InspectadError(
                f"{job.file.path}: could not be read within {READ_SECONDS:.0f} s, nor could {_MOST_LEFT_BEHIND} "
                "others: the drive does not answer; go on with --resume when it does"
            )
        self._add_worker()

    def _add_worker(self) -> None:
        """Raises: InspectadError when that cannot be, and there is none."""
        worker = threading.Thread(target=self._work, name="inspectad-worker", daemon=True)
        self._workers[worker] = None
        try:
            _start(worker)
        except InspectadError:
            del self._workers[worker]
            if not self._workers:
                raise

    def _work(self) -> None:
        me = threading.current_thread()
        while (job := self._jobs.get()) is not None and not self._stopped.is_set():
            self._workers[me] = job
            try:
                job.row.set_result(self._inspect(job))
            except _TooLateError:
                return
            except BaseException as error:  # somebody waits for the row whatever happens
                job.row.set_exception(error)

    def stop(self) -> None:
        """End the feeder and the workers, wherever they wait."""
        self._stopped.set()
        self._budget.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ahead.get_nowait()
        for _ in self._workers:
            self._jobs.put(None)

    def join(self) -> None:
        """Wait for the workers, but for those that read a file that does not come."""
        for worker, job in list(self._workers.items()):
            while worker.is_alive() and not (job is not None and job.give_up(_PATIENCE_SECONDS)):
                worker.join(_POLL_SECONDS / 10)
                job = self._workers[worker]

    def _inspect(self, job: _Job) -> _Row:
        """One image, from its file to its row. What goes wrong with it becomes its error."""
        try:
            return self._judged(job)
        except (OutputError, _TooLateError):
            raise
        except MemoryError:
            error = TOO_LARGE
        except InspectadError as known:
            error = str(known)
        except Exception as unknown:
            error = f"internal error: {_describe(unknown)}; please report it, with the image"
        prepared = Prepared(job.file, job.started, error=error, failed=True)
        return prepared, self._finish(prepared, None)

    def _judged(self, job: _Job) -> _Row:
        with self._budget.room() as room:
            if self._stopped.is_set():  # else all that waited for room would decode at once
                raise _TooLateError
            job.room = room
            prepared, loaded = self._load(job)
            if loaded is None:
                return prepared, self._finish(prepared, None)
            height, width = loaded.size_hw
            room.holds(3 * height * width)  # of what was decoded smaller, a heatmap needs all
            row = self._finish(prepared, self._score(loaded))
            return replace(prepared, source=None, data=b""), row

    def _load(self, job: _Job) -> tuple[Prepared, LoadedImage | None]:
        """Whatever is wrong with the image becomes its error."""
        try:
            data = job.read(self._read)
            size_hw = None if self._manifest.tiling else self._manifest.input_size_hw
            loaded = load_image(data, size_hw, self._manifest.full_scale)
        except UnreadableImageError as error:
            return Prepared(job.file, job.started, error=str(error)), None
        except MemoryError:
            return Prepared(job.file, job.started, error=TOO_LARGE), None
        return Prepared(job.file, job.started, source=loaded.source, source_hw=loaded.size_hw, data=data), loaded

    def _score(self, loaded: LoadedImage) -> Scored:
        if (tiling := self._manifest.tiling) is not None:
            size_hw = self._manifest.input_size_hw
            return Scored(*score_tiles(loaded.pixels, tiling, size_hw, self._network.score, self._tiles))
        return Scored(*self._network.score(loaded.pixels))


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise InspectadError(
            f"no thread can be started ({error}); end other programs, or raise the limit of processes (ulimit -u)"
        ) from error


def _describe(error: Exception) -> str:
    """What it is, and where it arose, for whoever mends it."""
    *_, place = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
