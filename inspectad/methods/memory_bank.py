"""Nearest neighbour in memory banks of normal patch features: the default method.

After PatchCore (Roth et al., CVPR 2022): patch features of a frozen backbone, thinned to a k-centre coreset; a patch is
as anomalous as its distance to the nearest one kept. Different here, each measured (README, "What was measured"):

- several kinds of patch (`LEVELS`), from fine detail to wide context, each with a bank of its own at its own stride,
  instead of one long vector: what one kind cannot tell apart does not drown what another sees;
- features are normalised softly, so that no patch of high contrast dominates;
- the widest kind is relative to the image's own mean, so that another exposure of the same part is no anomaly;
- where the good images show that parts lie mirrored or at any angle, copies of them in those poses teach too;
- the image score is the mean of the top 1 % of the map instead of a reweighted maximum.

Random, and seeded, are the projection that the coreset is chosen in and, where the images hold more patches than
`CANDIDATES`, which of them are considered. Nothing assumes that normal images are of one kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.backbone import BACKBONES, load_backbone
from inspectad.nn.coreset import greedy_coreset, project
from inspectad.nn.patches import nearest_distance, soft_normalise
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur
from inspectad.pose import copies
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import TrainingImages

CANDIDATES = 32768  # patches that a coreset is chosen from, shared evenly: 55 MB (Lite0) however many images there are
PROJECTED = 32  # dimensions that the coreset is chosen in
TOP_SHARE = 0.01  # share of the map whose mean is the image score
SMOOTHING_PX = 4.0  # sigma of the Gaussian on the map, in input pixels


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
    """

    source: int
    weight: float = 1.0
    softness: float = 0.5
    side: int = 1
    is_relative: bool = False
    dimensions: int | None = None

    def __str__(self) -> str:
        parts = [f"map {self.source} of the backbone", f"{self.side} x {self.side} places"]
        parts += [f"{self.dimensions} random directions"] if self.dimensions else []
        parts += ["relative to the image's mean"] if self.is_relative else []
        return ", ".join([*parts, f"weight {self.weight:g}"])


_TWO_STAGES: Final = (Level(0), Level(1), Level(1, weight=0.7, softness=0.1, side=3, is_relative=True))
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

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Args: maps of the backbone. Returns: distances (B, 1, h, w) at the level's own stride."""
        patches = soft_normalise(patch_vectors(self.level, maps), self.offset)
        height, width, depth = patches.shape[1:]
        return nearest_distance(patches.reshape(-1, depth), self.bank).view(-1, 1, height, width)


class MemoryBank(nn.Module):
    """The detector: features, nearest neighbours, smoothing and score in one graph."""

    def __init__(self, backbone: nn.Module, banks: Sequence[LevelBank]) -> None:
        super().__init__()
        self.backbone = backbone
        self.banks = nn.ModuleList(banks)
        self.weights = [bank.level.weight / sum(b.level.weight for b in banks) for bank in banks]
        self.blur = GaussianBlur(SMOOTHING_PX / 8)  # the map is at stride 8

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: score (B,), anomaly_map (B, H, W), float32, one unit."""
        maps = self.backbone(images.permute(0, 3, 1, 2).float())
        height, width = maps[0].shape[-2:]
        distances = [
            weight * enlarge(bank(maps), (height, width)) for weight, bank in zip(self.weights, self.banks, strict=True)
        ]
        coarse = self.blur(torch.stack(distances).sum(dim=0))
        top = max(1, round(TOP_SHARE * height * width))
        score = coarse.flatten(1).topk(top, dim=1).values.mean(dim=1)
        return score, enlarge(coarse, (images.shape[1], images.shape[2])).squeeze(1)


def enlarge(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Maps (B, 1, h, w) to (B, 1, H, W), bilinear."""
    if maps.shape[-2:] == size_hw:
        return maps
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False)


class MemoryBankTrainer:
    """Fits memory banks to subsets of one set of images; each image, and each copy of it, passes the backbone once.

    Defects take no part: they are scored like any held-out image when the threshold is set.
    """

    def __init__(self, good: TrainingImages, _defects: TrainingImages, settings: TrainSettings) -> None:
        self._settings = settings
        self._images = good
        self._levels = levels_of(settings.backbone)
        network, _ = load_backbone(settings.backbone, settings.backbone_weights)
        self._backbone = network.to(settings.device)
        self._patches: dict[int, list[Tensor]] = {}

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> MemoryBank:  # noqa: ARG002
        """Memory banks of these good images; the same images, settings and seed give the same banks."""
        patches = [torch.cat(parts) for parts in zip(*(self._patches_of(i) for i in good), strict=True)]
        banks = [self._bank(level, x) for level, x in zip(self._levels, patches, strict=True)]
        return MemoryBank(self._backbone, banks).to(self._settings.device).eval()

    def describe(self) -> dict[str, str]:
        """Size of the banks and the levels, for people."""
        levels = {f"level {i}": str(level) for i, level in enumerate(self._levels, 1)}
        return {"bank_size": str(self._settings.bank_size), **levels}

    def _bank(self, level: Level, vectors: Tensor) -> LevelBank:
        """Args: vectors (P, D) of the good images, not normalised."""
        offset = level.softness * vectors.square().sum(dim=1).sqrt().mean()
        candidates = soft_normalise(vectors[:, :, None, None], offset).flatten(0, 2).numpy()
        chosen = greedy_coreset(project(candidates, PROJECTED, self._settings.seed), self._settings.bank_size)
        return LevelBank(level, offset, torch.from_numpy(candidates[np.sort(chosen)]))

    def _patches_of(self, index: int) -> list[Tensor]:
        """An image's share of the candidates, its copies in other poses among them: one (P, D) a level, on the CPU."""
        if index not in self._patches:
            poses = [self._vectors(copy) for copy in copies(self._images[index], self._settings.pose)]
            levels = [torch.cat(parts) for parts in zip(*poses, strict=True)]
            rng = np.random.default_rng((self._settings.seed, index))
            share = math.ceil(CANDIDATES / len(self._images))
            self._patches[index] = [level[_sample(len(level), share, rng)].clone() for level in levels]
        return self._patches[index]

    def _vectors(self, pixels: ByteArray) -> list[Tensor]:
        """All patch vectors of one image: one (P, D) a level, on the CPU."""
        image = torch.from_numpy(pixels).unsqueeze(0).to(self._settings.device)
        with torch.inference_mode():
            maps = self._backbone(image.permute(0, 3, 1, 2).float())
            return [patch_vectors(level, maps).flatten(2)[0].T.cpu() for level in self._levels]


def _sample(count: int, share: int, rng: np.random.Generator) -> Tensor:
    """At most ``share`` of the indices below ``count``, in ascending order."""
    return torch.from_numpy(np.sort(rng.choice(count, min(count, share), replace=False)))


def restore_memory_bank(tensors: dict[str, Tensor], settings: TrainSettings) -> MemoryBank:
    """The module that ``fit`` returned, from its state dict."""
    network = BACKBONES[settings.backbone].build().eval().requires_grad_(False)
    empty = [
        LevelBank(level, torch.empty(()), torch.empty_like(tensors[f"banks.{i}.bank"]))
        for i, level in enumerate(levels_of(settings.backbone))
    ]
    module = MemoryBank(network, empty)
    module.load_state_dict(tensors)
    return module.eval()
