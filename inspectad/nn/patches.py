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


def nearest_distance(patches: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of each patch to its nearest bank vector.

    The nearest is found by matrix product; its distance is then taken from the difference, since the expanded
    form |x|^2 - 2xb + |b|^2 loses all digits where a patch almost equals its neighbour. Below `SAME` it is rounding
    that decides which of several near neighbours is found, differently on every machine: those count as equally near.

    Args: patches (N, D), bank (M, D). Returns: (N,), at least `SAME`.
    """
    similarity = patches @ bank.T - 0.5 * bank.square().sum(dim=1)
    nearest = bank[similarity.argmax(dim=1)]
    return (patches - nearest).square().sum(dim=1).clamp_min(SAME**2).sqrt()
