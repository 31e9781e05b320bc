"""What a few labelled defects add to a memory bank: how anomalous an image is, given what its anomaly looks like.

A bank says how far a patch is from all good ones, not in which direction. The residual, patch minus its nearest good
patch, is that direction; a linear head on residuals can tell the directions of known defects from those in which good
images vary. Distances to known defects themselves make a bank worse (Wang et al., "Normal-Abnormal Guided Generalist
Anomaly Detection", 2025: naive sum of good and defect distances), since a good patch can be near to a defect's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.patches import SAME
from inspectad.nn.smoothing import GaussianBlur, enlarge

LIMIT = 1.0
"""The head can move a log score or a log map value by no more."""
PATCH_LIMIT = 6.0  # of the logit of a patch, either way


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a bank found in a batch of images.

    Attributes:
        patches: of each level (B, h, w, D), normalised.
        residuals: patch minus its nearest good patch, of the same shapes.
        anomaly_map: (B, 1, H, W) at the first level's size.
        score: (B,) mean of the highest values of the map.
        top: (B, 1, H, W) weights of the places where the map is highest, see `weigh_top`.
    """

    patches: Sequence[Tensor]
    residuals: Sequence[Tensor]
    anomaly_map: Tensor
    score: Tensor
    top: Tensor


BLOCKS = ("mean patch", "mean residual", "mean residual at the top", "mean size of the residuals at the top", "lengths")
"""Parts of a description, in this order; each but the last has the dimensions of all levels together."""


def describe(evidence: Evidence) -> Tensor:
    """What an image looks like, and what in it is unexplained: (B, 4 * dimensions of all levels + levels).

    The mean patch is for defects that show all over the image. "At the top": where the bank's map is highest. The
    lengths are the logs of the length of each level's mean residual at the top: noise cancels in it, a defect does not.
    """
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for patches, residuals in zip(evidence.patches, evidence.residuals, strict=True):
        weights = top_weights(evidence.top, residuals)
        at_top = (weights * residuals).sum(dim=(1, 2))
        parts[0].append(patches.mean(dim=(1, 2)))
        parts[1].append(residuals.mean(dim=(1, 2)))
        parts[2].append(at_top)
        parts[3].append((weights * residuals.abs()).sum(dim=(1, 2)))
        parts[4].append(at_top.square().sum(dim=1, keepdim=True).add(SAME**2).sqrt().log())
    return torch.cat([x for block in parts for x in block], dim=1)


def weigh_top(anomaly_map: Tensor, highest: Tensor) -> Tensor:
    """Weights of a map's highest places, which add up to about 1: even for the first half, from there falling to 0.

    A sharp edge would make the description jump where rounding decides which of two places is in. Where the map is
    flat within `SAME` no place is higher than others, and the weights add up to less.

    Args: anomaly_map (B, 1, H, W); highest (B, 2 k), its highest values in descending order.
    """
    half = max(1, highest.shape[1] // 2)
    edge, last = highest[:, half - 1].view(-1, 1, 1, 1), highest[:, -1].view(-1, 1, 1, 1)
    weights = ((anomaly_map - last) / (edge - last + SAME)).clamp(0, 1)
    return weights / weights.sum(dim=(2, 3), keepdim=True).clamp_min(float(half))


def top_weights(top: Tensor, level: Tensor) -> Tensor:
    """The weights of `weigh_top` at a level's own stride: (B, h, w, 1), of the same sum.

    Args: top (B, 1, H, W); level (B, h, w, D) with H, W multiples of h, w.
    """
    height, width = top.shape[2] // level.shape[1], top.shape[3] // level.shape[2]
    pooled = F.avg_pool2d(top, (height, width)) * (height * width) if height * width > 1 else top
    return pooled.permute(0, 2, 3, 1)


class DefectHead(nn.Module):
    """Linear in the description for the score, in each patch's residual and its size for the map.

    The map is not multiplied by what raises the score: measured on four sets, that costs AUPRO up to .035, since it
    drowns small defects in images that look harmless as a whole.
    """

    centre: Tensor
    weight: Tensor
    patch_weight: Tensor
    patch_scale: Tensor
    patch_bias: Tensor

    def __init__(self, dimensions: int, levels: int) -> None:
        """All zero: it changes nothing.

        Attributes (buffers; F is the length of a description, D the dimensions of all levels):
            centre: (F,) the mean description of good images.
            weight: (F,) of the description, for the log score.
            patch_weight: (2 D,) of a place's residuals and of their sizes, for its logit.
            patch_bias: of that logit.
            patch_scale: from logit to log map.

        Args: dimensions of all levels together; how many levels.
        """
        super().__init__()
        length = 4 * dimensions + levels
        self.register_buffer("centre", torch.zeros(length))
        self.register_buffer("weight", torch.zeros(length))
        self.register_buffer("patch_weight", torch.zeros(2 * dimensions))
        self.register_buffer("patch_scale", torch.ones(()))
        self.register_buffer("patch_bias", torch.zeros(()))

    def forward(self, evidence: Evidence, blur: GaussianBlur) -> tuple[Tensor, Tensor]:
        """By which factors score (B,) and map (B, 1, H, W) grow; between exp(-LIMIT) and exp(LIMIT)."""
        of_score = (describe(evidence) - self.centre) @ self.weight
        of_map = self.patch_scale * blur(self._logits(evidence))
        return of_score.clamp(-LIMIT, LIMIT).exp(), of_map.clamp(-LIMIT, LIMIT).exp()

    def _logits(self, evidence: Evidence) -> Tensor:
        """How much each place looks like a known defect: (B, 1, H, W)."""
        size = (evidence.top.shape[2], evidence.top.shape[3])
        half = len(self.patch_weight) // 2
        signed, sized = self.patch_weight[:half], self.patch_weight[half:]
        total = self.patch_bias.view(1, 1, 1, 1)
        begin = 0
        for residuals in evidence.residuals:
            end = begin + residuals.shape[-1]
            logits = residuals @ signed[begin:end] + residuals.abs() @ sized[begin:end]
            total = total + enlarge(logits.unsqueeze(1), size)
            begin = end
        return total.clamp(-PATCH_LIMIT, PATCH_LIMIT)


def patch_rows(evidence: Evidence, places: Tensor) -> Tensor:
    """Residuals and their sizes at places of the map, as the map's part of the head sees them: (N, 2 * dimensions).

    Coarser levels are repeated, not interpolated: it is the patches themselves that are learnt from.

    Args: evidence of one image; places (N,) indices into its flattened map.
    """
    height, width = evidence.top.shape[2:]
    y, x = places // width, places % width
    levels = [r[0, y * r.shape[1] // height, x * r.shape[2] // width] for r in evidence.residuals]
    rows = torch.cat(levels, dim=1)
    return torch.cat([rows, rows.abs()], dim=1)
