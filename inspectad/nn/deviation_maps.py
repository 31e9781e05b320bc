"""The detector of AnoMem: from the deviations of an image's places from their prototypes to a score and a map.

Source: Jézéquel et al., AnoMem (arXiv 2211.09041): an anomaly-distance detector on the spatial deviation maps between
observation and prototypes, for one class and for few labelled anomalies (verified in the abstracts). The length of the
deviation is believed to be the one-class score (recalled), and scales have fixed weights (inferred from reviews).
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from inspectad.nn.defect_head import DefectHead, Evidence, weigh_top
from inspectad.nn.patches import length
from inspectad.nn.scale_encoder import ScaleEncoder
from inspectad.nn.smoothing import GaussianBlur, enlarge

SMOOTHING: Final = 0.5
"""Sigma of the Gaussian on the map, in its places: 4 pixels at stride 8."""


class DeviationMaps(nn.Module):
    """Encoder, memories, deviations, heads, score and map in one graph."""

    units: Tensor
    top_share: Tensor

    def __init__(
        self,
        encoder: ScaleEncoder,
        memories: nn.ModuleList,
        top_share: float,
        one_class: nn.ModuleList | None = None,
        head: DefectHead | None = None,
    ) -> None:
        """Args: top_share: of the map's places, those whose mean is the image score; one_class: heads in place of the
        length of the deviation; head: of known defects.
        """
        super().__init__()
        self.encoder = encoder
        self.memories = memories
        self.one_class = one_class
        self.head = head
        self.blur = GaussianBlur(SMOOTHING)
        self._share = top_share
        self.register_buffer("top_share", torch.tensor(top_share, dtype=torch.float64))  # travels with the weights
        self.register_buffer("units", torch.ones(len(memories)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: score (B,), anomaly_map (B, H, W), float32, one unit, > 0."""
        evidence = self.examine(self.encoder.maps(images.permute(0, 3, 1, 2).float()))
        score, coarse = evidence.score, evidence.anomaly_map
        if self.head is not None:
            of_score, of_map = self.head(evidence, self.blur)
            score, coarse = score * of_score, coarse * of_map
        return score, enlarge(coarse, (images.shape[1], images.shape[2])).squeeze(1)

    def deviations(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Args: maps of the encoder. Returns: vectors z and z - HF(z), each (B, h, w, d), of each scale."""
        vectors = [self.encoder.project(scale, scale_maps) for scale, scale_maps in enumerate(maps)]
        apart = [z - memory(z.flatten(0, 2)).view(z.shape) for z, memory in zip(vectors, self.memories, strict=True)]
        return vectors, apart

    def distances(self, deviations: Sequence[Tensor]) -> list[Tensor]:
        """By the one-class heads where there are some, else by length. Returns: (B, h, w) of each scale, raw."""
        if self.one_class is None:
            return [length(apart) for apart in deviations]
        return [head(apart) for head, apart in zip(self.one_class, deviations, strict=True)]

    def examine(self, maps: Sequence[Tensor]) -> Evidence:
        """What the memories find, whatever is known of defects. Args: maps of the encoder."""
        vectors, apart = self.deviations(maps)
        size = (vectors[0].shape[1], vectors[0].shape[2])
        scaled = [
            enlarge((found / unit).unsqueeze(1), size)
            for found, unit in zip(self.distances(apart), self.units.unbind(), strict=True)
        ]
        coarse = self.blur(torch.stack(scaled).mean(dim=0))
        places = size[0] * size[1]
        count = max(1, round(self._share * places))
        highest = coarse.flatten(1).topk(min(2 * count, places), dim=1).values
        return Evidence(vectors, apart, coarse, highest[:, :count].mean(dim=1), weigh_top(coarse, highest))

    def standardise(self, maps: Sequence[Sequence[Tensor]]) -> None:
        """Set the units: the mean score of each scale alone, of good images that taught nothing.

        A scale divided by its mean, not also by its spread: a few images tell the one and hardly the other (bottle and
        pill and magnetic tile, 16 images: README). That a score must be positive forbids to subtract.

        Args: maps of the encoder, of each of the images (B = 1).
        """
        found = torch.zeros(len(self.memories), dtype=torch.float64)
        for of_image in maps:
            for scale, distance in enumerate(self.distances(self.deviations(of_image)[1])):
                flat = distance.flatten()
                found[scale] += flat.topk(max(1, round(self._share * len(flat)))).values.mean().double().cpu()
        self.units.copy_((found / len(maps)).clamp_min(1e-6))
