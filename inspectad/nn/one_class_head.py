"""The one-class head of AnoMem's stage 2: how far a deviation is from how those of good images usually are.

Source: Jézéquel et al., AnoMem (arXiv 2211.09041). That there is a one-class objective is inferred from reviews; its
form is our default, deep SVDD (Ruff et al., ICML 2018): two 3 x 3 convolutions without biases, so that no constant
solves it, and the mean squared distance to the centre of their first outputs.
"""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.scale_encoder import DIMENSIONS
from inspectad.nn.seeded import source

EPOCHS: Final = 50
LEARNING_RATE: Final = 1e-3
MOST_IMAGES: Final = 32
"""Training images that it learns from at most; all are seen in each epoch."""
_WIDTHS: Final = (64, 32)
_STARTED: Final = 20  # what random numbers are for


class OneClassHead(nn.Module):
    """Of one scale."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(DIMENSIONS, _WIDTHS[0], 3, padding=1, padding_mode="replicate", bias=False)
        self.outer = nn.Conv2d(_WIDTHS[0], _WIDTHS[1], 3, padding=1, padding_mode="replicate", bias=False)
        self.register_buffer("centre", torch.zeros(_WIDTHS[1]))

    def embed(self, deviations: Tensor) -> Tensor:
        """Args: deviations (B, h, w, d). Returns: (B, 32, h, w)."""
        embedded: Tensor = self.outer(F.relu(self.inner(deviations.permute(0, 3, 1, 2))))
        return embedded

    def forward(self, deviations: Tensor) -> Tensor:
        """Distance to the centre. Args: deviations (B, h, w, d). Returns: (B, h, w), at least 0."""
        apart = self.embed(deviations) - self.centre.view(1, -1, 1, 1)
        return apart.square().sum(dim=1).add(1e-12).sqrt()


def fit_one_class(deviations: Sequence[Tensor], seed: int) -> nn.ModuleList:
    """A head for each scale. Args: deviations (N, h, w, d) of good images, of each scale. Returns: frozen heads."""
    heads = nn.ModuleList()
    for scale, maps in enumerate(deviations):
        chosen = maps[:: max(1, -(-len(maps) // MOST_IMAGES))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source(seed, _STARTED, scale).initial_seed())
            head = OneClassHead()
        head.to(maps.device)
        with torch.no_grad():
            head.centre.copy_(head.embed(chosen).mean(dim=(0, 2, 3)))
        adam = torch.optim.Adam(head.parameters(), LEARNING_RATE)
        for _ in range(EPOCHS):
            loss = head(chosen).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        heads.append(head.requires_grad_(False).eval())
    return heads
