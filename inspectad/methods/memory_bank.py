"""Nearest neighbour in a memory bank of normal patch features: the default method.

After PatchCore (Roth et al., CVPR 2022): patch features of a frozen backbone at strides 8 and 16, averaged over
3 x 3 patches, thinned to a k-centre coreset; a patch is as anomalous as its distance to the nearest one kept.
Different here, each measured (README, "What was measured"): the features of each level are normalised softly, so that
neither level and no patch of high contrast dominates; the image score is the mean of the top 1 % of the map instead
of a reweighted maximum. Random, and seeded, are the projection that the coreset is chosen in and, where the images
hold more patches than `CANDIDATES`, which of them are considered.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.backbone import BACKBONES, load_backbone
from inspectad.nn.coreset import greedy_coreset, project
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur
from inspectad.training_data import TrainingImages

CANDIDATES = (
    65536  # patches that the coreset is chosen from, shared evenly: 40 MB (Lite0) however many images there are
)
PROJECTED = 32  # dimensions that the coreset is chosen in
SOFTNESS = 0.5  # of the mean length of a level's vectors: the offset of `soft_normalise`
TOP_SHARE = 0.01  # share of the map whose mean is the image score
SMOOTHING_PX = 4.0  # sigma of the Gaussian on the map, in input pixels


class PatchFeatures(nn.Module):
    """Backbone to one feature vector a patch: all levels at the finest stride, averaged over 3 x 3 patches."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: one (B, C, h, w) a level, all of one height and width."""
        levels = self.backbone(images.permute(0, 3, 1, 2).float())
        size = levels[0].shape[-2:]
        pooled = [F.avg_pool2d(level, 3, 1, 1, count_include_pad=False) for level in levels]
        return [
            p if p.shape[-2:] == size else F.interpolate(p, size, mode="bilinear", align_corners=False) for p in pooled
        ]


def soft_normalise(levels: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    """Patch vectors whose length says little: x / (|x| + offset) for each level, then concatenated.

    With offset 0 this is L2 normalisation, which makes the noise of empty background as loud as the part.

    Args: levels (B, C, h, w) each; offsets: one scalar a level. Returns: (B, h, w, D).
    """
    scaled = [
        x / (x.square().sum(dim=1, keepdim=True).add(1e-12).sqrt() + offset)
        for x, offset in zip(levels, offsets, strict=True)
    ]
    return torch.cat(scaled, dim=1).permute(0, 2, 3, 1)


class MemoryBank(nn.Module):
    """The detector: features, nearest neighbour, smoothing and score in one graph."""

    bank: Tensor
    offsets: Tensor

    def __init__(self, features: PatchFeatures, offsets: Tensor, bank: Tensor) -> None:
        """Args: offsets (levels,) of `soft_normalise`; bank (M, D) float32, normalised patches of good images."""
        super().__init__()
        self.features = features
        self.register_buffer("offsets", offsets)
        self.register_buffer("bank", bank)
        self.blur = GaussianBlur(SMOOTHING_PX / 8)  # the map is at stride 8

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: score (B,), anomaly_map (B, H, W), float32, one unit."""
        patches = soft_normalise(self.features(images), self.offsets.unbind())
        height, width, depth = patches.shape[1:]
        distances = nearest_distance(patches.reshape(-1, depth), self.bank).view(-1, 1, height, width)
        coarse = self.blur(distances)
        top = max(1, round(TOP_SHARE * height * width))
        score = coarse.flatten(1).topk(top, dim=1).values.mean(dim=1)
        size = (images.shape[1], images.shape[2])
        return score, F.interpolate(coarse, size, mode="bilinear", align_corners=False).squeeze(1)


def nearest_distance(patches: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of each patch to its nearest bank vector.

    The nearest is found by matrix product; its distance is then taken from the difference, since the expanded
    form |x|^2 - 2xb + |b|^2 loses all digits where a patch almost equals its neighbour.

    Args: patches (N, D), bank (M, D). Returns: (N,).
    """
    similarity = patches @ bank.T - 0.5 * bank.square().sum(dim=1)
    nearest = bank[similarity.argmax(dim=1)]
    return (patches - nearest).square().sum(dim=1).clamp_min(1e-12).sqrt()


class MemoryBankTrainer:
    """Fits memory banks to subsets of one set of images; each image goes through the backbone once.

    Defects take no part: they are scored like any held-out image when the threshold is set.
    """

    def __init__(self, good: TrainingImages, _defects: TrainingImages, settings: TrainSettings) -> None:
        self._settings = settings
        self._images = good
        network, _ = load_backbone(settings.backbone, settings.backbone_weights)
        self._features = PatchFeatures(network).to(settings.device)
        self._patches: dict[int, list[Tensor]] = {}

    def fit(self, good: Sequence[int]) -> MemoryBank:
        """Memory bank of these good images; the same images, settings and seed give the same bank."""
        levels = [torch.cat(parts) for parts in zip(*(self._patches_of(i) for i in good), strict=True)]
        offsets = torch.stack([SOFTNESS * level.square().sum(dim=1).sqrt().mean() for level in levels])
        as_maps = [level[:, :, None, None] for level in levels]
        candidates = soft_normalise(as_maps, offsets.unbind()).flatten(0, 2).numpy()
        projected = project(candidates, PROJECTED, self._settings.seed)
        chosen = np.sort(greedy_coreset(projected, self._settings.bank_size))
        module = MemoryBank(self._features, offsets, torch.from_numpy(candidates[chosen]))
        return module.to(self._settings.device).eval()

    def _patches_of(self, index: int) -> list[Tensor]:
        """Raw features of an image's share of the candidates: one (P, C) a level, on the CPU."""
        if index not in self._patches:
            image = torch.from_numpy(self._images[index]).unsqueeze(0).to(self._settings.device)
            with torch.inference_mode():
                levels = [level.flatten(2)[0].T.cpu() for level in self._features(image)]
            count = len(levels[0])
            share = min(count, math.ceil(CANDIDATES / len(self._images)))
            rng = np.random.default_rng((self._settings.seed, index))
            kept = torch.from_numpy(np.sort(rng.choice(count, share, replace=False)))
            self._patches[index] = [level[kept].clone() for level in levels]
        return self._patches[index]


def restore_memory_bank(tensors: dict[str, Tensor], settings: TrainSettings) -> MemoryBank:
    """The module that ``fit`` returned, from its state dict."""
    network = BACKBONES[settings.backbone].build().eval().requires_grad_(False)
    module = MemoryBank(PatchFeatures(network), torch.empty_like(tensors["offsets"]), torch.empty_like(tensors["bank"]))
    module.load_state_dict(tensors)
    return module.eval()
