"""The small frozen values that pass between the parts of inspectad. They check their shapes when they are made."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


class Verdict(StrEnum):
    """What is said of one image. ``UNREADABLE`` never counts as ``OK``."""

    OK = "OK"
    NG = "NG"
    UNREADABLE = "UNREADABLE"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a detector says of a batch.

    Attributes:
        image_scores: (B,) float32, raw score units, higher is more anomalous, never clamped.
        anomaly_maps: (B, H, W) float32 at the model's input size, same units.
    """

    image_scores: FloatArray
    anomaly_maps: FloatArray

    def __post_init__(self) -> None:
        if self.anomaly_maps.ndim != 3:
            raise ValueError(f"anomaly_maps must be (B, H, W), got {self.anomaly_maps.shape}")
        if self.image_scores.shape != self.anomaly_maps.shape[:1]:
            raise ValueError(
                f"image_scores must be ({len(self.anomaly_maps)},) to fit the maps, got {self.image_scores.shape}"
            )

    @property
    def only(self) -> tuple[float, FloatArray]:
        """Score and map (H, W) of a batch of one."""
        (score,), (anomaly_map,) = self.image_scores, self.anomaly_maps
        return float(score), anomaly_map


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in source pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One row of the results; the field names are the column names, in this order.

    Attributes:
        image: path relative to the scanned root, always with forward slashes.
        verdict: OK, NG or UNREADABLE.
        score: image score in raw units; None when unreadable, like all the figures below.
        threshold: the score from which an image is NG.
        severity: score / threshold, never clamped.
        area_px: source pixels inside regions of the anomaly map above the map threshold.
        boxes: the bounding boxes of these regions, largest first.
        peak_x, peak_y: source pixel at the highest value of the anomaly map.
        elapsed_ms: reading, decoding, inference and regions of this image (its share of the batch).
        model: first 12 hex digits of the SHA-256 of the model file that judged it.
        error: why it could not be read, else empty.
    """

    image: str
    verdict: Verdict
    score: float | None = None
    threshold: float | None = None
    severity: float | None = None
    area_px: int | None = None
    boxes: tuple[Box, ...] = ()
    peak_x: int | None = None
    peak_y: int | None = None
    elapsed_ms: float | None = None
    model: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.UNREADABLE) != (self.score is None):
            raise ValueError(f"{self.image}: verdict {self.verdict} does not go with score {self.score}")
