"""The encoder of AnoMem: a backbone seen at strides 8, 16 and 32, each with a projection to unit vectors.

Source: Jézéquel et al., AnoMem (arXiv 2211.09041): ResNet-18, its last two stages (recalled); the stage at stride 8 is
added for small defects, and 1 x 1 projections with batch normalisation (our default).
"""

from collections.abc import Sequence
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

DIMENSIONS: Final = 128
STRIDES: Final = (8, 16, 32)
SOURCES: Final[dict[str, tuple[tuple[int, int], ...]]] = {"efficientnet_lite0": ((0, 1), (1, 1), (1, 2))}
"""Of each scale: which of the backbone's maps, and by how much that is reduced, for a backbone that ends before."""
_STAGES: Final = ((0, 1), (1, 1), (2, 1))


class Projection(nn.Module):
    """From a backbone's channels to a unit vector, of each place by itself: a linear map plus two layers.

    The linear map starts orthonormal and the two layers at nothing, so that vectors are at first as far apart as the
    backbone's are; a pretrained backbone's distances are worth keeping when there are few images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.straight = nn.Linear(channels, DIMENSIONS, bias=False)
        self.hidden = nn.Linear(channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.out = nn.Linear(channels, DIMENSIONS)
        nn.init.orthogonal_(self.straight.weight)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Args: vectors (M, C). Returns: (M, d), unit vectors."""
        x = F.normalize(vectors, dim=1)
        return F.normalize(self.straight(x) + self.out(F.relu(self.norm(self.hidden(x)))), dim=1)


class ScaleEncoder(nn.Module):
    """Images to unit vectors at several scales by the backbone's maps, and the projection of each place."""

    def __init__(self, backbone: nn.Module, name: str, channels: Sequence[int]) -> None:
        """Args: backbone, deep; name: its key in ``BACKBONES``; channels: of its maps."""
        super().__init__()
        self.backbone = backbone
        self._sources = SOURCES.get(name, _STAGES)
        self.projections = nn.ModuleList(Projection(channels[source]) for source, _ in self._sources)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Args: pixels float32 (B, 3, H, W) in 0..255. Returns: (B, C, h, w) of each scale, finest first."""
        found = self.backbone(pixels)
        return [found[source] if by == 1 else F.avg_pool2d(found[source], by) for source, by in self._sources]

    def project(self, scale: int, maps: Tensor) -> Tensor:
        """Args: maps (B, C, h, w). Returns: (B, h, w, d), unit vectors."""
        batch, channels, height, width = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        projected: Tensor = self.projections[scale](flat)
        return projected.view(batch, height, width, DIMENSIONS)
