"""Training of a pyramid of generators and transformation-discriminating discriminators, scale by scale.

Source: Sheynin, Benaim & Wolf (ICCV 2021), eq. 1 to 5, and their released code: per scale, steps of 3 updates of the
discriminator and 3 of the generator, Adam, then the scale is frozen and the next one starts from its weights. Followed
but for these:

- more than `MOST_A_STEP` training images: each step sees as many, drawn at random;
- the discriminators' batch statistics are measured once more at the end (`inspectad.nn.batch_statistics`).

All random numbers follow from (seed, scale, step), so that a training that was stopped and goes on gives the same model
as one that was not.
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.checkpoint import Checkpoints
from inspectad.errors import TrainingError
from inspectad.nn.adam_state import adam_tensors, descend, restore_adam
from inspectad.nn.batch_statistics import settle
from inspectad.nn.patch_gan import Discriminator, Generator, start, width_of
from inspectad.nn.pyramid import UPDATES, PyramidPlan, Scale, generate, generated, noise, pyramid_images
from inspectad.nn.seeded import source
from inspectad.nn.transformations import apply_all
from inspectad.progress import Step, silent

MOST_A_STEP: Final = 10
"""Training images in a step; as many as the most that was published."""
RECONSTRUCTION: Final = 100.0
"""Weight of the mean squared error of the reconstruction in the generator's loss."""
AMPLITUDE: Final = 0.1
"""Of the noise, above the coarsest scale: times the mean error of the reconstruction so far."""
_SECONDS: Final = 60.0  # between checkpoints
_START, _FIXED, _STEP, _DRAW = range(4)  # what random numbers are for


def right_answers(plan: PyramidPlan, images: int, device: torch.device) -> Tensor:
    """(M * B,) the number of the transformation of each of the images of `apply_all`."""
    return torch.arange(len(plan.transformations), device=device).repeat_interleave(images)


def patch_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy over all patches. Args: logits (B, classes, h, w); answers (B,)."""
    return F.cross_entropy(logits.float(), answers[:, None, None].expand(-1, *logits.shape[-2:]))


def fit_pyramid(
    images: Tensor,
    plan: PyramidPlan,
    checkpoints: Checkpoints | None = None,
    name: str = "fit",
    say: Step = silent,
) -> list[Scale]:
    """Train all scales.

    Args:
        images: uint8 (N, S, S, 3), on the device that is to do the work.
        checkpoints: asked for what an earlier, stopped training left under ``name``.

    Raises: TrainingError: a loss is no longer a number; the last checkpoint stays.
    """
    reals = pyramid_images(images, plan.sides)
    scales: list[Scale] = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for number in range(len(plan.sides)):
            _ScaleTraining(number, reals, scales, plan, checkpoints, f"{name}-{number}", say).run()
    share = len(plan.sides) * plan.steps
    say("learning the pyramid", share, share, _detail(len(scales), plan, scales[-1].losses))
    return scales


class _ScaleTraining:
    """One scale at work; when it is done it is frozen and joins the others."""

    def __init__(
        self,
        number: int,
        reals: Sequence[Tensor],
        lower: list[Scale],
        plan: PyramidPlan,
        checkpoints: Checkpoints | None,
        name: str,
        say: Step,
    ) -> None:
        self._number, self._plan, self._lower, self._say = number, plan, lower, say
        self._checkpoints, self._name = checkpoints, name
        self._real = reals[number].contiguous(memory_format=torch.channels_last)
        self._device = self._real.device
        self._scale = self._started(self._real)
        self._adams = [
            torch.optim.Adam(network.parameters(), plan.learning_rate, betas=plan.betas, fused=True)
            for network in (self._scale.discriminator, self._scale.generator)
        ]

    def run(self) -> None:
        plan, scale = self._plan, self._scale
        self._resume()
        saved, begun_at = time.monotonic(), scale.step
        previous = self._reconstructed()
        while scale.step < plan.steps:
            self._say("learning the pyramid", *self._done(), _detail(self._number + 1, plan, scale.losses))
            scale.losses = self._checked(self._step(previous))
            scale.step += 1
            if scale.step < plan.steps and time.monotonic() - saved > _SECONDS:  # the end is saved settled
                self._save()
                saved = time.monotonic()
        scale.freeze()
        if begun_at < plan.steps:
            with torch.no_grad():
                settle(scale.discriminator, (apply_all(batch, plan.transformations) for batch in _batches(self._real)))
            self._save()
        self._lower.append(scale)

    def _started(self, real: Tensor) -> Scale:
        """Weights of the scale before where they fit, else random ones."""
        plan, number, side, device = self._plan, self._number, self._plan.sides[self._number], self._device
        if self._lower and width_of(number) == width_of(number - 1):
            networks: list[nn.Module] = [
                copy.deepcopy(self._lower[-1].discriminator),
                copy.deepcopy(self._lower[-1].generator),
            ]
        else:
            random = source(plan.seed, number, _START)
            with torch.random.fork_rng(devices=[]):  # torch's own start, which is replaced, draws numbers too
                networks = [Discriminator(plan.classes, width_of(number)), Generator(width_of(number))]
            for network in networks:
                start(network, random)
        for network in networks:
            network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            network.train().requires_grad_(True)
        discriminator, generator = networks
        assert isinstance(discriminator, Discriminator)
        assert isinstance(generator, Generator)
        fixed = noise(1, side, number, source(plan.seed, number, _FIXED)).to(device)
        amplitudes = torch.ones(len(real), device=device)
        if self._lower:
            amplitudes = AMPLITUDE * (real - self._reconstructed()).abs().mean(dim=(1, 2, 3))
        return Scale(side, discriminator, generator, amplitudes, fixed)

    def _reconstructed(self) -> Tensor:
        """Of the scales before, all training images, at this side: (N, 3, side, side)."""
        images = torch.arange(len(self._real), device=self._device)
        return generate(self._lower, self._plan.sides[self._number], images, None)

    def _step(self, previous: Tensor) -> Tensor:
        """Returns: the last losses of the discriminator, the generator and the reconstruction, (3,)."""
        plan, scale, device = self._plan, self._scale, self._device
        random = source(plan.seed, self._number, _STEP, scale.step)
        chosen = _chosen(len(self._real), random).to(device)
        real = self._real[chosen].contiguous(memory_format=torch.channels_last)
        answers = right_answers(plan, len(real), device)
        critic, maker = self._adams
        critic.param_groups[0]["lr"] = plan.rate_of(scale.step)
        scale.discriminator.requires_grad_(True)
        transformed = apply_all(real, plan.transformations)
        lost = torch.full((3,), math.nan, device=device)
        for _ in range(UPDATES):
            with fast(device):
                loss = patch_loss(scale.discriminator(transformed), answers)
                if plan.with_generator:
                    with torch.no_grad():
                        fake = apply_all(self._drawn(chosen, random), plan.transformations)
                    generated = torch.full_like(answers, len(plan.transformations))
                    loss = loss + patch_loss(scale.discriminator(fake), generated)
            descend(critic, loss)
            lost[0] = loss.detach()
        if not plan.with_generator:
            return lost
        scale.discriminator.requires_grad_(False)
        fixed = scale.amplitudes[chosen].view(-1, 1, 1, 1) * scale.fixed
        for _ in range(UPDATES):
            with fast(device):
                drawn = self._drawn(chosen, random)
                fooled = patch_loss(scale.discriminator(apply_all(drawn, plan.transformations)), answers)
                again = F.mse_loss(scale.generator(fixed, previous[chosen], chosen).float(), real)
            descend(maker, fooled + RECONSTRUCTION * again)
            lost[1], lost[2] = fooled.detach(), again.detach()
        return lost

    def _drawn(self, images: Tensor, random: torch.Generator) -> Tensor:
        """New images like these training images, (B, 3, side, side)."""
        scale = self._scale
        with torch.no_grad():
            previous = generate(self._lower, scale.side, images, random)
        return generated(scale, self._number, previous, images, random)

    def _checked(self, lost: Tensor) -> tuple[float, ...]:
        losses = tuple(lost.tolist())
        given = losses if self._plan.with_generator else losses[:1]
        names = ("the discriminator's", "the generator's", "the reconstruction's")
        broken = [f"{name} loss is {loss}" for name, loss in zip(names, given, strict=False) if not math.isfinite(loss)]
        if broken:
            raise TrainingError(
                f"scale {self._number + 1} of {len(self._plan.sides)}, step {self._scale.step + 1}: "
                f"{', '.join(broken)}; training came apart. Train again with another --seed; if it happens again, "
                "use --method memory_bank"
            )
        return losses

    def _done(self) -> tuple[int, int]:
        """Of the work, so that the time left is right: a step costs as the pixels times the squared width."""
        costs = [side**2 * width_of(number) ** 2 for number, side in enumerate(self._plan.sides)]
        done = sum(costs[: self._number]) + costs[self._number] * self._scale.step / self._plan.steps
        total = len(costs) * self._plan.steps
        return int(total * done / sum(costs)), total

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        scale = self._scale
        tensors = {"step": torch.tensor(scale.step), "losses": torch.tensor(scale.losses, dtype=torch.float64)}
        for prefix, network in (("discriminator.", scale.discriminator), ("generator.", scale.generator)):
            tensors |= {f"{prefix}{key}": value for key, value in network.state_dict().items()}
        if scale.step < self._plan.steps:
            tensors |= adam_tensors(self._adams[0], "critic.") | adam_tensors(self._adams[1], "maker.")
        self._checkpoints.save(self._name, tensors)

    def _resume(self) -> None:
        """Go on where a checkpoint of this scale was made, if there is one."""
        tensors = self._checkpoints.load(self._name) if self._checkpoints is not None else None
        if tensors is None:
            return
        scale = self._scale
        for prefix, network in (("discriminator.", scale.discriminator), ("generator.", scale.generator)):
            network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        restore_adam(self._adams[0], tensors, "critic.")
        restore_adam(self._adams[1], tensors, "maker.")
        scale.step = int(tensors["step"])
        scale.losses = tuple(tensors["losses"].tolist())


def _chosen(images: int, random: torch.Generator) -> Tensor:
    """Which training images a step sees, ascending."""
    if images <= MOST_A_STEP:
        return torch.arange(images)
    return torch.randperm(images, generator=random)[:MOST_A_STEP].sort().values


def _detail(number: int, plan: PyramidPlan, losses: Sequence[float]) -> str:
    """For people, while it goes."""
    told = [f"{n} {v:.3f}" for n, v in zip(("D", "G", "rec"), losses, strict=True) if math.isfinite(v)]
    return ", ".join([f"scale {number} of {len(plan.sides)}", *told])


def fast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Half precision where it is computed by units of its own: on GPUs, and on CPUs with AMX."""
    is_fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - there is no public one
    return torch.autocast(device.type, torch.bfloat16) if is_fast else contextlib.nullcontext()


def _batches(real: Tensor) -> Iterator[Tensor]:
    yield from real.chunk(math.ceil(len(real) / MOST_A_STEP))
