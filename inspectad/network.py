"""How the workers of a scan share the network: each runs it by itself on a CPU, in batches on GPUs."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from inspectad.cores import cores
from inspectad.detector import OnnxDetector, parse_devices
from inspectad.errors import InspectadError, UsageError
from inspectad.records import ByteArray, FloatArray

GPU_BATCH: Final = 16
_SERVERS: Final = 2
"""Threads a GPU: one gathers a batch and hands out answers while the GPU works for the other."""
_FILL_S: Final = 0.002
"""How long a batch that is not full waits for further images."""


class Network(Protocol):
    """From an image to its score and anomaly map. Called from many threads at once.

    Attributes:
        callers: how many threads keep it busy.
    """

    callers: int

    def score(self, pixels: ByteArray) -> tuple[float, FloatArray]:
        """Args: pixels uint8 (H, W, 3) at the input size. Returns: image score, anomaly map (H, W)."""

    def close(self) -> None:
        """Nobody calls it any more."""


def share(detectors: Sequence[OnnxDetector], batch_size: int = 0, alone: OnnxDetector | None = None) -> Network:
    """The network of a scan.

    Args:
        detectors: the same model on each device; on a CPU one, best with one thread.
        batch_size: 0 chooses: no batches on a CPU, where they cost cache and gain nothing.
        alone: see `Direct`; has no say in batches.
    """
    on_cpu = detectors[0].provider.device == "cpu"
    batch_size = batch_size or (1 if on_cpu else GPU_BATCH)
    if batch_size == 1 and len(detectors) == 1:
        return Direct(detectors[0], alone)
    if on_cpu:
        return Batched([d for d in detectors for _ in range(cores())], batch_size)
    return Batched([d for d in detectors for _ in range(_SERVERS)], batch_size, 2 * batch_size * len(detectors))


def open_network(
    model: str | Path, devices: str = "auto", batch_size: int = 0, *, is_stream: bool = False
) -> tuple[OnnxDetector, Network]:
    """A model on one or several devices, ready for a scan; the first of its detectors, and all of them as a network.

    Args:
        devices: see `inspectad.detector.parse_devices`.
        batch_size: see `share`.
        is_stream: images come one by one, and each is wanted soon.

    Raises: UsageError: one of several GPUs does not work; of none, the CPU is used and says why.
    """
    detectors = [OnnxDetector.load(model, device, threads=1) for device in parse_devices(devices)]
    used = [d for d in detectors if d.provider.device != "cpu"] or detectors[:1]
    if used[0].provider.device != "cpu" and len(used) < len(detectors):
        failed = next(d for d in detectors if d.provider.device == "cpu")
        raise UsageError(
            f"--device {devices}: not all of these work here ({failed.provider.reason}); name those that do"
        )
    on_cpu = used[0].provider.device == "cpu"
    alone = OnnxDetector.load(model, "cpu", spins=True) if is_stream and on_cpu and cores() > 1 else None
    return used[0], share(used, batch_size, alone)


class Direct:
    """The calling thread runs the network on its one image."""

    callers = 1

    def __init__(self, detector: OnnxDetector, alone: OnnxDetector | None = None) -> None:
        """Args: alone: the same model on all cores, for an image that comes while no other is being scored: one image
        is known sooner then, but many at a time are not (README, "Speed")."""
        self._detector = detector
        self._alone = alone or detector
        self._busy = 0
        self._lock = threading.Lock()

    def score(self, pixels: ByteArray) -> tuple[float, FloatArray]:
        with self._lock:
            detector = self._detector if self._busy else self._alone
            self._busy += 1
        try:
            return detector.predict_resized(pixels[np.newaxis]).only
        finally:
            with self._lock:
                self._busy -= 1

    def close(self) -> None:
        pass


_Request = tuple[ByteArray, "Future[tuple[float, FloatArray]]"]


class Batched:
    """Images of many callers are gathered into batches, by a thread for each detector given.

    A batch starts when it is full, or `_FILL_S` after its first image; only then is the next one gathered. One that a
    detector cannot take is halved, since what is short then is mostly its memory; if all images go in halves, no batch
    as large is tried again there.
    """

    def __init__(self, detectors: Sequence[OnnxDetector], batch_size: int, callers: int = 0) -> None:
        """Args: callers: how many keep them all busy; by default one batch is filled while another is run."""
        self.callers = callers or 2 * batch_size * len(detectors)
        self._batch_size = batch_size
        self._gathering = threading.Lock()  # else several threads would each get a part of what is one batch
        self._closed, self._lock = False, threading.Lock()
        self._requests: queue.Queue[_Request | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._serve, args=(d,), daemon=True) for d in detectors]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise InspectadError(
                f"no thread can be started ({error}); end other programs, or use fewer GPUs"
            ) from error

    def score(self, pixels: ByteArray) -> tuple[float, FloatArray]:
        """Raises: InspectadError after `close`."""
        answer: Future[tuple[float, FloatArray]] = Future()
        with self._lock:  # nothing comes behind the word that it is over
            if self._closed:
                raise InspectadError("the network was closed while images were on their way")
            self._requests.put((pixels, answer))
        return answer.result()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._requests.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, detector: OnnxDetector) -> None:
        more, size = True, self._batch_size
        while more:
            with self._gathering:
                batch, more = self._next_batch(size)
            if batch:
                size = min(size, _answer(detector, batch) or size)

    def _next_batch(self, size: int) -> tuple[list[_Request], bool]:
        """Wait for an image, then for more of them; False after the last."""
        batch: list[_Request] = []
        until = float("inf")
        while len(batch) < size:
            wait = None if not batch else max(until - time.monotonic(), 0)
            try:
                request = self._requests.get(timeout=wait)
            except queue.Empty:
                break
            if request is None:
                return batch, False
            if not batch:
                until = time.monotonic() + _FILL_S
            batch.append(request)
        return batch, True


def _answer(detector: OnnxDetector, batch: Sequence[_Request]) -> int | None:
    """Give every caller of a batch its answer.

    Returns: how many images went at a time, where the whole batch did not and parts did; 0 where an image fails alone,
        so that it may not have been the number; None where the whole batch went.
    """
    try:
        prediction = detector.predict_resized(np.stack([pixels for pixels, _ in batch]))
        answers = [(float(s), m) for s, m in zip(prediction.image_scores, prediction.anomaly_maps, strict=True)]
        if len(answers) != len(batch):
            raise InspectadError(f"the network gave {len(answers)} answers for {len(batch)} images")
    except InspectadError as error:
        half = len(batch) // 2
        if half:
            parts = [(part, _answer(detector, part)) for part in (batch[:half], batch[half:])]
            return min(len(part) if went is None else went for part, went in parts)
        batch[0][1].set_exception(error)
        return 0
    except BaseException as error:  # a caller waits for an answer whatever happens
        for _, waiting in batch:
            waiting.set_exception(error)
        return 0
    for (_, waiting), answer in zip(batch, answers, strict=True):
        waiting.set_result(answer)
    return None
