"""From what the network says of an image to its row and its pictures."""

import hashlib
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import cv2

from inspectad.detector import OnnxDetector
from inspectad.errors import UnreadableImageError
from inspectad.heatmap import find_regions, region_level, render_overlay
from inspectad.output_links import write_inside
from inspectad.pipeline import TOO_LARGE, Prepared, Scored
from inspectad.png import encode_png
from inspectad.records import ByteArray, Inspection, Verdict

_NO_NUMBER: Final = "the model gave no number for it; train again, or report this with the image"
_LONGEST_NAME: Final = 255  # bytes, on all common file systems; temporary names are shorter


def heatmap_path(output: Path, name: str) -> Path:
    """Where the heatmap of an image goes; ``.png`` is appended, so ``a.jpg`` and ``a.png`` do not collide."""
    return output / "heatmaps" / _with_suffix(name, ".png")


def map_path(output: Path, name: str) -> Path:
    """Where the raw anomaly map goes: 32-bit float TIFF at the model's input size, or blended from tiles."""
    return output / "maps" / _with_suffix(name, ".tiff")


def explanation_path(output: Path, name: str) -> Path:
    """Where the explanation of an image goes, named as heatmaps are."""
    return output / _with_suffix(name, ".png")


def _with_suffix(name: str, suffix: str) -> str:
    """The name with a suffix, its last part cut (and told apart by a hash) where a file system would refuse it."""
    folder, slash, last = name.rpartition("/")
    data = os.fsencode(last)
    if len(data) + len(suffix) > _LONGEST_NAME:
        last = f"{os.fsdecode(data[:200]).encode(errors='ignore').decode()}~{hashlib.sha256(data).hexdigest()[:16]}"
    return f"{folder}{slash}{last}{suffix}"


class Judge:
    """From score and map to verdict, regions, files and row."""

    def __init__(
        self,
        detector: OnnxDetector,
        output: Path,
        threshold: float | None,
        *,
        heatmaps: str = "",
        maps: bool = False,
        write: Callable[[Path, bytes], None] | None = None,
    ) -> None:
        """Args: threshold: replaces the calibrated one; the map threshold is scaled with it. heatmaps: ``all``, or
        ``ng`` for those of NG images alone; "" for none. write: puts a picture where it belongs, if that is no
        folder here."""
        self._calibration = detector.manifest.calibration
        self._model = detector.digest[:12]
        self._output = output
        self._heatmaps = heatmaps
        self._maps = maps
        self._write = write or partial(write_inside, output)
        self.threshold = self._calibration.threshold if threshold is None else threshold
        self._map_threshold = self._calibration.map_threshold * self.threshold / self._calibration.threshold

    def finish(self, prepared: Prepared, scored: Scored | None) -> Inspection:
        """Judge one image and write its pictures."""
        name = prepared.file.name
        if scored is None or not math.isfinite(scored.score):
            return self._unreadable(prepared, prepared.error or _NO_NUMBER)
        score, anomaly_map = scored.score, scored.anomaly_map
        verdict, level = self.look(scored)
        regions = find_regions(anomaly_map, level, prepared.source_hw)
        if self._heatmaps in ("all", verdict.value.lower()):
            try:
                overlay = self.draw(prepared, scored, verdict, level)
            except UnreadableImageError as error:  # all of it is decoded only now, see `inspectad.jpeg`
                return self._unreadable(prepared, str(error))
            except MemoryError:
                return self._unreadable(prepared, TOO_LARGE)
            self._write(heatmap_path(self._output, name), encode_png(overlay))
        if self._maps:
            self._write(map_path(self._output, name), cv2.imencode(".tiff", anomaly_map)[1].tobytes())
        return Inspection(
            image=name,
            verdict=verdict,
            score=score,
            threshold=self.threshold,
            severity=score / self.threshold,
            area_px=regions.area_px,
            boxes=regions.boxes,
            peak_x=regions.peak_xy[0],
            peak_y=regions.peak_xy[1],
            elapsed_ms=_ms_since(prepared.started),
            model=self._model,
        )

    def look(self, scored: Scored) -> tuple[Verdict, float]:
        """The verdict, and the level that regions of the map are cut at."""
        verdict = self._calibration.verdict(scored.score, self.threshold)
        return verdict, region_level(float(scored.anomaly_map.max()), verdict, self.threshold, self._map_threshold)

    def draw(self, prepared: Prepared, scored: Scored, verdict: Verdict, level: float) -> ByteArray:
        """The heatmap, (H, W, 3) RGB at the source's size; a large JPEG is decoded again for it.

        Raises: UnreadableImageError.
        """
        caption = f"{verdict}  score {scored.score:.4g}  threshold {self.threshold:.4g}"
        return render_overlay(prepared.whole(), scored.anomaly_map, level, caption, verdict)

    def _unreadable(self, prepared: Prepared, why: str) -> Inspection:
        return Inspection(
            image=prepared.file.name,
            verdict=Verdict.UNREADABLE,
            elapsed_ms=_ms_since(prepared.started),
            model=self._model,
            error=why,
        )


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
