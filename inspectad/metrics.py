"""Figures of merit, pure numpy: what a detector is worth on labelled images, with intervals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np
import numpy.typing as npt

from inspectad.records import ByteArray, FloatArray

AnyFloats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate counted from ``events`` out of ``total``, with its 95 % Wilson interval (Wilson, JASA 1927)."""

    events: int
    total: int

    @property
    def value(self) -> float:
        return self.events / self.total if self.total else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper bound, each in 0..1; (0, 1) when nothing was counted."""
        if not self.total:
            return (0.0, 1.0)
        z, n, p = NormalDist().inv_cdf(0.5 + confidence / 2), self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (max(0.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.events} of {self.total} ({self.value:.1%}, 95 % interval {low:.1%} to {high:.1%})"


def auroc(good: AnyFloats, defect: AnyFloats) -> float:
    """Chance that a defect scores higher than a good one, ties counting half (Mann-Whitney); nan if one is empty."""
    good, defect = np.sort(np.ravel(good)), np.ravel(defect)
    if not good.size or not defect.size:
        return math.nan
    below = np.searchsorted(good, defect, side="left")
    equal = np.searchsorted(good, defect, side="right") - below
    return float((below + 0.5 * equal).mean() / good.size)


def average_precision(good: AnyFloats, defect: AnyFloats) -> float:
    """Area under the precision-recall curve as a step function (AUPR), defects positive; nan if one is empty."""
    if not np.size(good) or not np.size(defect):
        return math.nan
    hits, alarms = _counts_by_threshold(good, defect)
    recall = hits / np.size(defect)
    return float(np.sum(np.diff(recall, prepend=0.0) * hits / (hits + alarms)))


def best_f1(good: AnyFloats, defect: AnyFloats) -> float:
    """Highest F1 that any threshold reaches on these very scores: the oracle's, not a promise."""
    if not np.size(good) or not np.size(defect):
        return math.nan
    hits, alarms = _counts_by_threshold(good, defect)
    return float(np.max(2 * hits / (hits + alarms + np.size(defect))))


def f1(true_alarms: int, false_alarms: int, missed: int) -> float:
    """Harmonic mean of precision and recall; 0 when nothing was found."""
    total = 2 * true_alarms + false_alarms + missed
    return 2 * true_alarms / total if total else math.nan


def _counts_by_threshold(good: AnyFloats, defect: AnyFloats) -> tuple[AnyFloats, AnyFloats]:
    """Defects and good ones at or above each distinct score, from the highest score down."""
    scores = np.concatenate([np.ravel(good), np.ravel(defect)])
    is_defect = np.concatenate([np.zeros(np.size(good)), np.ones(np.size(defect))])
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
    hits = np.cumsum(is_defect[order])[last_of_tie]
    return hits, np.flatnonzero(last_of_tie) + 1.0 - hits


def pixel_auroc(maps: Sequence[FloatArray], masks: Sequence[ByteArray]) -> float:
    """AUROC over all pixels of all images; masks nonzero where defective, same shapes as the maps."""
    scores, truth = _flatten(maps), _flatten(masks) > 0
    return auroc(scores[~truth], scores[truth])


def aupro(maps: Sequence[FloatArray], masks: Sequence[ByteArray], limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a pixel false-positive rate (Bergmann et al., IJCV 2021, 4.1).

    For every threshold: the share of each 8-connected defect region that is found, averaged over regions, against
    the share of defect-free pixels (of all images, the good ones included) above it. The area up to ``limit`` is
    divided by ``limit``.

    Args: maps float (H, W) each; masks (H, W) each, nonzero where defective.
    Returns: 0..1; nan when there is no defect region or no defect-free pixel.
    """
    weights = [_region_weights(mask) for mask in masks]
    regions = sum(count for _, count in weights)
    scores, weight = _flatten(maps), _flatten([w for w, _ in weights])
    normal = weight == 0
    if not regions or not normal.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
    fpr = (np.cumsum(normal[order]) / normal.sum())[last_of_tie]
    overlap = (np.cumsum(weight[order], dtype=np.float64) / regions)[last_of_tie]
    return _area_up_to(limit, fpr, overlap)


def _area_up_to(limit: float, fpr: AnyFloats, overlap: AnyFloats) -> float:
    """Mean height of a curve from (0, 0), its points in ascending order, between 0 and the limit."""
    fpr, overlap = np.append(0.0, fpr), np.append(0.0, overlap)
    inside = fpr <= limit
    at_limit = np.interp(limit, fpr, overlap)
    x, y = np.append(fpr[inside], limit), np.append(overlap[inside], at_limit)
    return float(np.trapezoid(y, x) / limit)


class PixelCounts:
    """`pixel_auroc` and `aupro` of images that come one at a time: memory does not grow with their number.

    Scores are counted in 2**16 equal steps, so that pixels less than a step apart tie.
    """

    STEPS = 2**16

    def __init__(self, lowest: float, highest: float) -> None:
        """Args: lowest, highest: the range of the scores; what lies outside counts as at its end."""
        self._lowest = lowest
        self._scale = (self.STEPS - 1) / max(highest - lowest, 1e-30)
        self._normal, self._defective, self._weight = np.zeros((3, self.STEPS))
        self._regions = 0

    def add(self, anomaly_map: FloatArray, mask: ByteArray) -> None:
        """Args: anomaly_map (H, W); mask (H, W), nonzero where defective."""
        steps = np.rint((anomaly_map.ravel().astype(np.float64) - self._lowest) * self._scale)
        bins, truth = steps.clip(0, self.STEPS - 1).astype(np.intp), mask.ravel() > 0
        weights, regions = _region_weights(mask)
        self._normal += np.bincount(bins[~truth], minlength=self.STEPS)
        self._defective += np.bincount(bins[truth], minlength=self.STEPS)
        self._weight += np.bincount(bins[truth], weights.ravel()[truth], minlength=self.STEPS)
        self._regions += regions

    def pixel_auroc(self) -> float:
        """As `pixel_auroc`; nan without defective or without defect-free pixels."""
        pairs = self._normal.sum() * self._defective.sum()
        below = np.cumsum(self._normal) - 0.5 * self._normal
        return float((self._defective * below).sum() / pairs) if pairs else math.nan

    def aupro(self, limit: float = 0.3) -> float:
        """As `aupro`."""
        if not self._regions or not self._normal.any():
            return math.nan
        falling = np.flatnonzero(self._normal + self._defective)[::-1]
        fpr = np.cumsum(self._normal[falling]) / self._normal.sum()
        return _area_up_to(limit, fpr, np.cumsum(self._weight[falling]) / self._regions)


def _region_weights(mask: ByteArray) -> tuple[FloatArray, int]:
    """1 / region size on every defective pixel, and how many regions there are."""
    count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel(), minlength=count).astype(np.float32)
    inverse = np.where(np.arange(count) > 0, 1 / np.maximum(sizes, 1), 0).astype(np.float32)
    return inverse[labels], count - 1


def _flatten(arrays: Iterable[npt.NDArray[np.generic]]) -> npt.NDArray[np.floating]:
    return np.concatenate([np.ravel(a) for a in arrays]).astype(np.float32, copy=False)
