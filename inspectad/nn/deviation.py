"""Deviation learning: how far an image's score lies from those of imaginary normal ones, and where in it. Pure.

Source: Pang, Shen & van den Hengel, "Deep Anomaly Detection with Deviation Networks" (KDD 2019), and for images Pang,
Ding, Shen & van den Hengel, "Explainable Deep Few-shot Anomaly Detection with Deviation Networks" (arXiv 2108.00462,
2021). Scores of normal images are taken for draws from N(0, 1): good images are pulled to its mean from either side,
defects are pushed at least `MARGIN` of its standard deviations above it.
"""

from typing import Final

import torch
from torch import Tensor

MARGIN: Final = 5.0
"""The paper's a: defects are to lie so many standard deviations above the mean of the prior, or higher. A normal draw
lies so far away, on either side, with probability 5.7e-7."""
REFERENCES: Final = 5000
"""Draws from the prior at each step, whose mean and deviation the scores are measured by."""
TOP_SHARE: Final = 0.1
"""Share of an image's patches whose mean is its score."""


def draw_reference(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `REFERENCES` fresh draws from N(0, 1): two scalars, on the CPU."""
    draws = torch.randn(REFERENCES, generator=generator)
    return draws.mean(), draws.std()


def deviation_loss(scores: Tensor, is_defect: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Mean of |dev| over good images and max(0, `MARGIN` - dev) over defects, with dev = (score - mean) / std.

    An unlabelled image counts as good.

    Args: scores (B,) float; is_defect (B,) bool, or numbers 0 and 1; mean, std of the reference.
    Returns: a scalar, at least 0.
    """
    deviation = (scores - mean) / std
    return torch.where(is_defect.bool(), (MARGIN - deviation).clamp_min(0), deviation.abs()).mean()


def top_count(patches: int) -> int:
    """How many of an image's patches make its score: a tenth of them rounded down, at least one."""
    return max(patches // round(1 / TOP_SHARE), 1)


def patch_anomaly(patch_scores: Tensor, *, abs_topk: bool) -> Tensor:
    """What patches are ranked and shown by: never negative.

    Args:
        patch_scores: any shape, unbounded.
        abs_topk: True for |score|, as the released code has it: a strongly negative patch is as anomalous as a strongly
            positive one. False for the signed score, as others read the paper's equation 6; negative ones count 0.
    """
    return patch_scores.abs() if abs_topk else patch_scores.clamp_min(0)


def top_mean(values: Tensor) -> Tensor:
    """Multiple-instance pooling: the mean of the `top_count` largest of an image's patches.

    Args: values (B, 1, h, w). Returns: (B,).
    """
    flat = values.flatten(1)
    return flat.topk(top_count(flat.shape[1]), dim=1).values.mean(dim=1)
