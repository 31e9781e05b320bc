"""A memory of normal prototypes that is read by association: one step of a modern Hopfield network.

Source: Jézéquel, Vu, Beaudet & Histace, "AnoMem" (arXiv 2211.09041; IEEE TIP 35, 2026): per-scale memories of normal
prototypes, learnt with the encoder (verified in the abstracts); modern Hopfield retrieval with learnable stored
patterns (from a third party's notes and from reviews), after Ramsauer et al., "Hopfield Networks is All You Need"
(ICLR 2021). Our default: unit vectors, no projections inside the memory, `beta_of`; the library's 1 / sqrt(d) retrieves
all but the mean prototype from unit vectors.
"""

import math
import warnings
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PROTOTYPES: Final = 256
"""Of a scale: a few hundred, as recalled."""
PATCHES_EACH: Final = 4
"""Training patches that a prototype stands for at least; with fewer patches there are fewer prototypes."""
MOST_CLUSTERED: Final = 16384
"""Vectors that k-means sees at most."""
_ROUNDS: Final = 20  # of k-means
_SETTLING: Final = 200  # steps
_SETTLED_AT_A_TIME: Final = 2048
_SETTLING_RATE: Final = 1e-3


def beta_of(dimensions: int) -> float:
    """Inverse temperature of the association, 2 sqrt(d): our default for unit vectors."""
    return 2 * math.sqrt(dimensions)


def count_of(patches: int, wanted: int = MOST_PROTOTYPES) -> int:
    """How many prototypes so many training patches support, at least one."""
    return max(1, min(wanted, patches // PATCHES_EACH))


class PrototypeMemory(nn.Module):
    """Prototypes of one scale, unit vectors when they are used."""

    prototypes: nn.Parameter

    def __init__(self, prototypes: Tensor, beta: float | None = None) -> None:
        """Args: prototypes (N, d), of any length; beta: None for `beta_of`."""
        super().__init__()
        self.prototypes = nn.Parameter(prototypes.clone())
        self.beta = beta_of(prototypes.shape[1]) if beta is None else beta

    def association(self, queries: Tensor) -> Tensor:
        """Softmax over the prototypes. Args: queries (M, d), unit vectors. Returns: (M, N), rows sum to 1."""
        return (self.beta * queries @ F.normalize(self.prototypes, dim=1).T).softmax(dim=1)

    def forward(self, queries: Tensor) -> Tensor:
        """What the memory makes of queries. Args: (M, d), unit vectors. Returns: (M, d), unit vectors."""
        return F.normalize(self.association(queries) @ F.normalize(self.prototypes, dim=1), dim=1)


def targets_of(memory: PrototypeMemory, vectors: Tensor, is_good: Tensor) -> Tensor:
    """What the other view of each vector is drawn to: the memory's answer, of an anomaly the vector itself.

    So no gradient of an anomaly's own target reaches the memory. Args: vectors (M, d); is_good (M,) bool.
    """
    return torch.where(is_good[:, None], memory(vectors), vectors)


def effective_number(mean_association: Tensor) -> float:
    """How many prototypes are in use: exp of the entropy of the mean association.

    Args: mean_association (N,), sums to 1. Returns: 1 (a single one answers everything) to N (all equally often).
    """
    shares = mean_association.double().clamp_min(1e-12)
    return float(torch.exp(-(shares * shares.log()).sum()))


def spread_of(prototypes: Tensor) -> float:
    """1 minus the length of the mean direction: 0 when all prototypes are the same one. Args: prototypes (N, d)."""
    return max(0.0, 1 - float(F.normalize(prototypes.detach(), dim=1).mean(dim=0).norm()))


def settle(memory: PrototypeMemory, vectors: Tensor, seed: int) -> None:
    """Let the prototypes alone learn to answer these vectors with themselves, which is what scores are made of.

    Contrast draws prototypes to where views can be told apart, not to where vectors are. Our default: Adam on the mean
    length of the deviation, over random batches.

    Args: vectors (M, d), unit vectors of good images.
    """
    random = torch.Generator().manual_seed(seed)
    memory.requires_grad_(True)
    adam = torch.optim.Adam(memory.parameters(), _SETTLING_RATE)
    for step in range(_SETTLING):
        for group in adam.param_groups:
            group["lr"] = _SETTLING_RATE * (1 - step / _SETTLING)
        chosen = vectors[torch.randint(len(vectors), (_SETTLED_AT_A_TIME,), generator=random).to(vectors.device)]
        loss = (chosen - memory(chosen)).square().sum(dim=1).add(1e-9).sqrt().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    memory.requires_grad_(False)


def cluster(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Centres of k-means on unit vectors, brought back to length 1.

    Args: vectors (M, d), M >= 1; count: wanted; clusters that run empty keep the vector that they began with.
    Returns: (count, d) float32, on the device of the vectors.
    """
    from scipy.cluster.vq import kmeans2

    random = np.random.default_rng(seed)
    chosen = vectors.detach().float().cpu().numpy()
    if len(chosen) > MOST_CLUSTERED:
        chosen = chosen[np.sort(random.choice(len(chosen), MOST_CLUSTERED, replace=False))]
    start = chosen[random.choice(len(chosen), count, replace=len(chosen) < count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty clusters, which is no fault of the images
        centres, _ = kmeans2(chosen.astype(np.float64), start.astype(np.float64), iter=_ROUNDS, minit="matrix")
    found = torch.from_numpy(np.asarray(centres, np.float32)).to(vectors.device)
    lengths = found.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-6, found / lengths.clamp_min(1e-6), torch.from_numpy(start).to(vectors.device))
