"""HTDG: a pyramid of small networks, trained from nothing on one to ten good images, that tell transformations apart.

Source: Sheynin, Benaim & Wolf, "A Hierarchical Transformation-Discriminating Generative Model for Few Shot Anomaly
Detection" (ICCV 2021), its supplementary and the released code. At each of five sizes a discriminator learns which
transformation was applied to a training image, patch by patch, and which patches a generator made; the generator learns
to make patches that are recognised as transformed training images. At inspection the discriminators vote: where a patch
is like the training images, the transformation is recognised.

Different here:

- Transformations are exact operations on whole pixels, and the four quarter turns are the default: a thirteenth of the
  work, and published as the better choice on MVTec AD.
- Images are never enhanced (their training applies CLAHE, their test does not).
- On a CPU a scale learns for fewer steps (`STEPS`).
- Scales are weighed by altered copies of the training images, and there is a map (`inspectad.nn.transformation_votes`).

Published, one good image, 4 turns (image AUROC): MVTec AD .756, bottle .850, pill .665; FashionMNIST .839, all
transformations. A memory bank on a pretrained backbone is much stronger wherever that is at hand and parts are larger
than its patches.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad.checkpoint import fit_name
from inspectad.errors import TrainingError
from inspectad.nn.altered_copies import altered_copies
from inspectad.nn.fit_pyramid import MOST_A_STEP, fit_pyramid
from inspectad.nn.fitted import Fitted
from inspectad.nn.patch_gan import RECEPTIVE_FIELD, sides_of
from inspectad.nn.pyramid import UPDATES, PyramidPlan, Scale
from inspectad.nn.pyramid_samples import draw_samples
from inspectad.nn.settings import TrainSettings
from inspectad.nn.transformation_votes import TransformationVotes, restore_votes, told_turns
from inspectad.nn.transformations import ALL, ROTATIONS
from inspectad.progress import Step, silent
from inspectad.training_data import TrainingImages

STEPS: Final = {"cpu": 50, "cuda": 1000}
"""Of each scale, by device; 1000 are published. 100 and 200 gained on one set of parts what they lost on another."""
FEW_STEPS: Final = 20
MAX_FOLDS: Final = 3
"""Calibration trains so many times again, each as long as the model itself."""
LOWEST_SHARES: Final = (0.05, 0.10)
"""Of the patches, those that count: from fewer than `SEVERAL` training images, and from more. Published for 1, and for
5 and 10."""
SEVERAL: Final = 5
CHANCE: Final = 0.5
"""Below this mean vote for the right quarter turn, of training images, turns are not told apart; guessing gives .25."""
_COPIES: Final = 32
TRANSFORMATIONS: Final = {"rotations": ROTATIONS, "all": ALL}


class HTDGTrainer:
    """Trains a pyramid from nothing for each subset of the images that it is given; defects teach nothing."""

    def __init__(
        self,
        good: TrainingImages,
        defects: TrainingImages,  # noqa: ARG002
        settings: TrainSettings,
        *,
        lowest_share: float | None = None,
        with_generator: bool = True,
        sides: tuple[int, ...] | None = None,
    ) -> None:
        """Args:
            good: square images of ``settings.input_size_hw``.
            lowest_share: of an image's patches, those that are least sure count; 1 for what is another thing as a
                whole; None for the usual share.
            with_generator: without one, discriminators are not told what is generated.
            sides: of the scales, coarsest first; None for the pyramid of the input.

        Raises: TrainingError: the input is not a square, or too small.
        """
        height, width = settings.input_size_hw
        if height != width:
            raise TrainingError(f"this method looks at square images, and cannot at {height} x {width} pixels")
        try:
            self._sides = sides or sides_of(height)
        except ValueError as error:
            raise TrainingError(f"input of {height} x {width} pixels: {error}") from error
        if min(self._sides) < RECEPTIVE_FIELD:
            raise TrainingError(f"a scale of {min(self._sides)} pixels is smaller than a patch of {RECEPTIVE_FIELD}")
        self._good, self._settings = good, settings
        self._fitted: dict[tuple[int, ...], Fitted] = {}  # calibration asks again, with other defects
        self._share = LOWEST_SHARES[len(good) >= SEVERAL] if lowest_share is None else lowest_share
        self._plan = PyramidPlan(
            sides=self._sides,
            transformations=TRANSFORMATIONS[settings.transformations],
            steps=settings.steps or STEPS[settings.device],
            seed=settings.seed,
            with_generator=with_generator,
        )

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:  # noqa: ARG002
        """A pyramid of these images; the same images, settings and seed give the same one on the same machine.

        A training that was stopped goes on at its last checkpoint, if ``settings.checkpoints`` has one.

        Raises: TrainingError: a loss is no longer a number.
        """
        key = tuple(good)
        if key not in self._fitted:
            self._fitted[key] = self._fit(key, say)
        return self._fitted[key]

    def _fit(self, good: tuple[int, ...], say: Step) -> Fitted:
        images = torch.from_numpy(np.stack([self._good[i] for i in good])).to(self._settings.device)
        scales = fit_pyramid(images, self._plan, self._settings.checkpoints, fit_name(good), say)
        module = self._module(scales).to(self._settings.device)
        with torch.inference_mode():
            module.learn_usual(altered_copies(images, _COPIES, self._settings.seed))
            told = told_turns(module, images[:MOST_A_STEP])
        module.to(memory_format=torch.contiguous_format)
        is_whole = len(good) == len(self._good)
        return Fitted(
            module,
            self._notes(module, scales, told),
            self._warnings(len(good), told) if is_whole else (),
            draw_samples(images, scales, self._plan) if is_whole and self._plan.with_generator else None,
        )

    def _module(self, scales: Sequence[Scale]) -> TransformationVotes:
        discriminators: list[nn.Module] = [scale.discriminator for scale in scales]
        module = TransformationVotes(
            discriminators, self._plan.transformations, self._sides, self._settings.input_size_hw[0], self._share
        )
        return module.requires_grad_(False).eval()

    def _notes(self, module: TransformationVotes, scales: Sequence[Scale], told: float) -> dict[str, str]:
        """How the model was trained, for people."""
        plan, last = self._plan, scales[-1].losses
        each = f"{UPDATES} of the discriminator, {UPDATES} of the generator" if plan.with_generator else f"{UPDATES}"
        losses = f"discriminator {last[0]:.3f}"
        if plan.with_generator:
            losses += f", generator {last[1]:.3f}, reconstruction {last[2]:.4f}"
        return {
            "steps": f"{plan.steps} a scale; updates in each: {each}",
            "transformations": f"{self._settings.transformations} ({len(plan.transformations)})",
            "scales": ", ".join(map(str, self._sides)) + " px",
            "weights of the scales": ", ".join(f"{w:.2f}" for w in module.weights().tolist()),
            "patches that count": f"the {self._share:.0%} that are least sure",
            "learning_rate": f"{plan.learning_rate:g}, the discriminator's a tenth of it from half of the steps on",
            "final losses": losses,
            "vote for the right quarter turn": f"{told:.2f} on training images, .25 by chance",
        }

    def _warnings(self, images: int, told: float) -> tuple[str, ...]:
        warnings = []
        if told < CHANCE:
            warnings.append(
                f"the networks cannot tell how the training images are turned (mean vote for the right quarter turn "
                f"{told:.2f}, .25 by chance): the part looks the same however it lies, or --steps were too few. "
                "This method does not suit a part that looks the same when it is turned; use --method memory_bank"
            )
        if images > MOST_A_STEP:
            warnings.append(
                f"{images} good images: this method is for 1 to {MOST_A_STEP}. Each step costs as much as with "
                f"{MOST_A_STEP}, which it draws at random, and calibration trains {min(images, MAX_FOLDS)} times "
                "again; with so many images --method memory_bank is faster and finds more"
            )
        if self._plan.steps < FEW_STEPS:
            warnings.append(
                f"--steps {self._plan.steps}: too few to learn much; give {FEW_STEPS} at least, "
                f"{STEPS['cuda']} are published"
            )
        return tuple(warnings)


def restore_htdg(tensors: dict[str, Tensor], settings: TrainSettings) -> TransformationVotes:
    """The module that ``fit`` returned, from its state dict."""
    return restore_votes(tensors, settings.input_size_hw[0])
