"""UTAD: an impression without the defect, the detail restored onto it, and the difference to the image.

Source: Liu, Li, Zhang, Wei, Yang & Ren, "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671, 2021) and the
networks and configurations of its released code; its body, and so its figures, could not be read, and none is quoted.
Trained from nothing on good images of one product, in two stages (`inspectad.nn.fit_impression`,
`inspectad.nn.fit_expert`); each of those says what is published and what is ours. A pretrained backbone measures how
the image differs from what they make of it (`inspectad.nn.two_stage`). What it has over other methods is that
impression and reconstruction are pictures that people can look at (``inspectad explain``); a memory bank on the same
backbone finds more, in a fraction of the time (README).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from inspectad.checkpoint import fit_name
from inspectad.methods.set_apart import set_apart, shifted
from inspectad.nn.backbone import build_backbone, load_backbone
from inspectad.nn.fit_expert import RATE, ExpertPlan, ExpertStage
from inspectad.nn.fit_impression import GoodImages, ImpressionStage
from inspectad.nn.fitted import Fitted
from inspectad.nn.inception import ImpressionNet
from inspectad.nn.settings import TrainSettings
from inspectad.nn.stages import run_stage
from inspectad.nn.two_stage import FAILED_DB, TwoStage, restore_two_stage
from inspectad.nn.two_stage_pictures import COLUMNS, draw_impressions, draw_stages
from inspectad.nn.views import Augmentation
from inspectad.pose import Pose
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import TrainingImages

SIDE: Final = 256
CPU_SIDE: Final = 128
"""Of the input, in pixels: published, and where there is no GPU, a quarter of the work."""
SIDE_MULTIPLE: Final = 64
LEAST_CONTRAST: Final = 2.0
"""Good images whose pixels differ by less than this from their mean (0..255, on average) show nothing."""
MAX_FOLDS: Final = 2
"""Calibration trains so many times again, each as long as the model itself."""
FEW_STEPS: Final = 50
FEW_IMAGES: Final = 10
LEAST_APART: Final = 2
"""Good images that teach nothing, where any do: one alone has no spread."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and on how much each stage learns.

    Attributes:
        steps: of stage 1 and of stage 2.
        batch: views in a step of each.
        rate: learning rate of stage 2.
    """

    steps: tuple[int, int]
    batch: tuple[int, int]
    rate: float = RATE


SCHEDULES: Final = {
    "cpu": Schedule((200, 100), (8, 1)),
    "cuda": Schedule((1000, 3000), (32, 1)),
}
"""By device. Published: 400 epochs of batches of 128, which for 200 images are 800 steps; 500,000 steps of one image at
most, of which our specification makes 20,000."""


class UTADTrainer:
    """Trains both stages from nothing for each subset of the images that it is given; defects teach nothing."""

    def __init__(
        self,
        good: TrainingImages,
        defects: TrainingImages,  # noqa: ARG002
        settings: TrainSettings,
        *,
        schedule: Schedule | None = None,
    ) -> None:
        """Args: good: square images of ``settings.input_size_hw``, sides multiples of `SIDE_MULTIPLE`."""
        self._good, self._settings = good, settings
        self._schedule = schedule or SCHEDULES[settings.device]
        if settings.steps is not None:
            self._schedule = dataclasses.replace(self._schedule, steps=(settings.steps, settings.steps))
        self._device = torch.device(settings.device)
        self._backbone = load_backbone(settings.backbone, settings.backbone_weights)[0].to(self._device)
        self._fitted: dict[tuple[int, ...], Fitted] = {}  # calibration asks again, with other defects

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:  # noqa: ARG002
        """A detector of these images; the same images, settings and seed give the same one on the same CPU.

        A training that was stopped goes on in its stage at its last checkpoint, if ``settings.checkpoints`` has one.

        Raises: TrainingError: a loss is no longer a number.
        """
        key = tuple(good)
        if key not in self._fitted:
            self._fitted[key] = self._fit(key, say)
        return self._fitted[key]

    def _fit(self, good: tuple[int, ...], say: Step) -> Fitted:
        watched = set_apart(good, LEAST_APART)
        taught = [i for i in good if i not in watched]
        images = [self._good[i] for i in taught]
        is_whole = len(good) == len(self._good)
        name = fit_name(good)
        module, losses = self._stages(images, name, say, shows=is_whole)
        unseen = [self._good[i] for i in watched] or shifted(images, self._settings.seed)
        say("measuring what is usual", 0, 1)
        fidelity = module.learn_usual((self._pixels([i]) for i in images), [self._pixels([i]) for i in unseen])
        module.to(memory_format=torch.contiguous_format)
        shown = draw_stages(module, self._pixels(images[:COLUMNS])) if is_whole else None
        by = f"{len(watched)} good images that taught nothing" if watched else "shifted copies of good images"
        warnings = self._warnings(len(good), images, by, fidelity) if is_whole else ()
        return Fitted(module, self._notes(losses, by, fidelity), warnings, shown)

    def _stages(
        self, images: Sequence[ByteArray], name: str, say: Step, *, shows: bool
    ) -> tuple[TwoStage, list[tuple[str, float]]]:
        """Both stages trained, one after the other. Args: shows: pictures of them are wanted meanwhile."""
        settings, plan, device = self._settings, self._schedule, self._device
        views = GoodImages(images, augmentation_of(settings.pose), device, settings.seed)
        some = self._pixels(images[:COLUMNS])
        show = settings.show if shows else None
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            first = ImpressionStage(views, plan.steps[0], plan.batch[0], device, settings.seed)

            def early() -> None:
                if show is not None:
                    first.net.eval()
                    show(draw_impressions(first.net, some))
                    first.net.train()

            losses = [run_stage(first, settings.checkpoints, f"{name}-1", say, early)]
            expert = ExpertPlan(plan.steps[1], plan.batch[1], settings.seed, plan.rate)
            second = ExpertStage(views, first.net, expert, device)
            module = self._module(first.net, second, len(images))

            def late() -> None:
                if show is not None:
                    show(draw_stages(module, some))

            losses.append(run_stage(second, settings.checkpoints, f"{name}-2", say, late))
        names = [f"{stage.title}: {loss}" for stage in (first, second) for loss in stage.loss_names]
        values = [value for row in losses for value in row]
        return module.requires_grad_(False).eval(), list(zip(names, values, strict=True))

    def _module(self, impressions: ImpressionNet, expert: ExpertStage, images: int) -> TwoStage:
        side = self._settings.input_size_hw[0]
        generators = expert.of_images, expert.of_impressions
        return TwoStage(impressions, *generators, self._backbone, side, images).to(self._device)

    def _pixels(self, images: Sequence[ByteArray]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self._device)

    def _notes(self, losses: Sequence[tuple[str, float]], by: str, fidelity: tuple[float, float]) -> dict[str, str]:
        """How the model was trained, for people. Args: by: what standardises."""
        plan = self._schedule
        kind = augmentation_of(self._settings.pose)
        return {
            "steps": f"{plan.steps[0]} of {plan.batch[0]} views for impressions, "
            f"{plan.steps[1]} of {plan.batch[1]} for detail",
            "views": f"crops of {kind.least_crop:.0%} of the area at least, "
            f"mirrored {', '.join(kind.mirrors) or 'never'}, turned by {kind.degrees:g} degrees at most",
            "standardised by": by,
            "PSNR of these": f"impression {fidelity[0]:.1f} dB, restored {fidelity[1]:.1f} dB",
            **{f"final loss, {name}": f"{value:.4g}" for name, value in losses},
        }

    def _warnings(
        self, good: int, images: Sequence[ByteArray], by: str, fidelity: tuple[float, float]
    ) -> tuple[str, ...]:
        warnings = []
        if fidelity[1] <= fidelity[0] - FAILED_DB:
            warnings.append(
                f"what the second stage restores is farther from {by} (PSNR {fidelity[1]:.1f} dB) than the impressions "
                f"of the first are ({fidelity[0]:.1f} dB): its training has failed, and only impressions count in "
                "scores and maps. Try another --seed, or other --steps"
            )
        if min(self._schedule.steps) < FEW_STEPS:
            warnings.append(
                f"--steps {min(self._schedule.steps)}: too few to learn much; give {FEW_STEPS} at least, without the "
                f"option a GPU takes {SCHEDULES['cuda'].steps[0]} and {SCHEDULES['cuda'].steps[1]}"
            )
        if good < FEW_IMAGES:
            warnings.append(
                f"{good} good images: this method learns from nothing what good looks like, and needs more "
                f"({FEW_IMAGES} at least); --method memory_bank does with one"
            )
        contrast = float(np.mean([np.abs(image - image.mean(axis=(0, 1))).mean() for image in images]))
        if contrast < LEAST_CONTRAST:
            warnings.append(
                "the good images are almost even, so there is nothing to reconstruct: whatever is not is a defect; "
                "check that they show the part, or use --method memory_bank"
            )
        return tuple(warnings)


def augmentation_of(pose: Pose) -> Augmentation:
    """Crops always; mirrored and turned only as parts lie."""
    return Augmentation(0.8, pose.mirrors, 180.0 if pose.turns > 1 else 0.0, 0.0)


def restore_utad(tensors: dict[str, Tensor], settings: TrainSettings) -> TwoStage:
    """The module that ``fit`` returned, from its state dict."""
    return restore_two_stage(tensors, build_backbone(settings.backbone))
