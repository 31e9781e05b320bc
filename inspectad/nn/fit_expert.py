"""Stage 2 of UTAD: Expert-Net learns to put an image's detail onto its impression, and the other way round.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671), weights of the released
configuration: 10 L1 of either image again, 1 content again, 1 detail again, 1 LSGAN; Adam (.5, .999), 1e-4, decay of
weights 1e-4. Ours: impressions and images come in pairs, so there is 10 L1 of the restored image too; LSGAN counts a
tenth; far fewer steps, at rates that fall in the second half of them (`falling_share`); and no half precision, in which
tanh answers 1 from 3.5 on and has no gradient there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.adam_state import descend
from inspectad.nn.expert_net import DETAIL, Generator, as_signed, start
from inspectad.nn.fit_impression import GoodImages
from inspectad.nn.inception import ImpressionNet
from inspectad.nn.multi_scale_gan import (
    EXPERT_WIDTHS,
    MultiScaleDiscriminator,
    discriminator_loss,
    generator_loss,
)
from inspectad.nn.seeded import source
from inspectad.nn.stages import Stage

IMAGE_WEIGHT: Final = 10.0
PAIR_WEIGHT: Final = 10.0
CODE_WEIGHT: Final = 1.0
ADVERSARIAL_WEIGHT: Final = 0.1
"""Published: 1. With it what is restored became noise within 350 steps on a GPU (bottle, 128 px), and by 1,200 on
magnetic tile; and after 120 steps at 64 px it was 2.3 dB farther from the image than with this."""
RATE: Final = 1e-4
WEIGHT_DECAY: Final = 1e-4
_START, _LATER = 30, 1_000_000  # what random numbers are for: views of stage 2 are others than those of stage 1


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """How stage 2 learns. Attributes: batch: pairs in a step; rate: of learning."""

    steps: int
    batch: int
    seed: int
    rate: float = RATE


class ExpertStage(Stage):
    """Both generators and their discriminators at work."""

    title = "learning to restore detail"
    loss_names = ("image", "restored", "content", "detail", "adversarial", "discriminator")

    def __init__(self, images: GoodImages, impressions: ImpressionNet, plan: ExpertPlan, device: torch.device) -> None:
        """Args: impressions: of stage 1, which learns no more."""
        self.steps = plan.steps
        self._images, self._impressions, self._plan, self._device = images, impressions, plan, device
        self.of_images, self.of_impressions = Generator(), Generator()
        self._image_critic = MultiScaleDiscriminator(EXPERT_WIDTHS)
        self._impression_critic = MultiScaleDiscriminator(EXPERT_WIDTHS)
        self.networks: Mapping[str, nn.Module] = {
            "of_images": self.of_images,
            "of_impressions": self.of_impressions,
            "image_critic": self._image_critic,
            "impression_critic": self._impression_critic,
        }
        random = source(plan.seed, _START)
        for network in self.networks.values():
            start(network, random)
            network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimisers = {
            side: torch.optim.Adam(
                [p for name in names for p in self.networks[name].parameters()],
                plan.rate,
                (0.5, 0.999),
                weight_decay=WEIGHT_DECAY,
                fused=True,
            )
            for side, names in (
                ("makers", ("of_images", "of_impressions")),
                ("critics", ("image_critic", "impression_critic")),
            )
        }

    def step(self, number: int) -> Tensor:
        for optimiser in self.optimisers.values():
            optimiser.param_groups[0]["lr"] = self._plan.rate * falling_share(number, self.steps)
        image, impression, random = self._pairs(number)
        of_images, of_impressions = self.of_images, self.of_impressions
        content_x, detail_x = of_images.content(image), of_images.detail(image)
        content_m, detail_m = of_impressions.content(impression), of_impressions.detail(impression)
        drawn = torch.randn((len(image), DETAIL), generator=random).to(self._device)
        # All that one decoder draws, in one go.
        again_x, restored = of_images.decode(torch.cat([content_x, content_m]), torch.cat([detail_x, detail_x])).chunk(
            2
        )
        again_m, naive = of_impressions.decode(torch.cat([content_m, content_x]), torch.cat([detail_m, drawn])).chunk(2)
        critics = discriminator_loss(self._image_critic(image), self._image_critic(restored.detach()))
        critics = critics + discriminator_loss(
            self._impression_critic(impression), self._impression_critic(naive.detach())
        )
        descend(self.optimisers["critics"], critics)
        pixel = F.l1_loss(again_x, image) + F.l1_loss(again_m, impression)
        paired = F.l1_loss(restored, image)
        contents = _apart(of_images.content(restored), content_m) + _apart(of_impressions.content(naive), content_x)
        details = _apart(of_images.detail(restored), detail_x) + _apart(of_impressions.detail(naive), drawn)
        for critic in (self._image_critic, self._impression_critic):
            critic.requires_grad_(False)
        fooled = generator_loss(self._image_critic(restored)) + generator_loss(self._impression_critic(naive))
        for critic in (self._image_critic, self._impression_critic):
            critic.requires_grad_(True)
        loss = IMAGE_WEIGHT * pixel + PAIR_WEIGHT * paired + CODE_WEIGHT * (contents + details)
        loss = loss + ADVERSARIAL_WEIGHT * fooled
        descend(self.optimisers["makers"], loss)
        return torch.stack([pixel, paired, contents, details, fooled, critics]).detach()

    def _pairs(self, number: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Images and their impressions: (B, 3, S, S) in -1..1 each.

        Whole ones: a part of an image has other statistics, which normalisation and detail are all about.
        """
        images, random = self._images.draw(_LATER + number, self._plan.batch)
        with torch.no_grad():
            impressions = self._impressions.decode(self._impressions.encode(images))
        return as_signed(images), as_signed(impressions), random

    def finish(self) -> None:
        """Nothing: normalisations are of each image."""


def falling_share(number: int, steps: int) -> float:
    """Of the learning rate, at step ``number``: all of it in the first half, then falling in a line to nothing.

    Published: halved every 50,000 of 500,000 steps. Steps of one image leave what the last few taught: on magnetic tile
    (128 px, 100 steps), PSNR outside the defect was 20.8 dB at a constant rate and 22.2 dB with this (README).
    """
    return min(1.0, 2 * (steps - number) / steps)


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean difference; both sides learn, as in MUNIT."""
    return F.l1_loss(found, wanted)
