"""The map's part of a `DefectHead`, learnt from masks: which places of a defect are defective. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from inspectad.calibration import groups_of
from inspectad.metrics import auroc
from inspectad.nn.defect_head import PATCH_LIMIT, DefectHead
from inspectad.nn.logistic import Floats, balanced, fit_logistic

MAP_STRENGTH: Final = 1000.0
"""Of the logistic regression of places; 30 taught the map a third as much."""
MAP_SCALE: Final = 0.1
"""From logits to logs of the map, times n / (n + 5) with n masks: .03, .1 and .2 raised AUPRO on four sets."""
_GROUPS = 5  # masks, and good images, are left out in so many groups
_WORSE = 0.01  # masks are not believed if they cost more; places are few and hard, so it is a rough measure
_MASK_ROWS = 24  # places of each kind that a masked defect teaches
_GOOD_ROWS = 768  # places that all good images together teach
_HALF = 0.5  # share of a place that is covered by a mask to count as defective

Indices = npt.NDArray[np.int64]


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


def choose_good(log_map: Floats, images: int, rng: np.random.Generator) -> Indices:
    """Places of a good image to learn from: a third where the bank is most mistaken, the others anywhere.

    Args: log_map (P,); images that teach.
    """
    count = max(6, _GOOD_ROWS // images)
    anywhere = rng.choice(len(log_map), min(count, len(log_map)), replace=False)
    return np.unique(np.append(np.argsort(-log_map)[: count // 3], anywhere))


def choose_defect(log_map: Floats, covered: Floats, rng: np.random.Generator) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Places of a defect and of the good parts around it, and which are defective.

    Args: covered (P,) share of each place that the mask covers; one at least is not 0.
    """
    inside = np.flatnonzero(covered >= min(_HALF, covered.max()))
    outside = np.flatnonzero(covered == 0)
    nearly = outside[np.argsort(-log_map[outside])[: _MASK_ROWS // 2]]
    marked = _some(inside, _MASK_ROWS, rng)
    chosen = np.append(marked, np.unique(np.append(nearly, _some(outside, _MASK_ROWS // 2, rng))))
    return chosen, np.arange(len(chosen)) < len(marked)


def _some(indices: Indices, count: int, rng: np.random.Generator) -> Indices:
    return indices if len(indices) <= count else rng.choice(indices, count, replace=False)


def learn_map(head: DefectHead, good: Sequence[Places], defects: Sequence[Places], share: float) -> str:
    """Fit the map's part of the head.

    Args: share of `MAP_SCALE` that so many masks may weigh.
    Returns: why it is as strong as it is.
    """
    scale, why = share * MAP_SCALE, "one mask cannot be checked"
    if len(defects) > 1:
        alone, taught = _left_out_masks(good, defects, scale)
        why = f"left-out masks against hard places: pixel AUROC {alone:.3f} by the bank alone, {taught:.3f} with masks"
        scale = 0.0 if taught < alone - _WORSE else scale
    weights, bias = _fit_places(good, defects)
    set_patch(head, scale, weights, bias)
    return f"from {len(defects)} masks, weight {scale / MAP_SCALE:.2f}; {why}"


def set_patch(head: DefectHead, scale: float, weights: Floats, bias: float) -> None:
    """Put the map's part into a head. Args: scale from logit to log map; weights (2 D,) and bias of a place's logit."""
    head.patch_weight.copy_(torch.from_numpy(weights))
    head.patch_scale.copy_(torch.tensor(scale))
    head.patch_bias.copy_(torch.tensor(bias))


def _left_out_masks(good: Sequence[Places], defects: Sequence[Places], scale: float) -> tuple[float, float]:
    """Mean pixel AUROC over masked defects, by the bank alone and with a map that knows neither them nor the good
    places that they are compared with."""
    count = min(_GROUPS, len(defects), len(good))
    good_groups, groups = (groups_of(len(side), count) for side in (good, defects))
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


def _of(places: Sequence[Places], chosen: npt.NDArray[np.bool_]) -> list[Places]:
    return [p for p, is_chosen in zip(places, chosen, strict=True) if is_chosen]


def _fit_places(good: Sequence[Places], defects: Sequence[Places]) -> tuple[Floats, float]:
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
