"""Names of images to rows, on one node: the local engine's way of an image, but for who reads and writes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2

from inspectad.detector import OnnxDetector
from inspectad.image_files import ImageFile
from inspectad.judge import Judge
from inspectad.network import share
from inspectad.output_links import write_inside
from inspectad.pipeline import inspect_files
from inspectad.ray_engine.job import Found, Job
from inspectad.ray_engine.listing import Name, path_of
from inspectad.ray_engine.shards import stored_name
from inspectad.records import Inspection, Verdict
from inspectad.results import format_row
from inspectad.scan import is_distorted, tiled


class Inspects(Protocol):
    """What a process of a node runs.

    Attributes:
        note: what a user should know of the device; else empty.
    """

    note: str

    def inspect(self, names: Sequence[Name]) -> list[Found]:
        """A row for each, in any order."""


class Inspector:
    """The model, loaded, and the images of a job."""

    def __init__(self, job: Job) -> None:
        """Raises: ModelFileError: the model did not arrive whole."""
        detector = OnnxDetector.from_bytes(job.model, job.device, threads=1)
        on_cpu = detector.provider.device == "cpu"
        if on_cpu:
            cv2.setNumThreads(1)  # each core has a process of its own
        self.note = detector.provider.reason
        self._job = job
        self._network = share([detector])
        self._workers = job.workers + (0 if on_cpu else self._network.callers)
        self._manifest = tiled(job.tile, detector.manifest)
        self._judge = Judge(detector, Path(), job.threshold, heatmaps=job.heatmaps, maps=job.maps, write=self._write)

    def inspect(self, names: Sequence[Name]) -> list[Found]:
        """A row for each, in their order; pictures are written. Raises: OutputError."""
        places = {os.fsdecode(name): path_of(self._job.root, name) for name in names}
        files = (ImageFile(Path(place.address), name) for name, place in places.items())
        rows = inspect_files(
            files,
            self._manifest,
            self._network,
            self._judge.finish,
            workers=self._workers,
            read=lambda file, _on_part: places[file.name].read(),
        )
        return [
            Found(format_row(row, self._job.kind), row.verdict.value, is_distorted(prepared, self._manifest))
            for prepared, row in rows
        ]

    def _write(self, path: Path, data: bytes) -> None:
        output = self._job.output
        if output.is_url:
            (output / stored_name(path.as_posix())).write(data)
        else:
            write_inside(output.path, output.path / path, data)


def unreadable(name: Name, why: str, model: str, kind: str) -> Found:
    """The row of an image that could not be inspected at all."""
    row = Inspection(image=os.fsdecode(name), verdict=Verdict.UNREADABLE, model=model, error=why)
    return Found(format_row(row, kind), row.verdict.value)
