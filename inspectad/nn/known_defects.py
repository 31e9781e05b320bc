"""How much the known defects may say, and what: from descriptions of good images and defects to a `DefectHead`. Pure.

The weight of the head is chosen by pairs of a good image and a defect that it has not seen (nested leave-one-out), it
shrinks with few defects, and it is exactly 0 where the bank alone tells the pairs apart as well.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from inspectad.metrics import auroc
from inspectad.nn.defect_head import PATCH_LIMIT, DefectHead
from inspectad.nn.logistic import Floats, balanced, fit_logistic

MIN_GOOD: Final = 3
"""With fewer good images nothing says in which ways they vary."""
STRENGTH: Final = 25.0
"""Of the logistic regression; 10 and 60 gave the same image AUROC within .001."""
_SPREAD = 0.05  # least standard deviation of log scores, and of log lengths
_PRIOR = 2.0  # good images that a block's mean variance counts for in each of its dimensions
_LENGTHS = 0.5  # weight of the lengths among the five blocks
_SHRINK = 5.0  # n defects get n / (n + 5) of the full weight; with n / (n + 2) two or three cost up to .035
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_AS_GOOD = 0.002  # a smaller weight is taken when it tells apart so nearly as many pairs
_GROUPS = 16  # good images, and defects, are left out in so many groups at most
MAP_STRENGTH: Final = 1000.0
_MAP_SCALE = 0.1
_MAP_GROUPS = 5
_MAP_WORSE = 0.01  # masks are not believed if they cost more; places are few and hard, so it is a rough measure
_MASK_ROWS = 24  # places of each kind that a masked defect teaches
_GOOD_ROWS = 768  # places that all good images together teach


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
class Places:
    """Places of one image.

    Attributes:
        rows: (P, 2 * D) of `inspectad.nn.defect_head.patch_rows`.
        log_map: (P,) logs of the bank's map there.
        is_defect: (P,).
    """

    rows: Floats
    log_map: Floats
    is_defect: npt.NDArray[np.bool_]


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


def learn(good: Described, defects: Described, levels: int, places: tuple[list[Places], list[Places]]) -> Learnt:
    """The head of these images.

    Args:
        levels: of the bank.
        places: of good images and of the defects with masks; without these the map follows the score's head.
    """
    if not len(defects.log_scores):
        return Learnt(None, 0.0, "no defects")
    if len(good.log_scores) < MIN_GOOD:
        return Learnt(None, 0.0, f"fewer than {MIN_GOOD} good images cannot tell a defect from how good parts vary")
    scaling = _Scaling.of(good.descriptions, levels)
    spread = max(float(good.log_scores.std()), _SPREAD)
    weight, trusted, why = _choose_weight(good, defects, scaling, spread)
    if not weight:
        return Learnt(None, 0.0, why)
    examples = np.concatenate([scaling.apply(good.descriptions), scaling.apply(defects.descriptions[trusted])])
    is_defect = np.arange(len(examples)) >= len(good.log_scores)
    found = fit_logistic(examples, balanced(is_defect), is_defect, STRENGTH)[:-1] / scaling.scale
    dimensions = (len(found) - levels) // 4
    head = DefectHead(dimensions, levels)
    head.centre.copy_(torch.from_numpy(scaling.centre))
    head.weight.copy_(torch.from_numpy(weight * spread * found))
    patch = (found[2 * dimensions : 4 * dimensions], scaling.centre[2 * dimensions : 4 * dimensions])
    if places[1]:
        map_why = _learn_map(head, *places)
    else:
        map_why = "as the score's head, without masks"
        _set_patch(head, weight * spread, patch[0], -float(patch[0] @ patch[1]))
    return Learnt(head, weight, why, map_why)


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
            deviation = np.maximum(np.sqrt(shrunk), _SPREAD) if is_lengths else np.sqrt(shrunk) + 1e-6
            scale[block] = deviation * math.sqrt(len(variance)) / (_LENGTHS if is_lengths else 1.0)
        return _Scaling(centre, scale)

    def apply(self, descriptions: Floats) -> Floats:
        return (descriptions - self.centre) / self.scale


def _choose_weight(
    good: Described, defects: Described, scaling: _Scaling, spread: float
) -> tuple[float, npt.NDArray[np.bool_], str]:
    """The weight, which defects to believe (N,), and why."""
    count = len(defects.log_scores)
    trusted = np.ones(count, bool)
    if count == 1:
        return _full_weight(1), trusted, "one defect cannot be checked, so its weight is small"
    examples = (scaling.apply(good.descriptions), scaling.apply(defects.descriptions))
    alone = (defects.log_scores[:, None] - good.log_scores[None]) / spread
    heads = left_out_margins(*examples)
    # Neither the bank nor a head that does not know it finds it worse than a good image: likely mislabelled.
    trusted = (_told_apart(alone).mean(axis=1) >= 0.5) | ((heads > 0).mean(axis=1) >= 0.5)
    believed = int(trusted.sum())
    aside = f"; {count - believed} of {count} defects look good and have no say" if believed < count else ""
    if believed < 2:
        return 0.0, trusted, f"too few defects that look like any{aside}"
    if aside:
        heads[trusted] = left_out_margins(examples[0], examples[1][trusted])
    full = _full_weight(believed)
    shares = [_told_apart((alone + step * full * heads)[trusted]).mean() for step in _STEPS]
    chosen = next(i for i, share in enumerate(shares) if share >= max(shares) - _AS_GOOD)
    with_them = f"{shares[chosen]:.1%}" if chosen else f"at best {max(shares):.1%}"
    why = f"of left-out pairs the bank alone tells apart {shares[0]:.1%}, with the defects {with_them}{aside}"
    return _STEPS[chosen] * full, trusted, why


def _full_weight(defects: int) -> float:
    """The most that so many defects may weigh."""
    return defects / (defects + _SHRINK)


def _told_apart(margins: Floats) -> Floats:
    """Chance that a defect scores above a good image, were both scores uncertain by half the good images' variance."""
    from scipy.stats import norm

    return np.asarray(norm.cdf(margins), np.float64)


def left_out_margins(good: Floats, defects: Floats) -> Floats:
    """Logit of each defect minus that of each good image, by heads that knew neither: (M, N).

    Args: good (N, F), defects (M, F) with M of at least 2, scaled.
    """
    examples = np.concatenate([good, defects])
    # In the span of the examples everything is as it was, in few dimensions.
    left, lengths, _ = np.linalg.svd(examples - examples.mean(axis=0), full_matrices=False)
    reduced = left * lengths
    is_defect = np.arange(len(examples)) >= len(good)
    good_groups = np.arange(len(good)) * min(_GROUPS, len(good)) // len(good)
    defect_groups = np.arange(len(defects)) * min(_GROUPS, len(defects)) // len(defects)
    margins = np.empty((len(defects), len(good)))
    for d in range(defect_groups[-1] + 1):
        for g in range(good_groups[-1] + 1):
            kept = np.concatenate([good_groups != g, defect_groups != d])
            found = fit_logistic(reduced[kept], balanced(is_defect[kept]), is_defect[kept], STRENGTH)
            logits = reduced @ found[:-1]
            out = (np.flatnonzero(defect_groups == d), np.flatnonzero(good_groups == g))
            margins[np.ix_(*out)] = logits[len(good) + out[0]][:, None] - logits[out[1]][None]
    return margins


def _set_patch(head: DefectHead, scale: float, weights: Floats, bias: float) -> None:
    head.patch_weight.copy_(torch.from_numpy(weights))
    head.patch_scale.copy_(torch.tensor(scale))
    head.patch_bias.copy_(torch.tensor(bias))


def sample_good(rows: Floats, log_map: Floats, images: int, rng: np.random.Generator) -> Places:
    """Places of a good image: a third where the bank is most mistaken, the others anywhere. Args: rows (P, 2 D)."""
    count = max(6, _GOOD_ROWS // images)
    chosen = np.unique(np.append(np.argsort(-log_map)[: count // 3], rng.choice(len(rows), min(count, len(rows)))))
    return Places(rows[chosen], log_map[chosen], np.zeros(len(chosen), bool))


def sample_defect(rows: Floats, log_map: Floats, covered: Floats, rng: np.random.Generator) -> Places:
    """Places of a defect and of the good parts around it.

    Args: covered (P,) share of each place that the mask covers; one at least is not 0.
    """
    inside = np.flatnonzero(covered >= min(0.5, covered.max()))
    outside = np.flatnonzero(covered == 0)
    nearly = outside[np.argsort(-log_map[outside])[: _MASK_ROWS // 2]]
    chosen = [_some(inside, _MASK_ROWS, rng), np.unique(np.append(nearly, _some(outside, _MASK_ROWS // 2, rng)))]
    places = np.concatenate(chosen)
    return Places(rows[places], log_map[places], np.arange(len(places)) < len(chosen[0]))


def _some(indices: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return indices if len(indices) <= count else rng.choice(indices, count, replace=False)


def _learn_map(head: DefectHead, good: list[Places], defects: list[Places]) -> str:
    """Fit the map's own part to masks. Returns: why it is as strong as it is."""
    scale = _MAP_SCALE * _full_weight(len(defects))
    why = "one mask cannot be checked"
    if len(defects) > 1:
        alone, taught = _left_out_masks(good, defects, scale)
        why = f"left-out masks against hard places: pixel AUROC {alone:.3f} by the bank alone, {taught:.3f} with masks"
        scale = 0.0 if taught < alone - _MAP_WORSE else scale
    weights, bias = _fit_places(good, defects)
    _set_patch(head, scale, weights, bias)
    return f"from {len(defects)} masks, weight {scale / _MAP_SCALE:.2f}; {why}"


def _left_out_masks(good: list[Places], defects: list[Places], scale: float) -> tuple[float, float]:
    """Mean pixel AUROC over masked defects, by the bank alone and with a map that knows neither them nor the good
    places that they are compared with."""
    count = min(_MAP_GROUPS, len(defects), len(good))
    good_groups, groups = (np.arange(len(side)) * count // len(side) for side in (good, defects))
    found: list[tuple[float, float]] = []
    for group in range(count):
        weights, bias = _fit_places(_of(good, good_groups != group), _of(defects, groups != group))
        for defect in _of(defects, groups == group):
            seen = [defect, *_of(good, good_groups == group)]
            is_defect = np.concatenate([p.is_defect for p in seen])
            log_map = np.concatenate([p.log_map for p in seen])
            logits = np.clip(np.concatenate([p.rows for p in seen]) @ weights + bias, -PATCH_LIMIT, PATCH_LIMIT)
            values = (log_map, log_map + scale * logits)
            alone, taught = (auroc(v[~is_defect], v[is_defect]) for v in values)
            found.append((alone, taught))
    means = np.array(found).mean(axis=0)
    return float(means[0]), float(means[1])


def _of(places: list[Places], chosen: npt.NDArray[np.bool_]) -> list[Places]:
    return [p for p, is_chosen in zip(places, chosen, strict=True) if is_chosen]


def _fit_places(good: list[Places], defects: list[Places]) -> tuple[Floats, float]:
    """Weights (2 D,) and bias of a place's logit; every defect weighs the same, however large it is."""
    rows = np.concatenate([p.rows for p in (*good, *defects)])
    is_defect = np.concatenate([p.is_defect for p in (*good, *defects)])
    shares = np.concatenate([np.where(p.is_defect, 1 / max(p.is_defect.sum(), 1), 1.0) for p in (*good, *defects)])
    shares = balanced(is_defect, shares) * 2 / len(is_defect)  # each kind weighs 1, as `MAP_STRENGTH` was measured
    centre = np.average(rows, axis=0, weights=shares)
    scale = np.sqrt(np.average((rows - centre) ** 2, axis=0, weights=shares)) + 1e-6
    scale *= math.sqrt(rows.shape[1])
    found = fit_logistic((rows - centre) / scale, shares, is_defect, MAP_STRENGTH)
    weights = found[:-1] / scale
    return weights, float(found[-1] - weights @ centre)
