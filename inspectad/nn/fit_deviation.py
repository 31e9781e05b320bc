"""Training with the deviation loss: balanced batches, Adam, and an end when nothing changes any more."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad.errors import TrainingError
from inspectad.nn.balanced import BalancedBatches
from inspectad.nn.deviation import MARGIN, deviation_loss, draw_reference
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import spread

STEPS: Final = 20
"""Steps an epoch, as published, however many images there are."""
CPU_EPOCHS: Final = 6
"""On two cores, 224 px: 2 minutes. Calibration takes three times that again."""
PATIENCE: Final = 3
"""Training ends after so many epochs in which neither loss fell by `CHANGE`, counted once its own is below `LEARNT`: a
network that has not yet found what tells the defects may stay at `UNLEARNT` for a hundred steps before it does."""
CHANGE: Final = 0.01 * MARGIN
LEARNT: Final = 0.1 * MARGIN
UNLEARNT: Final = 0.5 * MARGIN
"""The loss when all images score 0."""
_MOST_NORM: Final = 1.0  # of the gradient
_WATCHED: Final = 16  # good images held back at most, a tenth of them at most


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train, and in which steps.

    Attributes:
        epochs: of `STEPS` steps each, at most.
        each: good images in a batch, and as many defects.
        decay_every: epochs after which the learning rate falls to a tenth.
        head_rate: the head learns so many times faster than the pretrained layers. Published 1; but in a short training
            it hardly leaves its random start. Rendered parts, 6 defects: loss 1.8 and image AUROC .91 after 80 steps
            with 10, loss 2.4 and .70 after 120 with 1 (scores of 0 for all images lose 2.5).
    """

    epochs: int
    each: int
    decay_every: int
    learning_rate: float = 2e-4
    head_rate: float = 10.0
    weight_decay: float = 1e-5


def schedule_for(device: str, epochs: int | None) -> Schedule:
    """The published schedule on a GPU, a shorter one on a CPU; with other epochs, the same curve over these.

    Published: 50 epochs of 24 + 24 images, the learning rate a tenth after every 10. Its last three rates move a weight
    by about .0004 in all, so the short one has the first two, and smaller batches.

    Args: device: torch's name; epochs: None for the device's own.
    """
    usual, each, rates = (CPU_EPOCHS, 8, 2) if device == "cpu" else (50, 24, 5)
    count = usual if epochs is None else epochs
    return Schedule(count, each, decay_every=max(1, round(count / rates)))


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a training went.

    Attributes:
        epochs: that were run, of ``most``.
        loss: mean over the steps of the last epoch.
        watched: held-back good images, and their mean score at the end.
    """

    epochs: int
    most: int
    loss: float
    watched: int
    watched_score: float

    def describe(self) -> dict[str, str]:
        """For people."""
        stopped = (
            "at the last epoch"
            if self.epochs == self.most
            else f"early: no loss fell by {CHANGE:g} in {PATIENCE} epochs"
        )
        caution = (
            "the network has hardly learnt to tell the defects from good images; give more --epochs or more defects"
        )
        held_back = f", {self.watched_score:.3f} the mean score of {self.watched} good images held back"
        return {
            "epochs": f"{self.epochs} of {self.most}, {STEPS} steps each",
            "stopped": stopped,
            "final loss": f"{self.loss:.3f}{held_back if self.watched else ''}",
            **({"caution": caution} if self.loss > 0.8 * UNLEARNT else {}),
        }


def held_back(good: Sequence[int]) -> tuple[list[int], list[int]]:
    """Good images that only tell when training has settled, evenly spread, and those that teach."""
    count = min(len(good) // 10, _WATCHED) if len(good) >= 20 else 0
    watched = {good[i] for i in spread(len(good), count)}
    return sorted(watched), [i for i in good if i not in watched]


def fit_deviation(
    module: nn.Module,
    head: nn.Module,
    score: Callable[[Tensor], Tensor],
    batches: BalancedBatches,
    watched: Sequence[ByteArray],
    schedule: Schedule,
    seed: int,
    say: Step = silent,
) -> FitReport:
    """Train a module in place; its last state is kept, as published.

    Args:
        head: the part of the module that is not pretrained.
        score: pixels float32 (B, 3, H, W) in 0..255 to scores (B,), with gradients to the module's parameters.
        watched: good images that do not teach, uint8 (H, W, 3); may be empty.
        say: told the steps done, of how many, and the losses.

    Raises: TrainingError: the loss is no longer a number.
    """
    # Batch normalisation keeps the statistics of pretraining (its weights learn): those of half-defective batches, few
    # images in turn, are not those of a line. Solar cells, 10 defects, one draw, 120 steps: image AUROC on cells kept
    # back from training .829, and .797 with the batches' own.
    module.eval()
    device = next(module.parameters()).device
    reference = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(_groups(module, head, schedule), weight_decay=schedule.weight_decay)
    decay = torch.optim.lr_scheduler.StepLR(adam, schedule.decay_every, 0.1)
    settled = _Settled()
    epoch, loss, good_score, detail = 0, math.nan, math.nan, ""
    while epoch < schedule.epochs and not settled.is_settled:
        losses = []
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            say("learning good from defective", step, schedule.epochs * STEPS, detail)
            images, is_defect = batches.draw(schedule.each)
            value = deviation_loss(score(_pixels(images, device)), is_defect.to(device), *draw_reference(reference))
            losses.append(_checked(value, step))
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), _MOST_NORM)
            adam.step()
            detail = f"loss {losses[-1]:.3f}"
        decay.step()
        epoch, loss = epoch + 1, float(np.mean(losses))
        good_score = _mean_score(score, watched, device)
        detail = f"loss {loss:.3f}" + (f", good images held back score {good_score:.2f}" if watched else "")
        settled.note(loss, good_score)
    module.zero_grad()  # frees the last gradients
    say("learning good from defective", schedule.epochs * STEPS, schedule.epochs * STEPS, detail)
    return FitReport(epoch, schedule.epochs, loss, len(watched), good_score)


def _groups(module: nn.Module, head: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """What Adam is given: the pretrained parameters and the head's, with their learning rates."""
    of_head = set(head.parameters())
    pretrained = [parameter for parameter in module.parameters() if parameter not in of_head]
    return [
        {"params": pretrained, "lr": schedule.learning_rate},
        {"params": list(head.parameters()), "lr": schedule.learning_rate * schedule.head_rate},
    ]


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W), which lies in memory as it was: channels last."""
    return images.to(device).permute(0, 3, 1, 2).float()


def _checked(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {step + 1}: training came apart. Train again with another --seed; "
            "if it happens again, check the file of --backbone-weights, or use --method memory_bank"
        )
    return value


def _mean_score(score: Callable[[Tensor], Tensor], images: Sequence[ByteArray], device: torch.device) -> float:
    """Of images as they are, one at a time; nan of none."""
    if not images:
        return math.nan
    with torch.no_grad():
        return float(np.mean([float(score(_pixels(torch.from_numpy(i[None]), device))) for i in images]))


class _Settled:
    """Remembers the lowest losses, and for how many epochs none of them has fallen any more."""

    def __init__(self) -> None:
        self._lowest = [math.inf, math.inf]
        self._idle = 0

    @property
    def is_settled(self) -> bool:
        return self._idle >= PATIENCE

    def note(self, *losses: float) -> None:
        """Args: the losses of an epoch, always the same ones, training's first; nan for one that is not measured."""
        if not losses[0] < LEARNT:
            return
        falls = [loss < low - CHANGE for loss, low in zip(losses, self._lowest, strict=True)]
        self._lowest = [min(low, loss) if loss == loss else low for loss, low in zip(losses, self._lowest, strict=True)]
        self._idle = 0 if any(falls) else self._idle + 1
