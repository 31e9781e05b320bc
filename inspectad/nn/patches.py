"""Patch vectors: normalised softly, compared by Euclidean distance. Pure."""

from torch import Tensor

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
    similarity = patches @ bank.T - 0.5 * bank.square().sum(dim=1)
    return patches - bank[similarity.argmax(dim=1)]


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
