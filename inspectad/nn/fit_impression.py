"""Stage 1 of UTAD: IE-Net learns to draw impressions, against a discriminator, with a code that tells of the image.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671), weights and schedule of the released
configuration: 100 |x - m|^2 + .1 LSGAN + 1.5 local + .5 global information + .1 KL; Adam, 1e-3 and 1e-4, a tenth of it
from half of the steps on, a hundredth from seven eighths; the image alone for the first steps. Our default: Adam, and
batches of as many views as the device has room for.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.adam_state import descend
from inspectad.nn.batch_statistics import settle
from inspectad.nn.expert_net import start
from inspectad.nn.fit_pyramid import fast
from inspectad.nn.inception import ImpressionNet
from inspectad.nn.information import PairDiscriminator, divergence, information_losses
from inspectad.nn.multi_scale_gan import (
    IMPRESSION_WIDTHS,
    MultiScaleDiscriminator,
    discriminator_loss,
    generator_loss,
)
from inspectad.nn.seeded import source
from inspectad.nn.stages import Stage
from inspectad.nn.views import Augmentation, draw_matrices, view
from inspectad.records import ByteArray

PIXEL_WEIGHT: Final = 100.0
ADVERSARIAL_WEIGHT: Final = 0.1
LOCAL_WEIGHT: Final = 1.5
GLOBAL_WEIGHT: Final = 0.5
DIVERGENCE_WEIGHT: Final = 0.1
RATES: Final = (1e-3, 1e-4)
"""Learning rates of IE-Net and of its image discriminator."""
DECAYS: Final = (200 / 400, 350 / 400)
"""Shares of the steps after which the learning rates are a tenth of what they were."""
WARM_UP: Final = 2 / 400
"""Share of the steps for which the image alone counts."""
WEIGHT_DECAY: Final = 1e-4
_START, _STEP, _ROUND = 20, 21, 22  # what random numbers are for


class GoodImages:
    """Random views of good images, the same ones for the same step."""

    def __init__(self, images: Sequence[ByteArray], kind: Augmentation, device: torch.device, seed: int) -> None:
        """Args: images uint8 (S, S, 3) each."""
        self._images, self._kind, self._device, self._seed = images, kind, device, seed

    def draw(self, step: int, count: int) -> tuple[Tensor, torch.Generator]:
        """Returns: (count, 3, S, S) in 0..1, and the generator that they were drawn with. Images take turns, from step
        to step too: in a random order, all of them before one comes again."""
        random = source(self._seed, _STEP, step)
        stacked = np.stack([self._images[i] for i in self._turns(step * count, count)])
        pixels = torch.from_numpy(stacked).to(self._device).permute(0, 3, 1, 2).float()
        matrices = draw_matrices(count, (pixels.shape[2], pixels.shape[3]), self._kind, random)
        seen = view(pixels, matrices, self._kind, random) / 255
        return seen.contiguous(memory_format=torch.channels_last), random

    def _turns(self, first: int, count: int) -> list[int]:
        """Whose turns these are, counted from the start of the training."""
        everyone, found = len(self._images), list[int]()
        while len(found) < count:
            number, place = divmod(first + len(found), everyone)
            order = torch.randperm(everyone, generator=source(self._seed, _ROUND, number))
            found += order[place : place + count - len(found)].tolist()
        return found

    def batches(self, count: int) -> Iterator[Tensor]:
        """All images as they are, so many at a time at most, in parts of about one size: (B, 3, S, S) in 0..1 each."""
        for part in np.array_split(np.arange(len(self._images)), -(-len(self._images) // count)):
            pixels = torch.from_numpy(np.stack([self._images[i] for i in part])).to(self._device)
            yield pixels.permute(0, 3, 1, 2).float() / 255


class ImpressionStage(Stage):
    """IE-Net and its discriminators at work."""

    title = "learning impressions"
    loss_names = ("pixel", "adversarial", "local", "global", "KL", "discriminator")

    def __init__(self, images: GoodImages, steps: int, batch: int, device: torch.device, seed: int) -> None:
        """Args: batch: views in a step, 2 at least, since an image is told from another one."""
        self.steps = steps
        self._images, self._batch, self._device = images, max(2, batch), device
        self.net = ImpressionNet()
        self._critic = MultiScaleDiscriminator(IMPRESSION_WIDTHS, normalised=(1, 2))
        self._local, self._global = PairDiscriminator(), PairDiscriminator()
        self.networks: dict[str, nn.Module] = {
            "net": self.net,
            "critic": self._critic,
            "local": self._local,
            "global": self._global,
        }
        random = source(seed, _START)
        for network in self.networks.values():
            start(network, random)
            network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        # The information terms are minimised by both sides, so one optimiser has them all.
        cooperative = [p for name, n in self.networks.items() if name != "critic" for p in n.parameters()]
        self.optimisers = {
            "net": torch.optim.Adam(cooperative, RATES[0], weight_decay=WEIGHT_DECAY, fused=True),
            "critic": torch.optim.Adam(
                self._critic.parameters(), RATES[1], (0.5, 0.999), weight_decay=WEIGHT_DECAY, fused=True
            ),
        }

    def step(self, number: int) -> Tensor:
        for optimiser, rate in zip(self.optimisers.values(), RATES, strict=True):
            optimiser.param_groups[0]["lr"] = rate * rate_share(number, self.steps)
        images, random = self._images.draw(number, self._batch)
        with fast(self._device):
            latent = self.net.encode(images)
            impression = self.net.decode(latent).float()
            pixel = F.mse_loss(impression, images)
            if number < max(1, round(WARM_UP * self.steps)):
                descend(self.optimisers["net"], PIXEL_WEIGHT * pixel)
                return torch.stack([pixel.detach(), *[pixel.new_zeros(())] * 5])
            critic = discriminator_loss(self._critic(images), self._critic(impression.detach()))
            descend(self.optimisers["critic"], critic)
            mean, log_variance, reduced = self.net.describe(latent)
            mean, log_variance = mean.float(), log_variance.float().clamp(-10, 10)
            noise = torch.randn(mean.shape, generator=random).to(self._device)
            code = mean + noise * (0.5 * log_variance).exp()
            local, whole = information_losses(self._local, self._global, code, reduced)
            apart = divergence(mean, log_variance)
            self._critic.requires_grad_(False)
            fooled = generator_loss(self._critic(impression))
            self._critic.requires_grad_(True)
            loss = PIXEL_WEIGHT * pixel + ADVERSARIAL_WEIGHT * fooled
            loss = loss + LOCAL_WEIGHT * local + GLOBAL_WEIGHT * whole + DIVERGENCE_WEIGHT * apart
        descend(self.optimisers["net"], loss)
        return torch.stack([pixel, fooled, local, whole, apart, critic]).detach()

    def finish(self) -> None:
        with torch.no_grad():
            settle(_Whole(self.net), self._images.batches(self._batch))


class _Whole(nn.Module):
    """IE-Net from image to impression, as `settle` calls it."""

    def __init__(self, net: ImpressionNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.decode(self.net.encode(images))


def rate_share(step: int, steps: int) -> float:
    """Of the learning rate, at a step: a tenth after each of `DECAYS`."""
    share = 1.0
    for after in DECAYS:
        if step >= after * steps:
            share *= 0.1
    return share
