"""From the scores of images that a model has not seen to a threshold, and to what can be promised. Pure.

Good images alone (N of them). With N + 1 >= 3 / rate the threshold is the ceil((N + 1)(1 - rate))-th smallest
held-out score, the conformal quantile. Were the scores of one model that saw none of these images, a new good image
would exceed it at most ``rate`` of the time (split conformal: Vovk, Gammerman & Shafer, 2005). They come from one
model for each part left out, for which theory grants about twice the rate and practice the rate itself (jackknife+ and
CV+: Barber, Candes, Ramdas & Tibshirani, Annals of Statistics 2021). With fewer images that quantile is one of the
very highest scores: a single odd image moves it far, mostly upwards, and defects escape. (The guarantee would hold
from N + 1 >= 1 / rate on; measured with 24 images, at equal false rejects, 25 % of the defects escaped instead of
17 %.) There the tail is extrapolated, assuming log scores to be normal: the threshold is the upper prediction bound of
one further image, a Student-t quantile with the sample's variance drawn towards a prior one (Gelman et al., Bayesian
Data Analysis, 3rd ed., 3.3: normal data, flat prior on the mean, scaled inverse chi-square on the variance), but no
lower than the third highest score, or the next below all likely defects.

Good images and defects. The defects that score above all good images can lower the threshold: half-way (in logs)
between the highest good score and a low quantile of theirs, if that is lower. A defect that scores like a good image,
mislabelled or not, has no say in that, and of the others a quantile and two bounds are all that counts. Where there
are five or more and all of them score above all good images, false rejects can be spared at no known defect's cost: the
threshold rises to half-way between the highest good score and the lowest of theirs, at most to that of a tenth of the
rate.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from inspectad.manifest import Calibration
from inspectad.records import FloatArray

Floats = npt.NDArray[np.float64]

PRIOR_SD: Final = 0.05
"""Spread of log image scores expected of good images before any is seen, and
`PRIOR_IMAGES`, how many images that expectation counts for."""
PRIOR_IMAGES: Final = 10
TAIL_IMAGES: Final = 3
"""So many held-out good scores must lie at or above a quantile before it is read off them."""
BANK_EXPONENT: Final = 0.06
"""Scores of unseen good images by a memory bank fall like (number of images learnt from) to the power of minus this."""
LOW_DEFECTS: Final = 0.2
"""Which quantile of the defect scores counts as their lower end."""
ENOUGH_DEFECTS: Final = 5
"""From so many defects on, all of them above all good images, the threshold may be raised,
up to the one of a false-reject rate `SPARING` times smaller."""
SPARING: Final = 10
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
        exponent: the scores of the method fall like (images learnt from) to the power of minus this.
        exchangeable: whether these are scores of fresh images (not of turned copies of a known one).
    """

    scores: FloatArray
    peaks: FloatArray
    learnt_from: float
    final_images: int
    how: str
    exchangeable: bool = True
    exponent: float = BANK_EXPONENT

    @property
    def correction(self) -> float:
        """Factor that brings these scores to what the final model, which learnt from more images, would give."""
        return float((self.final_images / max(self.learnt_from, 1)) ** -self.exponent)


@dataclass(frozen=True, slots=True)
class Suspects:
    """Indices of training images that look mislabelled."""

    good: tuple[int, ...]
    defects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A threshold, the one that the rate alone would give, which scores it rests on, and how it was found."""

    threshold: float
    by_rate: float
    usual: npt.NDArray[np.bool_]
    rule: str


def calibrate(held_out: HeldOut, defect_scores: FloatArray, rate: float) -> tuple[Calibration, Suspects]:
    """Threshold for a wanted false-reject rate.

    Args:
        held_out: at least one good score.
        defect_scores: (M,) image scores of the defects by the same models, none of which contained them; M may be 0.
        rate: false-reject rate wanted, between 0 and 0.5.
    """
    scores = np.maximum(held_out.scores.astype(np.float64) * held_out.correction, _TINY)
    peaks = np.maximum(held_out.peaks.astype(np.float64) * held_out.correction, _TINY)
    defects = defect_scores.astype(np.float64) * held_out.correction
    cut = _cut(scores, defects, rate, held_out.exchangeable)
    peak_bound, _ = _bound(peaks, cut.usual, rate, held_out.exchangeable)
    readable = _highest_rank(cut.usual) if held_out.exchangeable else 0
    like_good = float(np.quantile(scores[cut.usual], 0.75))
    calibration = Calibration(
        threshold=cut.threshold,
        map_threshold=max(cut.threshold, peak_bound * cut.threshold / cut.by_rate),
        false_reject_rate=rate,
        supported_rate=(len(scores) + 1 - readable) / (len(scores) + 1),
        expected_rate=_expected_rate(scores, cut, rate),
        rule=cut.rule,
        held_out=held_out.how,
        good_scores=tuple(float(f"{s:.7g}") for s in scores),
        defect_scores=tuple(float(f"{s:.7g}") for s in defects),
        correction=held_out.correction,
        false_rejects=_nested_false_rejects(scores, defects, rate) if held_out.exchangeable else 0,
        escapes=_nested_escapes(scores, defects, rate, held_out.exchangeable),
    )
    # A guessed good score accuses nobody.
    dubious = np.flatnonzero(defects <= like_good).tolist() if held_out.exchangeable else []
    return calibration, Suspects(tuple(np.flatnonzero(~cut.usual).tolist()), tuple(dubious))


def _expected_rate(scores: Floats, cut: _Cut, rate: float) -> float:
    """Of further good images, the share above the threshold; it is no higher than asked unless defects lowered it."""
    if cut.threshold == cut.by_rate:
        return rate
    expected = exceedance(tamed(scores), cut.threshold)
    return expected if cut.threshold < cut.by_rate else min(expected, rate)


def _bound(values: Floats, usual: npt.NDArray[np.bool_], rate: float, exchangeable: bool) -> tuple[float, str]:
    """What a further good image exceeds with probability ``rate``, and how that was found."""
    # Images that look like defects count for the rank (they are held-out good images until somebody says otherwise),
    # but none of them is a threshold itself; they are the highest, so the others are the first in order.
    ordered, highest = np.sort(values), _highest_rank(usual) if exchangeable else 0
    rank = math.ceil((len(values) + 1) * (1 - rate) - 1e-9)
    if rank <= highest:
        return float(ordered[rank - 1]), f"quantile of {len(values)} held-out good scores"
    bound = extrapolated_bound(tamed(values), rate)
    count = len(values) if exchangeable else "no"
    rule = f"extrapolated from {count} held-out good scores (Student-t bound)"
    return max(bound, float(ordered[highest - 1])) if highest else bound, rule


def _highest_rank(usual: npt.NDArray[np.bool_]) -> int:
    """Up to which rank held-out scores may be read off as quantiles; 0 for none."""
    return max(0, min(len(usual) + 1 - TAIL_IMAGES, int(usual.sum())))


def _cut(
    scores: Floats, defects: Floats, rate: float, exchangeable: bool, enough_defects: int = ENOUGH_DEFECTS
) -> _Cut:
    """The rules of the module's text."""
    usual = ~outlying(np.log(scores))
    by_rate, rule = _bound(scores, usual, rate, exchangeable)
    threshold = by_rate
    # Without held-out good scores nothing speaks for the guess, so the defects are believed.
    highest = float(scores[usual].max()) if exchangeable else 0.0
    found = defects[defects > highest]  # the others look good: mislabelled, or beyond this model
    if len(found):
        low = float(np.quantile(found, LOW_DEFECTS))
        threshold = min(by_rate, math.sqrt(highest * low) if exchangeable else 0.95 * low)
    if exchangeable and len(found) == len(defects) >= enough_defects:
        strict, _ = _bound(scores, usual, rate / SPARING, exchangeable)
        threshold = max(threshold, min(strict, math.sqrt(highest * float(defects.min()))))
    if threshold != by_rate:
        rule += f", {'lowered' if threshold < by_rate else 'raised'} towards {len(found)} defects"
    return _Cut(threshold, by_rate, usual, rule)


def _nested_false_rejects(scores: Floats, defects: Floats, rate: float) -> int:
    """Good images above the threshold that the others alone would have set: a threshold knows its own images."""
    if len(scores) < 2:
        return 0
    thresholds = [_cut(np.delete(scores, i), defects, rate, True).threshold for i in range(len(scores))]
    return int((scores > np.array(thresholds)).sum())


def _nested_escapes(scores: Floats, defects: Floats, rate: float, exchangeable: bool) -> int:
    """Defects at or below the threshold that was set without them: with one less, which must not undo a rise."""
    enough = ENOUGH_DEFECTS - 1
    others = [np.delete(defects, i) for i in range(len(defects))]
    thresholds = [_cut(scores, left, rate, exchangeable, enough).threshold for left in others]
    return int((defects <= np.array(thresholds)).sum()) if len(defects) else 0


def extrapolated_bound(scores: Floats, rate: float) -> float:
    """Score that one further image exceeds with probability ``rate``, if log scores are normal."""
    from scipy import stats

    mean, scale, freedom = _predictive(np.log(scores))
    return float(np.exp(mean + stats.t.ppf(1 - rate, freedom) * scale))


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
    """Which good images score so high that they are likely defects: (N,) bool; see `_limit`."""
    return np.asarray(log_scores > _limit(log_scores))


def tamed(scores: Floats) -> Floats:
    """The scores, those of likely defects drawn in to the limit (winsorised): (N,).

    A good image that is merely odd still says that good images vary; a defect among them says no more than that.
    """
    return np.minimum(scores, np.exp(_limit(np.log(scores))))


def _limit(log_scores: Floats) -> float:
    """Up to which log score an image passes for good: median and median absolute deviation, which a few of them cannot
    move; infinite with fewer than five images."""
    if len(log_scores) < 5:
        return math.inf
    centre = float(np.median(log_scores))
    spread = max(1.4826 * float(np.median(np.abs(log_scores - centre))), PRIOR_SD / 2)
    return centre + _OUTLYING * spread


def fold_of(count: int, most_folds: int) -> npt.NDArray[np.int64]:
    """Fold number of each image: leave-one-out up to ``most_folds`` images, then 8 folds at most.

    Folds are blocks of neighbours in name order: frames of one part or one minute stay together, since a model that
    has seen the twin of a held-out image would score it too low.
    """
    folds = count if count <= most_folds else min(8, most_folds)
    return groups_of(count, folds)


def groups_of(count: int, groups: int) -> npt.NDArray[np.int64]:
    """Group number of each of ``count`` things: even blocks of neighbours, in at most so many groups."""
    return np.arange(count) * min(groups, count) // max(count, 1)
