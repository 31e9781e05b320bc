"""``inspectad evaluate``: what a model is worth on labelled images."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, UnreadableImageError, UsageError
from inspectad.image_files import IMAGE_SUFFIXES, ImageFile, find_images
from inspectad.images import decode_image, read_file, read_image, to_8_bit
from inspectad.metrics import Rate, aupro, auroc, average_precision, best_f1, f1, pixel_auroc
from inspectad.records import ByteArray, FloatArray

_MAP_PIXELS = 2**27  # pixel metrics need all maps at once, about 40 bytes a pixel; beyond this they are refused


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
    is_known: bool


def evaluate(
    config: EvaluateConfig, detector: OnnxDetector, say: Callable[[str, int, int], None] = lambda *_: None
) -> Evaluation:
    """Score all images of both folders and compute the figures.

    Args: say: told (what is being done, images done, images in all).

    Raises:
        UsageError: a folder that is not there, or masks that fit no defect.
        InspectadError: no readable image on one side.
    """
    unreadable: list[tuple[str, str]] = []
    good = list(_score(config.good, "scoring good images", detector, unreadable, say))
    defects = list(_score(config.defects, "scoring defects", detector, unreadable, say))
    for folder, found in ((config.good, good), (config.defects, defects)):
        if not found:
            raise InspectadError(f"{folder}: no readable image in there, so nothing can be measured")
    good_scores, defect_scores = (np.array([s.score for s in side]) for side in (good, defects))
    threshold = detector.threshold
    missed, alarms = int((defect_scores <= threshold).sum()), int((good_scores > threshold).sum())
    maps, masks, masked = _pixels(config, good, defects)
    return Evaluation(
        image_auroc=auroc(good_scores, defect_scores),
        aupr=average_precision(good_scores, defect_scores),
        image_f1=f1(len(defects) - missed, alarms, missed),
        best_f1=best_f1(good_scores, defect_scores),
        false_rejects=Rate(alarms, len(good)),
        escapes=Rate(missed, len(defects)),
        per_folder=_by_folder(defects, threshold),
        pixel_auroc=pixel_auroc(maps, masks) if masked else math.nan,
        aupro=aupro(maps, masks) if masked else math.nan,
        masked=masked,
        unreadable=tuple(unreadable),
        trained_on=sum(s.is_known for s in (*good, *defects)),
    )


def _score(
    folder: Path,
    what: str,
    detector: OnnxDetector,
    unreadable: list[tuple[str, str]],
    say: Callable[[str, int, int], None],
) -> Iterator[_Scored]:
    manifest = detector.manifest
    known = {i.sha256 for i in (*manifest.good_images, *manifest.defect_images)}
    files = find_images(folder)
    for done, file in enumerate(files):
        say(what, done, len(files))
        try:
            data = read_file(file.path)
            pixels = to_8_bit(decode_image(data), manifest.full_scale)
        except UnreadableImageError as error:
            unreadable.append((str(file.path), str(error)))
            continue
        prediction = detector.predict([pixels])
        height, width = pixels.shape[:2]
        is_known = hashlib.sha256(data).hexdigest() in known
        score, anomaly_map = float(prediction.image_scores[0]), prediction.anomaly_maps[0]
        yield _Scored(file, score, anomaly_map, (height, width), is_known)


def _by_folder(defects: list[_Scored], threshold: float) -> dict[str, Rate]:
    kinds: dict[str, list[bool]] = {}
    for scored in defects:
        kinds.setdefault(str(Path(scored.file.name).parent), []).append(scored.score <= threshold)
    return {kind: Rate(sum(missed), len(missed)) for kind, missed in sorted(kinds.items())}


def _pixels(
    config: EvaluateConfig, good: list[_Scored], defects: list[_Scored]
) -> tuple[list[FloatArray], list[ByteArray], int]:
    """Maps and masks at source size, of all good images and of the defects that have a mask."""
    if config.masks is None:
        return [], [], 0
    found = [(s, mask) for s in defects if (mask := _read_mask(config.masks, s)) is not None]
    if not found:
        raise UsageError(
            f"{config.masks}: no mask in there fits a defect in {config.defects}; a mask has the defect's relative "
            "path with .png, or with _mask.png (scratch/001.jpg: scratch/001_mask.png)"
        )
    sizes = [s.source_hw for s in good] + [s.source_hw for s, _ in found]
    if sum(h * w for h, w in sizes) > _MAP_PIXELS:
        raise UsageError(f"--masks: {len(sizes)} images of this size are too many pixels for pixel metrics; take fewer")
    maps = [_at_source(s) for s in good] + [_at_source(s) for s, _ in found]
    masks = [np.zeros(s.source_hw, np.uint8) for s in good] + [mask for _, mask in found]
    return maps, masks, len(found)


def _at_source(scored: _Scored) -> FloatArray:
    import cv2

    size = scored.source_hw[::-1]
    return np.asarray(cv2.resize(scored.anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _read_mask(folder: Path, scored: _Scored) -> ByteArray | None:
    """The defect's mask, nonzero where defective, or None. Raises: UsageError when it does not fit the image."""
    stem = folder / Path(scored.file.name).with_suffix("")
    names = [f"{stem}{ending}{suffix}" for ending in ("_mask", "") for suffix in sorted(IMAGE_SUFFIXES)]
    path = next((Path(n) for n in names if Path(n).is_file()), None)
    if path is None:
        return None
    try:
        mask = read_image(path).pixels.max(axis=2)
    except UnreadableImageError as error:
        raise UsageError(f"{path}: this mask {error}") from error
    if mask.shape != scored.source_hw:
        raise UsageError(
            f"{path}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{scored.source_hw[1]} x {scored.source_hw[0]}; they must be equal"
        )
    if len(np.unique(mask)) > 2:
        raise UsageError(
            f"{path}: has more than two values, so it is no mask; masks are 0 where good and 255 where not"
        )
    return np.asarray(mask > 0, np.uint8)
