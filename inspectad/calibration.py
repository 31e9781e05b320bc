"""From the scores of images that a model has not seen to a threshold, and to what can be promised. Pure.

Good images alone (N of them). With N + 1 >= 1 / rate the threshold is the split-conformal quantile: the
ceil((N + 1)(1 - rate))-th smallest held-out score; a new good image exceeds it at most ``rate`` of the time if it is
exchangeable with them (Vovk, Gammerman & Shafer, 2005). With fewer, no rule without an assumption can support the
rate; then the tail is extrapolated, assuming log scores to be normal: the threshold is the upper prediction bound
of one further image, a Student-t quantile with the sample's variance drawn towards a prior one (Gelman et al.,
Bayesian Data Analysis, 3rd ed., 3.3: normal data, flat prior on the mean, scaled inverse chi-square on the variance).

Good images and defects. The good images set the range: from the highest held-out good score up to the threshold
above. The defects choose within it: half-way (in logs) between the highest good score and a low quantile of
the defect scores. So defects can lower the threshold towards the good images, never below any of them, and never
raise it; and since a quantile and two bounds are all that counts, one outlying or mislabelled defect cannot break it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from inspectad.manifest import Calibration
from inspectad.records import FloatArray

Floats = npt.NDArray[np.float64]

PRIOR_SD: Final = 0.07
"""Spread of log image scores expected of good images before any is seen, and
`PRIOR_IMAGES`, how many images that expectation counts for."""
PRIOR_IMAGES: Final = 10
BANK_EXPONENT: Final = 0.06
"""Scores of unseen good images fall like (number of images learnt from) to the power of minus this."""
LOW_DEFECTS: Final = 0.2
"""Which quantile of the defect scores counts as their lower end."""
_OUTLYING = 4.0  # robust standard deviations
_TINY = 1e-9  # keeps logs finite for an image that equals a training image


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Scores of images from models that did not contain them.

    Attributes:
        scores: (N,) image scores of the good images.
        peaks: (N,) highest map value of each.
        learnt_from: how many good images each of these models contained.
        final_images: how many the final model contains.
        how: in words.
        exchangeable: whether these are scores of fresh images (not of turned copies of a known one).
    """

    scores: FloatArray
    peaks: FloatArray
    learnt_from: float
    final_images: int
    how: str
    exchangeable: bool = True

    @property
    def correction(self) -> float:
        """Factor that brings these scores to what the final model, which learnt from more images, would give."""
        return float((self.final_images / max(self.learnt_from, 1)) ** -BANK_EXPONENT)


@dataclass(frozen=True, slots=True)
class Suspects:
    """Indices of training images that look mislabelled."""

    good: tuple[int, ...]
    defects: tuple[int, ...]


def calibrate(held_out: HeldOut, defect_scores: FloatArray, rate: float) -> tuple[Calibration, Suspects]:
    """Threshold for a wanted false-reject rate.

    Args:
        held_out: at least one good score.
        defect_scores: (M,) image scores of the defects by the final model, M may be 0.
        rate: false-reject rate wanted, between 0 and 0.5.
    """
    scores = np.maximum(held_out.scores.astype(np.float64) * held_out.correction, _TINY)
    peaks = np.maximum(held_out.peaks.astype(np.float64) * held_out.correction, _TINY)
    keep = ~outlying(np.log(scores))
    rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    # Images that look like defects count for the rank (they are held-out good images until somebody says otherwise),
    # but none of them may set the threshold; they are the highest, so the others are the first in order.
    usual = int(keep.sum())
    can_support = held_out.exchangeable and rank <= usual
    if can_support:
        by_rate, above_peaks = float(np.sort(scores)[rank - 1]), float(np.sort(peaks)[rank - 1])
        rule = f"conformal quantile of {len(scores)} held-out good scores"
    else:
        by_rate, above_peaks = (extrapolated_bound(x[keep], rate) for x in (scores, peaks))
        rule = f"extrapolated from {usual if held_out.exchangeable else 'no'} held-out good scores (Student-t bound)"
    threshold = by_rate
    if len(defect_scores):
        highest = float(scores[keep].max())
        low = float(np.quantile(defect_scores, LOW_DEFECTS))
        threshold = min(by_rate, max(highest, math.sqrt(highest * low)))
        if threshold < by_rate:
            rule += f", lowered towards the {len(defect_scores)} defects"
    expected = rate if threshold == by_rate else exceedance(scores[keep], threshold)
    limit = float(np.quantile(scores[keep], 0.75))
    calibration = Calibration(
        threshold=threshold,
        map_threshold=max(threshold, above_peaks * threshold / by_rate),
        false_reject_rate=rate,
        supported_rate=(len(scores) + 1 - usual) / (len(scores) + 1) if held_out.exchangeable else 1.0,
        expected_rate=expected,
        rule=rule,
        held_out=held_out.how,
        good_scores=tuple(float(f"{s:.7g}") for s in scores),
        defect_scores=tuple(float(f"{s:.7g}") for s in defect_scores),
        correction=held_out.correction,
        false_rejects=int((scores > threshold).sum()),
        escapes=int((defect_scores <= threshold).sum()),
    )
    suspects = Suspects(tuple(np.flatnonzero(~keep).tolist()), tuple(np.flatnonzero(defect_scores <= limit).tolist()))
    return calibration, suspects


def extrapolated_bound(scores: Floats, rate: float) -> float:
    """Score that one further image exceeds with probability ``rate``, if log scores are normal.

    Never below the highest of the scores: the rate is smaller than what they support, and their own quantile for the
    smallest rate that they support is the highest of them.
    """
    from scipy import stats

    mean, scale, freedom = _predictive(np.log(scores))
    return max(float(np.exp(mean + stats.t.ppf(1 - rate, freedom) * scale)), float(scores.max()))


def exceedance(scores: Floats, threshold: float) -> float:
    """Chance that one further good image exceeds a threshold, by the same extrapolation."""
    from scipy import stats

    mean, scale, freedom = _predictive(np.log(scores))
    return float(stats.t.sf((math.log(threshold) - mean) / scale, freedom))


def _predictive(log_scores: Floats) -> tuple[float, float, int]:
    """Location, scale and degrees of freedom of the posterior predictive Student-t of one further log score."""
    count, mean = len(log_scores), float(log_scores.mean())
    squares = float(((log_scores - mean) ** 2).sum())
    freedom = PRIOR_IMAGES + count - 1
    variance = (PRIOR_IMAGES * PRIOR_SD**2 + squares) / freedom
    return mean, math.sqrt(variance * (1 + 1 / count)), freedom


def outlying(log_scores: Floats) -> npt.NDArray[np.bool_]:
    """Which good images score so high that they are likely defects: (N,) bool.

    By median and median absolute deviation, which a few of them cannot move; never with fewer than five images.
    """
    if len(log_scores) < 5:
        return np.zeros(len(log_scores), bool)
    centre = np.median(log_scores)
    spread = max(1.4826 * float(np.median(np.abs(log_scores - centre))), PRIOR_SD / 2)
    return np.asarray(log_scores - centre > _OUTLYING * spread)


def fold_of(count: int, most_folds: int) -> Sequence[int]:
    """Fold number of each image: leave-one-out up to ``most_folds`` images, then 8 folds at most.

    Folds are blocks of neighbours in name order: frames of one part or one minute stay together, since a model that
    has seen the twin of a held-out image would score it too low.
    """
    folds = count if count <= most_folds else min(8, most_folds)
    return [i * folds // count for i in range(count)]
