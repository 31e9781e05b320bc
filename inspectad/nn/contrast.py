"""The losses of stage 1 of AnoMem: contrast between views through the memory, and spread of what it retrieves. Pure.

Source: Jézéquel et al., AnoMem (arXiv 2211.09041). NT-Xent (Chen et al., SimCLR, ICML 2020) is the objective, as its
reviews have it; the variance term is that of VICReg (Bardes, Ponce & LeCun, ICLR 2022), as third-party notes have it.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE: Final = 0.1
EPSILON: Final = 1e-4


def nt_xent(vectors: Tensor, targets: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Normalised temperature-scaled cross-entropy of each vector with the target of its other view.

    Item k of the first half and item k of the second are two views of one thing; an item's own target is left out.

    Args: vectors z, targets h: each (2B, d), unit vectors.
    Returns: scalar, -1/2B sum_k log(exp(z_k.h_k'/t) / sum_{i != k} exp(z_k.h_i/t)), k' the other view of k.
    """
    count = len(vectors)
    logits = vectors @ targets.T / temperature
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=logits.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(count, device=logits.device).roll(count // 2))


def variance_loss(vectors: Tensor, target: float | None = None) -> Tensor:
    """How far the standard deviation of each dimension falls short of a target, on average.

    Args: vectors (M, d), M >= 1; target: None for 1 / sqrt(d), what unit vectors spread over the sphere have.
    Returns: scalar, 1/d sum_j max(0, target - sqrt(var_j + `EPSILON`)).
    """
    wanted = 1 / math.sqrt(vectors.shape[1]) if target is None else target
    return (wanted - (vectors.var(dim=0, correction=0) + EPSILON).sqrt()).clamp_min(0).mean()
