"""The kinds of patch vector that a memory bank holds, and the bank of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.patches import nearest_residual, soft_normalise


@dataclass(frozen=True, slots=True)
class Level:
    """One kind of patch vector.

    Attributes:
        source: which of the backbone's maps it is made from.
        weight: of its distances in the anomaly map.
        softness: the offset of `soft_normalise`, as a share of the vectors' mean length.
        side: patches are averaged over side x side places.
        is_relative: the image's own mean is subtracted.
        dimensions: it is projected to so many; None for all channels.
        bank_share: its bank holds so many vectors, as a share of ``TrainSettings.bank_size``.
    """

    source: int
    weight: float = 1.0
    softness: float = 0.5
    side: int = 1
    is_relative: bool = False
    dimensions: int | None = None
    bank_share: float = 1.0

    def __str__(self) -> str:
        parts = [f"map {self.source} of the backbone", f"{self.side} x {self.side} places"]
        parts += [f"{self.dimensions} random directions"] if self.dimensions else []
        parts += ["relative to the image's mean"] if self.is_relative else []
        parts += [f"{self.bank_share:g} of the bank size"] if self.bank_share != 1 else []
        return ", ".join([*parts, f"weight {self.weight:g}"])


# The map at stride 8 has four times the places of the others, and half a bank is as good for it (README).
_TWO_STAGES: Final = (Level(0, bank_share=0.5), Level(1), Level(1, weight=0.7, softness=0.1, side=3, is_relative=True))
LEVELS: Final[dict[str, tuple[Level, ...]]] = {
    "efficientnet_lite0": (*_TWO_STAGES[:2], Level(2, dimensions=160), _TWO_STAGES[2]),
}
"""Of the backbones that give more than two stages; every other one has those of `_TWO_STAGES`."""


def levels_of(backbone: str) -> tuple[Level, ...]:
    """The levels of a backbone. Args: backbone: a key of ``BACKBONES``."""
    return LEVELS.get(backbone, _TWO_STAGES)


def patch_vectors(level: Level, maps: Sequence[Tensor]) -> Tensor:
    """The vectors of a level, not yet normalised. Args: maps (B, C, h, w) of the backbone. Returns: (B, D, h, w)."""
    x = maps[level.source]
    if level.side > 1:
        x = F.avg_pool2d(x, level.side, 1, level.side // 2, count_include_pad=False)
    if level.is_relative:
        x = x - x.mean(dim=(2, 3), keepdim=True)
    if level.dimensions is not None:
        channels = x.shape[1]
        directions = torch.from_numpy(random_directions(channels, level.dimensions)).to(x.device)
        x = (x.permute(0, 2, 3, 1) @ directions).permute(0, 3, 1, 2)
    return x


@cache  # 0.06 s for 672 channels, and every image that is scored in training needs them
def random_directions(channels: int, dimensions: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Orthonormal columns, always the same: they keep distances up to a common factor and small errors.

    Johnson & Lindenstrauss (1984); unlike principal components they do not drop what no good image shows.

    Returns: (channels, dimensions) float32.
    """
    square = np.random.default_rng(0).standard_normal((channels, channels))
    return np.linalg.qr(square)[0][:, :dimensions].astype(np.float32)


class LevelBank(nn.Module):
    """Good patches of one level, and how far the patches of an image are from them."""

    bank: Tensor
    offset: Tensor

    def __init__(self, level: Level, offset: Tensor, bank: Tensor) -> None:
        """Args: offset of `soft_normalise`; bank (M, D) float32, normalised patches of good images."""
        super().__init__()
        self.level = level
        self.register_buffer("offset", offset)
        self.register_buffer("bank", bank)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Args: maps of the backbone. Returns: patches and residuals, each (B, h, w, D) at the level's own stride."""
        patches = soft_normalise(patch_vectors(self.level, maps), self.offset)
        return patches, nearest_residual(patches.reshape(-1, patches.shape[-1]), self.bank).view(patches.shape)

    def without(self, gone: npt.NDArray[np.bool_]) -> "LevelBank":
        """The bank without some of its vectors; with all of them where nothing would remain. Args: gone (M,)."""
        kept = ~gone if not gone.all() else np.ones_like(gone)
        return LevelBank(self.level, self.offset, self.bank[torch.from_numpy(kept).to(self.bank.device)])
