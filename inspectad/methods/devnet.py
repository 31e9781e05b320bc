"""Deviation network: learns from good images and a handful of labelled defects to score every patch of an image.

Source: Pang, Ding, Shen & van den Hengel, "Explainable Deep Few-shot Anomaly Detection with Deviation Networks" (arXiv
2108.00462, 2021), and their released code, which differs in places and is followed where it does:

- a pretrained backbone, all layers of it fine-tuned, and a 1 x 1 convolution that gives each patch a score;
- the image at two sizes, by the same weights: as it is, and reduced to half its sides by taking every second pixel;
- at either size, the mean of the tenth of the patches that deviate most; the image score is the mean of the two;
- scores of good images are pulled to the mean of N(0, 1), those of defects pushed 5 standard deviations above it;
- batches are half good images, half defects, all turned at random; Adam, gradients clipped to norm 1.

Different here:

- The input keeps the project's resize, which keeps the aspect ratio (``settings.input_size_hw``), not a square of 448.
- The embedded backbone ends at stride 16, so its patches are half as large; torchvision's have stride 32, as theirs.
- The head starts at a tenth of the usual random weights (`HEAD_SCALE`) and learns ten times as fast as the backbone:
  on a CPU training has to be short.
- What comes in from outside when an image is turned is reflected, not black; and every second image is mirrored.
- The anomaly map is computed forwards, from the patch scores, so that it is part of the exported graph: enlarged, and
  smoothed. The authors' map of input gradients is what ``inspectad explain`` draws.
- The threshold is calibrated on held-out images. That good images score below 1.645 holds for the ones it was trained
  on, not for new ones.
- Training stops before its last epoch when it has settled (`inspectad.nn.fit_deviation`).
- Calibration leaves defects out too. When there is only one, the model that has to do without it learns from good
  images with a patch of another one pasted in; the shipped model never does.

Published (ImageNet ResNet-18, 10 defects, image AUROC; Ding, Pang & Shen, CVPR 2022): MVTec AD .945, ELPV .846; with
one defect .794 and .514. With a single defect, or defects unlike those that it was shown, `memory_bank` is the safer
choice. Measured here: README, "What was measured".
"""

import copy
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.heatmap import render_relevance
from inspectad.manifest import Calibration
from inspectad.nn.backbone import BACKBONES, build_backbone, load_backbone
from inspectad.nn.balanced import BalancedBatches
from inspectad.nn.deviation import patch_anomaly, top_mean
from inspectad.nn.fit_deviation import FitReport, fit_deviation, held_back, schedule_for
from inspectad.nn.fitted import Fitted
from inspectad.nn.input_gradient import input_gradient, relevance
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import TrainingImages

LEVELS: Final = 2
"""Sizes that an image is seen at, each half the sides of the one before."""
BLURS: Final = 56.0
"""The map is smoothed by a Gaussian whose sigma is the image's mean side over this: 8 of 448 pixels, a quarter of a
patch. Without it the corners of the enlarged patches show."""
HEAD_SCALE: Final = 0.1
"""Of the usual random weights that the head starts from. At full size an untrained head of the embedded backbone gives
good images 3 already, and a short training is spent on unlearning that. Solar cells, 10 defects, one draw, 40 steps:
image AUROC .838 on cells kept back from training, .680 with 1."""
MAX_FOLDS: Final = 3
"""Calibration trains so many times again, each as long as the model itself."""


class DevNet(nn.Module):
    """The detector: backbone, patch scores at two sizes, their pooling and the map in one graph."""

    def __init__(
        self, backbone: nn.Module, deepest: int, head: nn.Conv2d, input_size_hw: tuple[int, int], *, abs_topk: bool
    ) -> None:
        """Args: deepest: which of the backbone's maps is scored; head: 1 x 1, to one channel; abs_topk: as in
        `inspectad.nn.deviation.patch_anomaly`.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.blur = GaussianBlur(math.sqrt(input_size_hw[0] * input_size_hw[1]) / BLURS)
        self.register_buffer("abs_topk", torch.tensor(abs_topk))  # travels with the weights
        self._deepest = deepest
        self._is_abs = abs_topk

    def patch_scores(self, pixels: Tensor) -> list[Tensor]:
        """Unbounded, negative ones too. Args: pixels float32 (B, 3, H, W) in 0..255. Returns: (B, 1, h, w) a size."""
        # Every second pixel is what nearest-neighbour resizing to half the sides takes, where these are even.
        sizes = (pixels[:, :, :: 2**level, :: 2**level] for level in range(LEVELS))
        return [self.head(self.backbone(image)[self._deepest]) for image in sizes]

    def score(self, pixels: Tensor) -> Tensor:
        """The score that is trained: (B,), negative where signed patch scores are. Args: as `patch_scores`."""
        ranked = [scores.abs() if self._is_abs else scores for scores in self.patch_scores(pixels)]
        return torch.stack([top_mean(scores) for scores in ranked]).mean(dim=0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: score (B,), anomaly_map (B, H, W), float32, one unit, >= 0."""
        pixels = images.permute(0, 3, 1, 2).float()
        maps = [patch_anomaly(scores, abs_topk=self._is_abs) for scores in self.patch_scores(pixels)]
        score = torch.stack([top_mean(level) for level in maps]).mean(dim=0)
        size_hw = (images.shape[1], images.shape[2])
        enlarged = [F.interpolate(level, size_hw, mode="bilinear", align_corners=False) for level in maps]
        return score, self.blur(torch.stack(enlarged).mean(dim=0)).squeeze(1)


class DevNetTrainer:
    """Fine-tunes a copy of the backbone for each subset of the images that it is given."""

    def __init__(
        self, good: TrainingImages, defects: TrainingImages, settings: TrainSettings, *, abs_topk: bool = True
    ) -> None:
        self._good = good
        self._defects = defects
        self._settings = settings
        self._abs_topk = abs_topk
        self._schedule = schedule_for(settings.device, settings.epochs)
        self._backbone, _ = load_backbone(settings.backbone, settings.backbone_weights, deep=True)

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:
        """A network of these images; the same images, settings and seed give the same one on the same machine.

        Raises: TrainingError: the loss is no longer a number.
        """
        module = self._untrained().to(self._settings.device)
        module.to(memory_format=torch.channels_last)  # a third faster on CPUs
        module.backbone.requires_grad_(True)
        watched, taught = held_back(good)
        seed = self._settings.seed
        batches = BalancedBatches(self._good, taught, self._defects, defects, np.random.default_rng(seed))
        images = [self._good[i] for i in watched]
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            report = fit_deviation(module, module.head, module.score, batches, images, self._schedule, seed, say)
        module.to(memory_format=torch.contiguous_format).requires_grad_(False)
        return Fitted(module.eval(), self._notes(report))

    def _notes(self, report: FitReport) -> dict[str, str]:
        """How the model was trained, for people."""
        plan = self._schedule
        described = {
            "abs_topk": "|score| of patches" if self._abs_topk else "signed score of patches",
            "batch": f"{plan.each} good, {plan.each} defects",
            "learning_rate": f"{plan.learning_rate:g}, of the head {plan.head_rate * plan.learning_rate:g}; "
            f"a tenth after every {plan.decay_every} epochs",
        }
        return {**described, **report.describe()}

    def _untrained(self) -> DevNet:
        """The pretrained backbone with a head of random weights, which depend on the seed alone."""
        backbone = copy.deepcopy(self._backbone)
        deepest = BACKBONES[self._settings.backbone].deepest
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self._settings.seed)
            channels = backbone(torch.zeros(1, 3, 64, 64))[deepest].shape[1]
            head = nn.Conv2d(channels, 1, 1)
            for parameter in head.parameters():
                parameter.mul_(HEAD_SCALE)
        return DevNet(backbone, deepest, head, self._settings.input_size_hw, abs_topk=self._abs_topk)


def restore_devnet(tensors: dict[str, Tensor], settings: TrainSettings) -> DevNet:
    """The module that ``fit`` returned, from its state dict."""
    module = DevNet(
        build_backbone(settings.backbone, deep=True),
        BACKBONES[settings.backbone].deepest,
        nn.Conv2d(tensors["head.weight"].shape[1], 1, 1),
        settings.input_size_hw,
        abs_topk=bool(tensors["abs_topk"]),
    )
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()


def explain_devnet(module: nn.Module, image: ByteArray, source: ByteArray, _: Calibration) -> ByteArray:
    """Which pixels the image score depends on most, drawn over the source.

    Args: module of ``fit``; image uint8 (H, W, 3) at its input size; source uint8 (h, w, 3).
    Returns: uint8 RGB (h, w, 3).
    """
    assert isinstance(module, DevNet)
    return render_relevance(source, relevance(input_gradient(module.score, image, module.blur.kernel.device)))
