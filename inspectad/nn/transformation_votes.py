"""What is shipped of a trained pyramid: its discriminators, voting which transformation was applied to an image.

A patch that looks like the training images is recognised however it was transformed; of another one the votes are
spread. Source: Sheynin, Benaim & Wolf (ICCV 2021), section 3.3: the probability of the right transformation, meant over
patches (all, or the lowest share of them for defects), transformations and scales.

Different here:

- Their two ways to put the scales together are the plain mean, and scores that are standardised over the test set,
  which a line does not have. Here they are standardised by altered copies of the training images. As the order of
  scores is all that counts, that is a mean in which each scale weighs as one over its standard deviation, and stays in
  0..1, where 1 means that all votes were right.
- They give no map. Here, votes for the transformations that lose no pixel are brought back to where they came from.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.patch_gan import MARGIN, RECEPTIVE_FIELD, Discriminator, resample, resampling
from inspectad.nn.smoothing import GaussianBlur
from inspectad.nn.transformations import (
    ROTATIONS,
    Transformation,
    apply_all,
    from_tensor,
    look_up,
    pixel_table,
    to_tensor,
    undo_table,
)

SMOOTHING_PX: Final = 4.0
"""Sigma of the Gaussian on the map, in pixels of the input."""
_SUREST: Final = 0.1
"""Share of the patches that `told_turns` looks at."""
_LEAST_NORMALITY: Final = 1e-6
_LEAST_SPREAD: Final = 0.01
"""A scale whose votes hardly differ between altered copies weighs as if they did by so much."""


class TransformationVotes(nn.Module):
    """The detector: reduced images, their transformations, discriminators, votes, score and map in one graph."""

    half_ops: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gather", "Reshape", "LeakyRelu", "Concat"})
    """What lies between the image and the votes beside convolutions, see `inspectad.export.to_fp16`."""
    votes_on_turns: ClassVar[bool] = True
    """See `inspectad.held_out`."""
    rows: Tensor
    sides: Tensor
    lowest_share: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(
        self,
        discriminators: Sequence[nn.Module],
        transformations: Sequence[Transformation],
        sides: Sequence[int],
        input_side: int,
        lowest_share: float,
    ) -> None:
        """Args:
        sides: of the images that each discriminator sees, at most ``input_side``.
        lowest_share: of an image's patches, those that are least sure count, 0 to 1.
        """
        super().__init__()
        if not sides or not all(RECEPTIVE_FIELD <= side <= input_side for side in sides):
            raise ValueError(f"sides {list(sides)} of scales do not fit an input of {input_side} pixels")
        self.discriminators = nn.ModuleList(discriminators)
        self._transformations = tuple(transformations)
        self._sides = tuple(sides)
        self._share = lowest_share
        self._kept = [i for i, t in enumerate(self._transformations) if t.keeps_pixels]
        self._has_grey = any(t.grey for t in self._transformations)
        self.blur = GaussianBlur(SMOOTHING_PX)
        # These travel with the weights.
        self.register_buffer("rows", to_tensor(transformations))
        self.register_buffer("sides", torch.tensor(self._sides))
        self.register_buffer("lowest_share", torch.tensor(lowest_share, dtype=torch.float64))
        self.register_buffer("usual", torch.ones(len(self._sides)))
        self.register_buffer("spread", torch.ones(len(self._sides)))
        for number, side in enumerate(self._sides):
            reach = side - 2 * MARGIN  # of the map
            self._keep(f"resampling_{number}", resampling(input_side, side).clone())
            self._keep(f"pixels_{number}", pixel_table(self._transformations, side))
            self._keep(f"undone_{number}", undo_table([self._transformations[i] for i in self._kept], reach))

    def _keep(self, name: str, constant: Tensor) -> None:
        """What follows from the rest, and need not travel."""
        self.register_buffer(name, constant, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, S, S, 3). Returns: score (B,), anomaly_map (B, S, S), float32, one unit, >= 0."""
        votes = self.votes(images)
        weights = self.weights()
        normality = (self.normality(votes) * weights).sum(dim=1)
        size = (images.shape[1], images.shape[2])
        placed = [weights[n] * self._placed(n, found, size) for n, found in enumerate(votes)]
        smooth = self.blur(torch.stack(placed).sum(dim=0)).squeeze(1)
        return surprise(normality), surprise(smooth)

    def votes(self, images: Tensor) -> list[Tensor]:
        """For the right transformation, in 0..1: of each scale (M, B, h, h), h 10 less than its side.

        Args: images uint8 (B, S, S, 3).
        """
        classes = len(self._transformations)
        right = torch.arange(classes, device=images.device) * (classes + 1)  # the diagonal of (M, M)
        found = []
        for number, (discriminator, reduced) in enumerate(zip(self.discriminators, self._reduced(images), strict=True)):
            turned = look_up(reduced, self.get_buffer(f"pixels_{number}"), has_grey=self._has_grey)
            # "Generated" is no vote: an image of a line is none.
            logits = discriminator(turned)[:, :classes]
            shares = F.softmax(logits.float(), dim=1)
            by_class = shares.view(classes, -1, classes, *shares.shape[2:]).transpose(1, 2).flatten(0, 1)
            found.append(by_class.index_select(0, right))
        return found

    def _reduced(self, images: Tensor) -> list[Tensor]:
        """What each discriminator sees, (B, 3, side, side) in -1..1."""
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return [resample(pixels, self.get_buffer(f"resampling_{number}")) for number in range(len(self._sides))]

    def normality(self, votes: Sequence[Tensor]) -> Tensor:
        """Mean vote of the patches that count: (B, scales), 0..1. Args: votes of `votes`."""
        return torch.stack([lowest_mean(found, self._share).mean(dim=0) for found in votes], dim=1)

    def weights(self) -> Tensor:
        """Of the scales, (scales,), adding up to 1."""
        steadiness = 1 / self.spread.clamp(min=_LEAST_SPREAD)
        return steadiness / steadiness.sum()

    def turn_logits(self, images: Tensor) -> list[Tensor]:
        """Of quarter turns of images alone, (4 turns, B, 4 classes, h, h) a scale: what `told_turns` looks at."""
        classes = [self._transformations.index(turn) for turn in ROTATIONS]
        found = [
            discriminator(apply_all(reduced, ROTATIONS))[:, classes].float()
            for discriminator, reduced in zip(self.discriminators, self._reduced(images), strict=True)
        ]
        return [logits.view(len(ROTATIONS), -1, len(ROTATIONS), *logits.shape[2:]) for logits in found]

    def learn_usual(self, images: Tensor) -> None:
        """Take mean and spread of each scale's normality from images that are good, uint8 (B, S, S, 3)."""
        found = torch.cat([self.normality(self.votes(image)) for image in images.split(1)])  # type: ignore[no-untyped-call]
        self.usual.copy_(found.mean(dim=0))
        self.spread.copy_(found.std(dim=0, correction=0))

    def _placed(self, number: int, votes: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Mean vote at each pixel of the input, (B, 1, S, S). Args: votes (M, B, h, h) of this scale."""
        kept = torch.stack([votes[i] for i in self._kept])
        origin = self.get_buffer(f"undone_{number}").unsqueeze(1).expand(-1, votes.shape[1], -1)
        mean = kept.flatten(2).gather(2, origin).mean(dim=0)
        full = F.pad(mean.view(-1, 1, *votes.shape[2:]), (MARGIN,) * 4, mode="replicate")
        return F.interpolate(full, size_hw, mode="bilinear", align_corners=False)


def lowest_mean(votes: Tensor, share: float) -> Tensor:
    """Mean of the lowest share of the patches, one at least. Args: votes (M, B, h, w). Returns: (M, B)."""
    flat = votes.flatten(2)
    count = max(1, math.floor(share * flat.shape[2] + 1e-9))
    if count == flat.shape[2]:
        return flat.mean(dim=2)
    return flat.topk(count, dim=2, largest=False).values.mean(dim=2)


def surprise(normality: Tensor) -> Tensor:
    """From normality in 0..1 to an anomaly, 0 or more: its negative logarithm.

    The order is that of 1 - normality. But that ends at 1, near which the scores of all images that were not trained on
    crowd, and a threshold that is to lie some way above good ones' would lie above all that can be.
    """
    return -normality.clamp(_LEAST_NORMALITY, 1.0).log()


def restore_votes(tensors: dict[str, Tensor], input_side: int) -> TransformationVotes:
    """The module again, from its state dict. Raises: ValueError, KeyError, RuntimeError: it is none of this module."""
    discriminators = []
    for number in range(len(tensors["sides"])):
        first, last = (tensors[f"discriminators.{number}.body.{layer}.weight"] for layer in (0, 12))
        discriminators.append(Discriminator(len(last), len(first)))
    module = TransformationVotes(
        discriminators,
        from_tensor(tensors["rows"]),
        tensors["sides"].tolist(),
        input_side,
        float(tensors["lowest_share"]),
    )
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()


def told_turns(module: TransformationVotes, images: Tensor) -> float:
    """How well the quarter turns of images are told apart: near 1 if all are, .25 if none is.

    The mean, over images, turns and scales, of the vote for the right one of the four where it is surest: patches of
    plain background look the same however they are turned, and that is no fault of the part.

    Args: images uint8 (B, S, S, 3), of the training.
    """
    means = []
    for logits in module.turn_logits(images):
        shares = F.softmax(logits, dim=2)  # (turns, B, turns, h, h)
        right = torch.stack([shares[turn, :, turn].flatten(1) for turn in range(len(ROTATIONS))])
        count = max(1, round(_SUREST * right.shape[2]))
        means.append(right.topk(count, dim=2).values.mean())
    return float(torch.stack(means).mean())
