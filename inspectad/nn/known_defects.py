"""How much the known defects may say, and what: from descriptions of good images and defects to a `DefectHead`. Pure.

The weight of the head is chosen by pairs of a good image and a defect that it has not seen (nested leave-one-out), it
shrinks with few defects, and it is exactly 0 where the bank alone tells the pairs apart as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from inspectad.calibration import groups_of
from inspectad.nn.defect_head import DefectHead
from inspectad.nn.known_masks import Places, learn_map, set_patch
from inspectad.nn.logistic import Floats, balanced, fit_logistic

MIN_GOOD: Final = 3
"""With fewer good images nothing says in which ways they vary. Training takes one more: calibration leaves one out."""
TOO_FEW: Final = f"fewer than {MIN_GOOD + 1} good images cannot tell a defect from how good parts vary"
STRENGTH: Final = 25.0
"""Of the logistic regression; 10 and 60 gave the same image AUROC within .001."""
_SPREAD = 0.05  # least standard deviation of log scores, and of log lengths
_LEAST = 1e-4  # deviation of any other dimension: good images may all but equal each other
_PRIOR = 2.0  # good images that a block's mean variance counts for in each of its dimensions
_LENGTHS = 0.5  # weight of the lengths among the five blocks
_SHRINK = 5.0  # n defects get n / (n + 5) of the full weight; with n / (n + 2) two or three cost up to .035
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_AS_GOOD = 0.002  # a smaller weight is taken when it tells apart so nearly as many pairs
_DOUBT = 0.25  # standard errors that the gain must exceed; with .5 and 1 a draw of magnetic tile got none, and lost .07
_DOUBTED = 5  # one in so many defects may be taken for mislabelled
_GROUPS = 10  # good images, and defects, are left out in so many groups at most


@dataclass(frozen=True, slots=True)
class Described:
    """Images that a bank without them has judged.

    Attributes:
        log_scores: (N,).
        descriptions: (N, F), see `inspectad.nn.defect_head.describe`.
    """

    log_scores: Floats
    descriptions: Floats


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came out.

    Attributes:
        head: None where the defects get no say.
        weight: of the head, 0 to 1.
        why: for people.
        map_why: of the map's own part, for people.
    """

    head: DefectHead | None
    weight: float
    why: str
    map_why: str = ""


def learn(
    good: Described, defects: Described, levels: int, good_places: Sequence[Places], masked: Sequence[Places | None]
) -> Learnt:
    """The head of these images.

    Args:
        good: at least `MIN_GOOD`; defects: at least one.
        levels: of the bank.
        good_places, masked: places of the good images, and of the defects (None of one without a mask); with no mask
            the map follows the score's head.
    """
    weight, trusted, why = _choose_weight(good, defects, levels)
    scaling = _Scaling.of(good.descriptions, levels)
    dimensions = (good.descriptions.shape[1] - levels) // 4
    head = DefectHead(dimensions, levels)
    patch = np.zeros(2 * dimensions)
    if weight:
        examples = np.concatenate([scaling.apply(good.descriptions), scaling.apply(defects.descriptions[trusted])])
        is_defect = np.arange(len(examples)) >= len(good.log_scores)
        found = fit_logistic(examples, balanced(is_defect), is_defect, STRENGTH)[:-1] / scaling.scale
        found *= weight * _spread(good.log_scores)
        head.centre.copy_(torch.from_numpy(scaling.centre))
        head.weight.copy_(torch.from_numpy(found))
        patch = found[2 * dimensions : 4 * dimensions]
    believed = [places for places, is_trusted in zip(masked, trusted, strict=True) if places and is_trusted]
    if believed:
        map_why = learn_map(head, good_places, believed, _full_weight(len(believed)))
    elif weight:
        map_why = "as the score's head, none of them has a mask"
        scale = weight * _spread(good.log_scores)  # so that the limit of a logit is one of a logit
        set_patch(head, scale, patch / scale, -float(patch @ scaling.centre[2 * dimensions : 4 * dimensions]) / scale)
    else:
        map_why = ""
    changes_nothing = not weight and not float(head.patch_scale if believed else 0)
    return Learnt(None if changes_nothing else head, weight, why, map_why)


def _spread(log_scores: Floats) -> float:
    """How much log scores of good images vary: the unit of the head's logits."""
    return max(float(log_scores.std()), _SPREAD)


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Every block of a description weighs the same, and every dimension as good images vary in it."""

    centre: Floats
    scale: Floats

    @staticmethod
    def of(good: Floats, levels: int) -> "_Scaling":
        dimensions = (good.shape[1] - levels) // 4
        centre, scale = good.mean(axis=0), np.empty(good.shape[1])
        for begin in range(0, good.shape[1], dimensions):
            block = slice(begin, min(begin + dimensions, good.shape[1]))
            is_lengths = begin == 4 * dimensions
            variance = good[:, block].var(axis=0)
            shrunk = (len(good) * variance + _PRIOR * variance.mean()) / (len(good) + _PRIOR)
            deviation = np.maximum(np.sqrt(shrunk), _SPREAD if is_lengths else _LEAST)
            scale[block] = deviation * math.sqrt(len(variance)) / (_LENGTHS if is_lengths else 1.0)
        return _Scaling(centre, scale)

    def apply(self, descriptions: Floats) -> Floats:
        return (descriptions - self.centre) / self.scale


def _choose_weight(good: Described, defects: Described, levels: int) -> tuple[float, npt.NDArray[np.bool_], str]:
    """The weight, which defects to believe (N,), and why."""
    count = len(defects.log_scores)
    trusted = np.ones(count, bool)
    if count == 1:
        return _full_weight(1), trusted, "one defect cannot be checked, so its weight is small"
    alone, heads = left_out_margins(good, defects, levels)
    trusted = _believe(_told_apart(alone).mean(axis=1), (heads > 0).mean(axis=1))
    believed = int(trusted.sum())
    aside = f"; {count - believed} of {count} defects look good and have no say" if believed < count else ""
    if believed < 2:
        return 0.0, trusted, f"too few defects that do not look good{aside}"
    if aside:
        known = Described(defects.log_scores[trusted], defects.descriptions[trusted])
        alone, heads = left_out_margins(good, known, levels)
    full = _full_weight(believed)
    shares = np.stack([_told_apart(alone + step * full * heads).mean(axis=1) for step in _STEPS])
    means = shares.mean(axis=1)
    chosen = next(i for i, mean in enumerate(means) if mean >= means.max() - _AS_GOOD)
    gains = shares[chosen] - shares[0]
    if gains.mean() <= _DOUBT * gains.std(ddof=1) / math.sqrt(believed):  # it may be chance
        chosen = 0
    with_them = f"{means[chosen]:.1%}" if chosen else f"at best {means.max():.1%}"
    why = f"of left-out pairs the bank alone tells apart {means[0]:.1%}, with the defects {with_them}{aside}"
    return _STEPS[chosen] * full, trusted, why


def _believe(by_bank: Floats, by_heads: Floats) -> npt.NDArray[np.bool_]:
    """All but those that neither the bank nor a head without them finds worse than a good image: likely mislabelled.

    At most a fifth are doubted, those that look best: measured with all of them, hard defects were lost that others of
    their kind are found by (magnetic tile, 10 defects: .05 of image AUROC).

    Args: (M,) shares of the good images that each defect is told apart from.
    """
    doubted = np.flatnonzero((by_bank < 0.5) & (by_heads < 0.5))
    worst = doubted[np.argsort((by_bank + by_heads)[doubted], kind="stable")][: len(by_bank) // _DOUBTED]
    return ~np.isin(np.arange(len(by_bank)), worst)


def _full_weight(defects: int) -> float:
    """The most that so many defects may weigh."""
    return defects / (defects + _SHRINK)


def _told_apart(margins: Floats) -> Floats:
    """Chance that a defect scores above a good image, were both scores uncertain by half the good images' variance."""
    from scipy.stats import norm

    return np.asarray(norm.cdf(margins), np.float64)


def left_out_margins(good: Described, defects: Described, levels: int) -> tuple[Floats, Floats]:
    """By how much each defect is above each good image for the bank, and for heads that know neither: (M, N) each.

    The bank's margins are log scores over their spread, the heads' are logits.

    Args: N good images, at least 2; M defects, at least 2.
    """
    images, bad = len(good.log_scores), len(defects.log_scores)
    is_defect = np.arange(images + bad) >= images
    good_groups, defect_groups = groups_of(images, _GROUPS), groups_of(bad, _GROUPS)
    alone, heads = np.empty((bad, images)), np.empty((bad, images))
    for g in range(good_groups[-1] + 1):
        members = np.flatnonzero(good_groups == g)
        # How good images vary is read off the others as well, or the left-out one would look too usual.
        scaling = _Scaling.of(good.descriptions[good_groups != g], levels)
        spread = _spread(good.log_scores[good_groups != g])
        examples = scaling.apply(np.concatenate([good.descriptions, defects.descriptions]))
        # In the span of the examples everything is as it was, in few dimensions.
        left, lengths, _ = np.linalg.svd(examples - examples.mean(axis=0), full_matrices=False)
        reduced = left * lengths
        alone[:, members] = (defects.log_scores[:, None] - good.log_scores[members][None]) / spread
        for d in range(defect_groups[-1] + 1):
            kept = np.concatenate([good_groups != g, defect_groups != d])
            found = fit_logistic(reduced[kept], balanced(is_defect[kept]), is_defect[kept], STRENGTH)
            logits = reduced @ found[:-1]
            out = np.flatnonzero(defect_groups == d)
            heads[np.ix_(out, members)] = logits[images + out][:, None] - logits[members][None]
    return alone, heads
