"""``inspectad evaluate``: what a model is worth on labelled images."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectad import pipeline
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, UsageError
from inspectad.image_files import ImageFile, find_images
from inspectad.images import read_file
from inspectad.masks import mask_path, read_mask
from inspectad.metrics import PixelCounts, Rate, auroc, average_precision, best_f1, f1
from inspectad.network import share
from inspectad.pipeline import Prepared
from inspectad.progress import Step, silent
from inspectad.records import FloatArray, Inspection, Verdict

_NO_MAP = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Which labelled images.

    Attributes:
        masks: folder of truth masks for the defects, ``<name>.png`` or ``<name>_mask.png`` at the same relative path.
    """

    good: Path
    defects: Path
    masks: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of merit; nan where they cannot be had.

    Attributes:
        image_f1: at the shipped threshold; best_f1: at the best threshold for these very images.
        per_folder: escapes of each folder of defects.
        masked: how many defects had a mask; pixel figures are over these and all good images.
        unreadable: (path, reason).
        trained_on: how many of the images are training images of the model, by SHA-256.
        images_per_s: reading, decoding and inference of all the images, as in a scan without heatmaps.
    """

    image_auroc: float
    aupr: float
    image_f1: float
    best_f1: float
    false_rejects: Rate
    escapes: Rate
    per_folder: dict[str, Rate]
    pixel_auroc: float
    aupro: float
    masked: int
    unreadable: tuple[tuple[str, str], ...]
    trained_on: int
    images_per_s: float

    def to_json(self) -> str:
        """One JSON object; a figure that cannot be had is null."""
        data = {
            "image_auroc": self.image_auroc,
            "aupr": self.aupr,
            "image_f1": self.image_f1,
            "best_f1": self.best_f1,
            "false_rejects": _rate_json(self.false_rejects),
            "escapes": _rate_json(self.escapes),
            "escapes_by_folder": {k: _rate_json(v) for k, v in self.per_folder.items()},
            "pixel_auroc": self.pixel_auroc,
            "aupro": self.aupro,
            "masked_defects": self.masked,
            "trained_on": self.trained_on,
            "unreadable": [{"image": name, "error": reason} for name, reason in self.unreadable],
        }
        return json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in data.items()}, indent=2)


def _rate_json(rate: Rate) -> dict[str, object]:
    low, high = rate.interval()
    value = None if not rate.total else rate.value
    return {"count": rate.events, "of": rate.total, "rate": value, "interval_95": [low, high]}


@dataclass(frozen=True, slots=True)
class _Scored:
    file: ImageFile
    score: float
    anomaly_map: FloatArray
    source_hw: tuple[int, int]


def evaluate(config: EvaluateConfig, detector: OnnxDetector, say: Step = silent) -> Evaluation:
    """Score all images of both folders and compute the figures.

    Raises:
        UsageError: a folder that is not there, or masks that fit no defect.
        InspectadError: no readable image on one side.
    """
    good, defects = find_images(config.good), find_images(config.defects)
    for folder, files in ((config.good, good), (config.defects, defects)):
        if not files:
            raise InspectadError(_nothing_in(folder))
    result = evaluate_files(good, defects, config.masks, detector, say)
    for folder, rate in ((config.good, result.false_rejects), (config.defects, result.escapes)):
        if not rate.total:
            raise InspectadError(_nothing_in(folder))
    if config.masks is not None and not result.masked:
        raise UsageError(
            f"{config.masks}: no mask in there fits a defect in {config.defects}; a mask has the defect's relative "
            "path with .png, or with _mask.png (scratch/001.jpg: scratch/001_mask.png)"
        )
    return result


def _nothing_in(folder: Path) -> str:
    return f"{folder}: no readable image in there, so nothing can be measured"


def evaluate_files(
    good: Sequence[ImageFile],
    defects: Sequence[ImageFile],
    masks: Path | None,
    detector: OnnxDetector,
    say: Step = silent,
) -> Evaluation:
    """Score labelled images, by the same way as ``scan``, and compute the figures; those that cannot be had are nan.

    Args: masks: folder of truth masks, found by the names of the defects; see `EvaluateConfig`.

    Raises:
        UsageError: a mask that does not fit its image.
    """
    unreadable: list[tuple[str, str]] = []
    started = time.perf_counter()
    keep = masks is not None
    scored_good = _score(good, "scoring good images", detector, unreadable, say, keep_maps=keep)
    scored_defects = _score(defects, "scoring defects", detector, unreadable, say, keep_maps=keep)
    seconds = time.perf_counter() - started
    good_scores, defect_scores = (np.array([s.score for s in side]) for side in (scored_good, scored_defects))
    threshold = detector.threshold
    missed, alarms = int((defect_scores <= threshold).sum()), int((good_scores > threshold).sum())
    pixels, masked = _count_pixels(masks, scored_good, scored_defects)
    return Evaluation(
        image_auroc=auroc(good_scores, defect_scores),
        aupr=average_precision(good_scores, defect_scores),
        image_f1=f1(len(defect_scores) - missed, alarms, missed),
        best_f1=best_f1(good_scores, defect_scores),
        false_rejects=Rate(alarms, len(good_scores)),
        escapes=Rate(missed, len(defect_scores)),
        per_folder=_by_folder(scored_defects, threshold),
        pixel_auroc=pixels.pixel_auroc(),
        aupro=pixels.aupro(),
        masked=masked,
        unreadable=tuple(unreadable),
        trained_on=_count_known((*scored_good, *scored_defects), detector),
        images_per_s=(len(good) + len(defects)) / seconds,
    )


def _score(
    files: Sequence[ImageFile],
    what: str,
    detector: OnnxDetector,
    unreadable: list[tuple[str, str]],
    say: Step,
    *,
    keep_maps: bool,
) -> list[_Scored]:
    """Scores and maps of the readable ones, in their order; the others go to ``unreadable`` as (path, reason)."""
    found: dict[str, _Scored] = {}

    def keep(prepared: Prepared, scored: pipeline.Scored | None) -> Inspection:
        name = prepared.file.name
        if scored is None:
            return Inspection(image=name, verdict=Verdict.UNREADABLE, error=prepared.error)
        anomaly_map = scored.anomaly_map if keep_maps else _NO_MAP
        found[name] = _Scored(prepared.file, scored.score, anomaly_map, prepared.source_hw)
        return Inspection(image=name, verdict=detector.manifest.calibration.verdict(scored.score), score=scored.score)

    with (
        contextlib.closing(share([detector])) as network,
        contextlib.closing(pipeline.inspect_files(iter(files), detector.manifest, network, keep)) as rows,
    ):
        for done, (prepared, row) in enumerate(rows):
            say(what, done, len(files))
            if row.verdict is Verdict.UNREADABLE:
                unreadable.append((str(prepared.file.path), row.error))
    return [found[file.name] for file in files if file.name in found]


def _count_known(scored: Sequence[_Scored], detector: OnnxDetector) -> int:
    """How many of the images trained the model."""
    manifest = detector.manifest
    known = {i.sha256 for i in (*manifest.good_images, *manifest.defect_images)}
    return sum(hashlib.sha256(read_file(s.file.path)).hexdigest() in known for s in scored)


def _by_folder(defects: list[_Scored], threshold: float) -> dict[str, Rate]:
    kinds: dict[str, list[bool]] = {}
    for scored in defects:
        kinds.setdefault(str(Path(scored.file.name).parent), []).append(scored.score <= threshold)
    return {kind: Rate(sum(missed), len(missed)) for kind, missed in sorted(kinds.items())}


def _count_pixels(folder: Path | None, good: Sequence[_Scored], defects: Sequence[_Scored]) -> tuple[PixelCounts, int]:
    """Pixels at source size, of all good images and of the defects that have a mask; and how many have one."""
    masked = [] if folder is None else [(s, p) for s in defects if (p := mask_path(folder, s.file.name)) is not None]
    if not masked:
        return PixelCounts(0, 1), 0
    maps = [s.anomaly_map for s in (*good, *(s for s, _ in masked))]
    counts = PixelCounts(min(float(m.min()) for m in maps), max(float(m.max()) for m in maps))
    for scored in good:
        counts.add(_at_source(scored), np.zeros(scored.source_hw, np.uint8))
    for scored, path in masked:
        counts.add(_at_source(scored), read_mask(path, scored.source_hw))
    return counts, len(masked)


def _at_source(scored: _Scored) -> FloatArray:
    import cv2

    size = scored.source_hw[::-1]
    return np.asarray(cv2.resize(scored.anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)
