"""What to train on and how: what the user said, and what the good images say where the user did not."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from inspectad.errors import UsageError
from inspectad.foreground import part_share
from inspectad.images import choose_input_size
from inspectad.methods import METHODS
from inspectad.nn.backbone import load_backbone
from inspectad.nn.pose_evidence import examine_pose
from inspectad.nn.settings import TrainSettings
from inspectad.pose import FIXED, Pose, pose_named
from inspectad.progress import Step, silent
from inspectad.training_data import ReadableImage, TrainingImages, spread

MOST_EPOCHS: Final = 10000
_SHARES: Final = 16  # good images whose part is measured
SMALL_PART: Final = 0.25
SMALL_PART_SCALE: Final = 1.5
"""Parts at any angle that fill no more than `SMALL_PART` of the image get an input so many times as long, unless the
user chose its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What to train on and how.

    Attributes:
        masks: folder of truth masks of the defects, named like them.
        size_px: longer side of the network's input; None chooses it from the images.
        false_reject_rate: share of good images that may be called NG.
        pose: in which ways parts lie, a name of `inspectad.pose.POSES`; ``auto`` asks the good images.
        epochs: how long a method that trains a network does so; None for its own.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    good: Path
    defects: Path | None = None
    output: Path = Path("model")
    masks: Path | None = None
    method: str = "memory_bank"
    size_px: int | None = None
    backbone: str = "efficientnet_lite0"
    backbone_weights: Path | None = None
    false_reject_rate: float = 0.1
    pose: str = "auto"
    epochs: int | None = None
    device: str = "auto"
    seed: int = 0


def check_config(config: TrainConfig) -> None:
    """Raises: UsageError: settings that make no sense, whatever the images are."""
    if config.method not in METHODS:
        raise UsageError(f"no method named {config.method!r}; there are: {', '.join(METHODS)}")
    if not 0 < config.false_reject_rate < 0.5:
        raise UsageError(f"--false-reject-rate {config.false_reject_rate}: give a share between 0 and 0.5, as 0.05")
    if config.size_px is not None and not 64 <= config.size_px <= 2048:
        raise UsageError(f"--size {config.size_px}: give the longer side in pixels, from 64 to 2048")
    if config.epochs is not None and not METHODS[config.method].has_epochs:
        raise UsageError(f"--epochs {config.epochs}: {config.method} does not train in epochs; leave the option out")
    if config.epochs is not None and not 1 <= config.epochs <= MOST_EPOCHS:
        raise UsageError(f"--epochs {config.epochs}: give a number from 1 to {MOST_EPOCHS}")
    if config.masks is not None and not METHODS[config.method].learns_masks:
        raise UsageError(f"--masks {config.masks}: {config.method} has no use for masks; leave the option out")
    if config.masks is not None and config.defects is None:
        raise UsageError(f"--masks {config.masks}: masks say where defects are; give the folder of defects too")
    if config.pose != "auto":
        pose_named(config.pose, 1)  # it refuses what is no name
    if config.output.exists() and not config.output.is_dir():
        raise UsageError(f"{config.output}: is a file; give a folder for the model with -o")


def choose_settings(
    config: TrainConfig, good: Sequence[ReadableImage], full_scale: int, say: Step = silent
) -> tuple[TrainSettings, dict[str, str]]:
    """Input size and pose, from the good images where the user did not say.

    Small parts at any angle get a larger input: turning blurs the thin lines that a small one just about shows.

    Args: full_scale: white level of the good images.
    Returns: the settings, and what they rest on, for people.
    """
    sizes_hw = [image.size_hw for image in good]
    settings = TrainSettings(
        input_size_hw=choose_input_size(sizes_hw, config.size_px),
        backbone=config.backbone,
        backbone_weights=config.backbone_weights,
        epochs=config.epochs,
        seed=config.seed,
        device=torch_device(config.device),
    )
    # At the usual size, whatever size was asked for: it suffices, and was measured.
    images = TrainingImages(good, choose_input_size(sizes_hw), full_scale)
    pose, reason = _choose_pose(config, images, settings, say)
    reasons = {"pose": str(pose), "pose from": reason}
    if pose.turns > 1 and config.size_px is None:
        shares = [share for i in spread(len(images), _SHARES) if (share := part_share(images[i])) is not None]
        if shares and np.median(shares) <= SMALL_PART:
            settings = dataclasses.replace(settings, input_size_hw=choose_input_size(sizes_hw, scale=SMALL_PART_SCALE))
            reasons["input"] = f"enlarged: parts at any angle that fill {np.median(shares):.0%} of the image"
    return dataclasses.replace(settings, pose=pose), reasons


def _choose_pose(config: TrainConfig, good: TrainingImages, settings: TrainSettings, say: Step) -> tuple[Pose, str]:
    """The pose that the user or the good images name, and what it rests on."""
    if config.pose != "auto":
        return pose_named(config.pose, len(good)), f"the option {config.pose}"
    if len(good) == 1:
        return FIXED, "one good image cannot tell how others lie: say --pose any if at any angle"
    backbone, _ = load_backbone(settings.backbone, settings.backbone_weights)
    evidence = examine_pose(
        good, backbone.to(settings.device), settings.device, lambda n, of: say("looking how parts lie", n, of)
    )
    return evidence.pose(len(good)), str(evidence)


def torch_device(name: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` to what torch can use here. Raises: UsageError when there is no CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"no device named {name!r}; there are: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here; 'inspectad doctor' says why")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
