"""From what the network says of an image to its row and its pictures."""

import hashlib
import math
import os
import time
from pathlib import Path
from typing import Final

import cv2

from inspectad.atomic import write_atomically
from inspectad.detector import OnnxDetector
from inspectad.heatmap import find_regions, region_level, render_overlay
from inspectad.pipeline import Prepared, Scored
from inspectad.records import ByteArray, Inspection, Verdict

_LONGEST_NAME: Final = 255  # bytes, on all common file systems; temporary names are shorter


def heatmap_path(output: Path, name: str) -> Path:
    """Where the heatmap of an image goes; ``.png`` is appended, so ``a.jpg`` and ``a.png`` do not collide."""
    return output / "heatmaps" / _with_suffix(name, ".png")


def map_path(output: Path, name: str) -> Path:
    """Where the raw anomaly map goes: 32-bit float TIFF at the model's input size."""
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

    def __init__(self, detector: OnnxDetector, output: Path, threshold: float | None, *, maps: bool) -> None:
        """Args: threshold: replaces the calibrated one; the map threshold is scaled with it."""
        self._calibration = detector.manifest.calibration
        self._model = detector.digest[:12]
        self._output = output
        self._maps = maps
        self.threshold = self._calibration.threshold if threshold is None else threshold
        self._map_threshold = self._calibration.map_threshold * self.threshold / self._calibration.threshold

    def finish(self, prepared: Prepared, scored: Scored | None) -> Inspection:
        """Judge one image and write its pictures: a heatmap when its source was kept, a raw map when asked for."""
        name = prepared.file.name
        if scored is None or not math.isfinite(scored.score):
            return Inspection(
                image=name,
                verdict=Verdict.UNREADABLE,
                elapsed_ms=1000 * prepared.seconds,
                model=self._model,
                error=prepared.error or "the model gave no number for it; train again, or report this with the image",
            )
        started = time.perf_counter()
        score, anomaly_map = scored.score, scored.anomaly_map
        verdict = self._calibration.verdict(score, self.threshold)
        level = region_level(float(anomaly_map.max()), verdict, self.threshold, self._map_threshold)
        regions = find_regions(anomaly_map, level, prepared.source_hw)
        if prepared.source is not None:
            caption = f"{verdict}  score {score:.4g}  threshold {self.threshold:.4g}"
            overlay = render_overlay(prepared.source, anomaly_map, level, caption, verdict)
            write_atomically(heatmap_path(self._output, name), encode_png(overlay))
        if self._maps:
            write_atomically(map_path(self._output, name), cv2.imencode(".tiff", anomaly_map)[1].tobytes())
        seconds = prepared.seconds + scored.seconds + time.perf_counter() - started
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
            elapsed_ms=1000 * seconds,
            model=self._model,
        )


def encode_png(image: ByteArray) -> bytes:
    """Args: image uint8 RGB (H, W, 3)."""
    # One fixed filter and little compression: 1.7 times faster than level 1 alone, for a file of the same size.
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
