"""Patch vectors: normalised softly, compared by Euclidean distance. Pure."""

import torch
from torch import Tensor

NORM_COLUMNS = 4
"""A bank vector's squared length is shared by so many columns, since 8 bits (`export`) could not hold it in one."""
_GROUP = 32  # bank vectors
SAME = 0.003  # patches that are nearer than this are the same; normal ones are .1 to 1 apart


def soft_normalise(vectors: Tensor, offset: Tensor) -> Tensor:
    """Patch vectors whose length says little: x / (|x| + offset).

    With offset 0 this is L2 normalisation, which makes the noise of empty background as loud as the part.

    Args: vectors (B, D, h, w); offset: a scalar. Returns: (B, h, w, D).
    """
    length = vectors.square().sum(dim=1, keepdim=True).add(1e-12).sqrt()
    return (vectors / (length + offset)).permute(0, 2, 3, 1)


def nearest_residual(patches: Tensor, bank: Tensor) -> Tensor:
    """Each patch minus its nearest bank vector: (N, D). Args: patches (N, D), bank (M, D)."""
    missing = -len(bank) % _GROUP
    filled = torch.cat([bank, bank[:1].expand(missing, -1)]) if missing else bank
    return patches - filled[_nearest(patches, filled)]


def _nearest(patches: Tensor, bank: Tensor) -> Tensor:
    """Index of the nearest bank vector, the first of equals: (N,). Args: bank (M, D), M a multiple of `_GROUP`.

    The nearest is the one of the highest x b - |b|^2 / 2. The second term is part of the product, as further columns,
    and the highest is looked for among the maxima of groups before it is within its group: runtimes find a maximum
    several times faster than where it lies, and each pass over N x M numbers counts (the search takes half the time).
    """
    norms = bank.square().sum(dim=1, keepdim=True) * (-0.5 / NORM_COLUMNS)
    keys = torch.cat([bank, norms.expand(-1, NORM_COLUMNS)], dim=1)
    ones = torch.ones_like(patches[:, :1]).expand(-1, NORM_COLUMNS)
    similarity = (torch.cat([patches, ones], dim=1) @ keys.T).view(-1, len(bank) // _GROUP, _GROUP)
    group = similarity.amax(dim=2).argmax(dim=1)
    within = similarity.gather(1, group.view(-1, 1, 1).expand(-1, 1, _GROUP)).squeeze(1).argmax(dim=1)
    return group * _GROUP + within


def length(residuals: Tensor) -> Tensor:
    """Distances of patches from their residuals (N, D): (N,), at least `SAME`.

    The nearest is found by matrix product; its distance is then taken from the difference, since the expanded
    form |x|^2 - 2xb + |b|^2 loses all digits where a patch almost equals its neighbour. Below `SAME` it is rounding
    that decides which of several near neighbours is found, differently on every machine: those count as equally near.
    """
    return residuals.square().sum(dim=-1).clamp_min(SAME**2).sqrt()


def nearest_distance(patches: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of each patch to its nearest bank vector: (N,). Args: patches (N, D), bank (M, D)."""
    return length(nearest_residual(patches, bank))
