"""What is shipped of a trained UTAD: both stages, the map of how an image differs from what they make of it, and how
far its code lies from those of the training images, in one graph.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671): m = IE(x), the impression; the image
as it should be, x' = G_I(content of m, detail of x); a perceptual measure of the image and what was made of it, whose
form could not be read; and the distance to the nearest codes, whose number and weight could not be read either. Ours:

- the measure is Phi(x, x') + Phi(x, m) on the maps of a frozen pretrained backbone. Our specification's default,
  r(x, x') + max(0, r(m, m') - r(x', m)) of structural similarity and L1 (`inspectad.nn.reconstruction_map`), told
  defects of a stochastic texture hardly apart from good images (README);
- it is standardised place by place: an edge is never drawn exactly where it is, and a defect is what differs by more;
- so the naive impression m' = G_M(content of x, d), which the second term of the default needs, is not computed;
- where what is restored of held-out good images is much farther from them than their impressions are (`FAILED_DB`),
  training the second stage has failed, and the first term is left out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.expert_net import DETAIL, Generator, as_shares, as_signed
from inspectad.nn.inception import CODE, ImpressionNet
from inspectad.nn.perceptual import perceptual_distance
from inspectad.nn.smoothing import GaussianBlur

SMOOTHING: Final = 1 / 64
"""Sigma of the Gaussian on the map, as a share of the input's side: 4 pixels of 256."""
TOP_SHARE: Final = 0.01
"""Of the map's pixels, those whose mean counts."""
NEIGHBOURS: Final = 3
FAILED_DB: Final = 6.0
"""PSNR that what is restored may be behind the impressions. A second stage of mere noise (bottle, on a GPU) was 8 dB
behind, and cost 9 points of AUPRO."""
_LEAST_TOP: Final = 1.0
"""Of the map's part, in standard deviations."""
LEAST_CODE: Final = 0.1
"""Of the code's, each number of which is drawn with a standard deviation of 1: codes that are nearer to each other tell
nothing apart, and have no say."""
_LEAST: Final = 1e-6
_LEAST_SPREAD: Final = 0.05
"""Held-out images tell a standard deviation badly when they are few: no less than this share of the mean."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the stages make of images, (B, 3, S, S) each, in 0..1.

    Attributes:
        impression: blurred, defect-free.
        restored: the impression with the image's detail: the image as it should be.
        code: (B, 128), of IE-Net.
    """

    impression: Tensor
    restored: Tensor
    code: Tensor


class TwoStage(nn.Module):
    """The detector."""

    half_ops: ClassVar[frozenset[str]] = frozenset({"LeakyRelu", "Concat", "Resize", "Sigmoid"})
    """Beside the usual operations, of IE-Net; see `inspectad.export.to_fp16`. Of Expert-Net, what comes before a
    normalisation is in half precision, and the rest in single: what normalisations sum up may be more than half
    precision holds, which a CPU, where it is proved, hides."""
    codes: Tensor
    restores: Tensor
    usual_map: Tensor
    spread_map: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(
        self,
        impressions: ImpressionNet,
        of_images: Generator,
        of_impressions: Generator,
        backbone: nn.Module,
        side: int,
        images: int,
    ) -> None:
        """Args: backbone: frozen, see `inspectad.nn.backbone`; side: of the input; images: how many taught, each of
        which has a code."""
        super().__init__()
        self.impressions = impressions
        self.of_images = of_images
        self.of_impressions = of_impressions
        self.backbone = backbone
        self.blur = GaussianBlur(SMOOTHING * side)
        self.register_buffer("codes", torch.zeros(images, CODE))
        self.register_buffer("restores", torch.ones(1))  # 1 where the second stage counts, or 0
        # Mean and standard deviation, of good images: of the map at each place, and of what the map and the code say of
        # an image as a whole.
        self.register_buffer("usual_map", torch.zeros(side, side))
        self.register_buffer("spread_map", torch.ones(side, side))
        self.register_buffer("usual", torch.ones(2))
        self.register_buffer("spread", torch.ones(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, S, S, 3). Returns: score (B,), anomaly_map (B, S, S), float32, > 0; 1 is usual.

        The score orders images as the sum of the two standardised parts does, and is a share of what is usual.
        """
        pixels = shares_of(images)
        return self.judge(pixels, self.reconstruct(pixels))

    def judge(self, pixels: Tensor, found: Reconstruction) -> tuple[Tensor, Tensor]:
        """As `forward`, of (B, 3, S, S) in 0..1 and what was made of them."""
        standard, parts = self.examine(pixels, found)
        score = (parts / self.spread).sum(dim=1) / (self.usual / self.spread).sum()
        return score.clamp_min(_LEAST), (standard / self.usual[0]).clamp_min(_LEAST)

    def examine(self, pixels: Tensor, found: Reconstruction) -> tuple[Tensor, Tensor]:
        """The standardised map (B, S, S), and (B, 2): the mean of its highest hundredth, and the mean distance to the
        nearest codes."""
        standard = self.standard(pixels, found)
        return standard, torch.stack([top_mean(standard), self.code_distance(found.code)], dim=1)

    def code_distance(self, code: Tensor) -> Tensor:
        """Mean distance to the nearest codes of what taught: (B,). Args: code (B, 128)."""
        apart = (code[:, None] - self.codes).square().sum(dim=2).add(1e-12).sqrt()
        return apart.topk(min(NEIGHBOURS, len(self.codes)), dim=1, largest=False).values.mean(dim=1)

    def standard(self, pixels: Tensor, found: Reconstruction) -> Tensor:
        """The map in standard deviations above what is usual at each place: (B, S, S), >= 0."""
        return torch.relu(self.evidence(pixels, found) - self.usual_map) / self.spread_map

    def evidence(self, pixels: Tensor, found: Reconstruction) -> Tensor:
        """Phi(x, x') + Phi(x, m), smoothed: (B, S, S), >= 0; the first where it counts. Args: pixels (B, 3, S, S)."""
        size = (pixels.shape[2], pixels.shape[3])
        seen, restored, impression = (self.backbone(255 * made) for made in (pixels, found.restored, found.impression))
        of_restored = perceptual_distance(seen, restored, size)
        apart = self.restores * of_restored + perceptual_distance(seen, impression, size)
        smooth: Tensor = self.blur(apart)
        return smooth.squeeze(1)

    def reconstruct(self, pixels: Tensor) -> Reconstruction:
        """Args: pixels (B, 3, S, S) in 0..1."""
        latent = self.impressions.encode(pixels)
        impression = self.impressions.decode(latent)
        code, _, _ = self.impressions.describe(latent)
        detail = self.of_images.detail(as_signed(pixels))
        restored = self.of_images.decode(self.of_impressions.content(as_signed(impression)), detail)
        return Reconstruction(impression, as_shares(restored), code)

    def naive(self, pixels: Tensor) -> Tensor:
        """m', which keeps a defect: the image's own content, drawn as an impression. Args, returns: (B, 3, S, S) in
        0..1. One d stands for the ten random ones of the released code: the middle of what they are drawn from."""
        content = self.of_images.content(as_signed(pixels))
        return as_shares(self.of_impressions.decode(content, pixels.new_zeros(len(pixels), DETAIL)))

    @torch.no_grad()
    def learn_usual(self, taught: Iterable[Tensor], unseen: Sequence[Tensor]) -> tuple[float, float]:
        """Keep the codes of what taught, and what is usual of good images that did not.

        Args: images uint8 (1, S, S, 3) each; taught: as many as `__init__` was told; unseen: one at least.
        Returns: PSNR of the impressions, and of what is restored, of the unseen ones, in dB.
        """
        made = [(pixels, self.reconstruct(pixels)) for pixels in map(shares_of, unseen)]
        errors = [
            torch.stack([F.mse_loss(getattr(found, stage), pixels) for pixels, found in made]).mean()
            for stage in ("impression", "restored")
        ]
        impression, restored = (-10 * math.log10(max(float(error), _LEAST)) for error in errors)
        self.restores.fill_(restored > impression - FAILED_DB)
        maps = torch.stack([self.evidence(pixels, of_image)[0].double() for pixels, of_image in made])
        mean, variance = maps.mean(dim=0), maps.var(dim=0, correction=0)
        floor = variance.mean() + (_LEAST_SPREAD * mean.mean()).square() + _LEAST**2
        self.usual_map.copy_(mean)
        self.spread_map.copy_((variance + floor).sqrt())
        # What the map says of an image as a whole is measured of those that taught: these maps were not standardised by
        # them, and they are many. Of the few others it would be low, and the lower, the fewer they are.
        codes, tops = [], []
        for pixels in map(shares_of, taught):
            found = self.reconstruct(pixels)
            codes.append(found.code)
            tops.append(top_mean(self.standard(pixels, found)))
        self.codes.copy_(torch.cat(codes))
        nearest = torch.cat([self.code_distance(of_image.code) for _, of_image in made])
        for part, (values, least) in enumerate(((torch.cat(tops), _LEAST_TOP), (nearest, _LEAST))):
            centre = values.double().mean().clamp_min(least)
            self.usual[part] = centre
            self.spread[part] = torch.maximum(values.double().std(correction=0), _LEAST_SPREAD * centre)
        if self.usual[1] < LEAST_CODE:
            self.spread[1] = math.inf
        return impression, restored


def top_mean(maps: Tensor) -> Tensor:
    """Mean of the highest hundredth of each. Args: (B, S, S). Returns: (B,)."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)


def shares_of(images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to (B, 3, S, S) in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255


def restore_two_stage(tensors: dict[str, Tensor], backbone: nn.Module) -> TwoStage:
    """The detector, from its state dict. Args: backbone: built as the one it was trained with."""
    side, images = len(tensors["usual_map"]), len(tensors["codes"])
    module = TwoStage(ImpressionNet(), Generator(), Generator(), backbone, side, images)
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()
