"""What stage 1 of AnoMem learns from, step by step: two views of each of some images, as maps of the backbone.

A backbone that learns has to see each view anew. One that does not is asked once for a pool of views, of which each
step takes pairs; the pool is drawn anew a few times in a training. A step then costs a fraction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from inspectad.nn.seeded import source
from inspectad.nn.views import Augmentation, draw_matrices, view
from inspectad.records import ByteArray

POOL: Final = 128
"""Views in a pool: .7 MB each at 320 px with the embedded backbone."""
ROUNDS: Final = 2
"""Pools in a training."""
_AT_A_TIME: Final = 16  # views that a backbone that does not learn is shown
_CHOSEN, _SEEN = 10, 11  # what random numbers are for

Maps = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two views of each of B images.

    Attributes:
        images: (B,) which ones.
        maps: of the first views and of the second, a tensor (B, C, h, w) for each scale.
        matrices: of the first and of the second, (B, 2, 3), see `inspectad.nn.views.draw_matrices`.
    """

    images: Tensor
    maps: tuple[list[Tensor], list[Tensor]]
    matrices: tuple[Tensor, Tensor]


class StageViews:
    """Pairs of views of some images, the same ones for the same seed and step."""

    def __init__(
        self,
        images: Sequence[ByteArray],
        chosen: Sequence[int],
        maps: Maps,
        kind: Augmentation,
        device: torch.device,
        seed: int,
        *,
        learns: bool,
        steps: int,
    ) -> None:
        """Args: chosen: which images teach; maps: the backbone's, of pixels; learns: whether it does; steps: in all."""
        self._images, self._chosen, self._maps, self._kind = images, tuple(chosen), maps, kind
        self._device, self._seed, self._learns = device, seed, learns
        self._each_round = -(-steps // ROUNDS)
        self._round = -1
        self._pool: list[Tensor] = []
        self._pool_images = self._pool_matrices = torch.empty(0)

    def __len__(self) -> int:
        return len(self._chosen)

    def draw(self, step: int, count: int) -> Pair:
        """Args: count: images, as many as there are at most."""
        random = source(self._seed, _CHOSEN, step)
        if self._learns:
            return self._fresh(random, count)
        self._fill(step // self._each_round)
        pooled = torch.unique(self._pool_images)
        images = pooled[torch.randperm(len(pooled), generator=random)[:count]]
        pairs = []
        for image in images.tolist():
            of_image = (self._pool_images == image).nonzero().flatten()
            pairs.append(of_image[torch.randperm(len(of_image), generator=random)[:2]])
        first, second = torch.stack(pairs).T
        return Pair(
            images,
            ([m[first.to(m.device)] for m in self._pool], [m[second.to(m.device)] for m in self._pool]),
            (self._pool_matrices[first], self._pool_matrices[second]),
        )

    def _fresh(self, random: torch.Generator, count: int) -> Pair:
        images = torch.randperm(len(self._chosen), generator=random)[:count]
        matrices, seen = self._views(images.repeat(2), random)
        maps = self._maps(seen)
        first, second = matrices.chunk(2)
        return Pair(images, ([m[: len(images)] for m in maps], [m[len(images) :] for m in maps]), (first, second))

    def _fill(self, number: int) -> None:
        """Draw the pool of a round, if it is another one than the last."""
        if number == self._round:
            return
        random = source(self._seed, _SEEN, number)
        images = torch.randperm(len(self._chosen), generator=random)[: POOL // 2].sort().values
        self._pool_images = images.repeat(max(2, POOL // len(images)))
        matrices, pools = [], []
        with torch.inference_mode():
            for part in torch.split(self._pool_images, _AT_A_TIME):
                matrix, seen = self._views(part, random)
                matrices.append(matrix)
                pools.append(self._maps(seen))
        self._pool = [torch.cat(scale).clone() for scale in zip(*pools, strict=True)]
        self._pool_matrices, self._round = torch.cat(matrices), number

    def _views(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        stacked = np.stack([self._images[self._chosen[i]] for i in images.tolist()])
        pixels = torch.from_numpy(stacked).to(self._device).permute(0, 3, 1, 2).float()
        matrices = draw_matrices(len(images), (pixels.shape[2], pixels.shape[3]), self._kind, random)
        return matrices, view(pixels, matrices, self._kind, random)
