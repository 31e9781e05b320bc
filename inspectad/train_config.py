"""What to train on and how: what the user said, and what the good images say where the user did not."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from inspectad.errors import TrainingError, UsageError
from inspectad.foreground import part_share
from inspectad.images import choose_input_size
from inspectad.manifest import NO_BACKBONE
from inspectad.methods import METHODS
from inspectad.nn.backbone import load_backbone
from inspectad.nn.pose_evidence import examine_pose
from inspectad.nn.settings import PRETRAINED, SCRATCH, TrainSettings
from inspectad.pose import FIXED, Pose, pose_named
from inspectad.progress import Step, silent
from inspectad.tiles import AUTO, Tiling, parse_tile
from inspectad.training_data import ReadableImage, TrainingImages, spread
from inspectad.training_tiles import MOST_TEACHING

MOST_EPOCHS: Final = 10000
MOST_STEPS: Final = 100_000
TRANSFORMATIONS: Final = ("rotations", "all")
"""What ``train --transformations`` takes; the first is the one without it."""
STARTS: Final = (PRETRAINED, SCRATCH)
VIEWS: Final = ("inspection", "paper")
"""What ``train --init`` and ``--views`` take; the first of each is the one without it."""
SCRATCH_BACKBONE: Final = "resnet18"
"""What learns from nothing, unless the user names another one."""
DEFAULT_BACKBONE: Final = "efficientnet_lite0"
LEAST_SOURCE_PX: Final = 16
"""Methods that see a square of fixed side learn nothing from images whose shorter side is below this; the smallest sets
that they were published on have 28."""
_SHARES: Final = 16  # good images whose part is measured
FAR_LARGER: Final = 3.0
"""Images so many times as long as the network's input are tiled by ``--tile auto``."""
_NOT_ASKED: Final = "the method: that a part lies otherwise is what it notices"
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
        tile: longer side of a tile in source pixels; ``auto`` tiles images far larger than the network's input; None
            shows the network whole images.
        false_reject_rate: share of good images that may be called NG.
        pose: in which ways parts lie, a name of `inspectad.pose.POSES`; ``auto`` asks the good images.
        epochs: how long a method that trains a network does so; None for its own.
        steps: training steps of each scale or stage, of a method that has some; None for its own.
        transformations: a name of `TRANSFORMATIONS`, for a method that tells them apart; None for the first.
        init: a name of `STARTS`, views: of `VIEWS`, for a method that knows them; None for the first.
        samples: folder for a picture of what a generative method makes, of noise or of training images; None: none.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    good: Path
    defects: Path | None = None
    output: Path = Path("model")
    masks: Path | None = None
    method: str = "memory_bank"
    size_px: int | None = None
    tile: int | str | None = None
    backbone: str = DEFAULT_BACKBONE
    backbone_weights: Path | None = None
    false_reject_rate: float = 0.1
    pose: str = "auto"
    epochs: int | None = None
    steps: int | None = None
    transformations: str | None = None
    init: str | None = None
    views: str | None = None
    samples: Path | None = None
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
    _check_method(config)
    _check_tile(config)
    if config.masks is not None and not METHODS[config.method].learns_masks:
        raise UsageError(f"--masks {config.masks}: {config.method} has no use for masks; leave the option out")
    if config.masks is not None and config.defects is None:
        raise UsageError(f"--masks {config.masks}: masks say where defects are; give the folder of defects too")
    if config.pose != "auto":
        pose_named(config.pose, 1)  # it refuses what is no name
    if config.output.exists() and not config.output.is_dir():
        raise UsageError(f"{config.output}: is a file; give a folder for the model with -o")


def _check_method(config: TrainConfig) -> None:
    """Options that are of some methods only."""
    method, name = METHODS[config.method], config.method
    for option, value, is_known, why in (
        (
            "--size",
            config.size_px,
            method.square_side is None or method.cpu_side is not None,
            f"{name} sees a square of {method.square_side} pixels",
        ),
        ("--epochs", config.epochs, method.has_epochs, f"{name} does not train in epochs"),
        ("--steps", config.steps, method.has_steps, f"{name} has no scales or stages"),
        (
            "--transformations",
            config.transformations,
            method.tells_transformations,
            f"{name} does not tell transformations apart",
        ),
        ("--init", config.init, method.has_starts, f"{name} has one start"),
        ("--views", config.views, method.has_starts, f"{name} does not contrast views"),
        ("--samples", config.samples, method.has_samples, f"{name} generates no images"),
        ("--backbone", _given(config.backbone, DEFAULT_BACKBONE), method.has_backbone, f"{name} has no backbone"),
        ("--backbone-weights", config.backbone_weights, method.has_backbone, f"{name} has no backbone"),
        ("--pose", _given(config.pose, "auto"), method.asks_pose, f"{name} learns how parts lie from the images alone"),
    ):
        if value is not None and not is_known:
            raise UsageError(f"{option} {value}: {why}; leave the option out")
    for option, number, most in (("--epochs", config.epochs, MOST_EPOCHS), ("--steps", config.steps, MOST_STEPS)):
        if number is not None and not 1 <= number <= most:
            raise UsageError(f"{option} {number}: give a number from 1 to {most}")
    for option, named, known in (
        ("--transformations", config.transformations, TRANSFORMATIONS),
        ("--init", config.init, STARTS),
        ("--views", config.views, VIEWS),
    ):
        if named is not None and named not in known:
            raise UsageError(f"{option} {named}: there are: {', '.join(known)}")
    if config.init == SCRATCH and config.backbone_weights is not None:
        raise UsageError(
            f"--backbone-weights {config.backbone_weights}: --init {SCRATCH} starts from none; leave one out"
        )


def square_side(config: TrainConfig) -> int | None:
    """Of the network's input, in pixels, where that is a square whatever the images are; None where it is not."""
    method = METHODS[config.method]
    if method.square_side is None or method.cpu_side is None:
        return method.square_side
    if config.size_px is not None:
        return -(-config.size_px // method.side_multiple) * method.side_multiple
    return method.square_side if torch_device(config.device) == "cuda" else method.cpu_side


def _given(value: str, default: str) -> str | None:
    return None if value == default else value


def _check_tile(config: TrainConfig) -> None:
    if parse_tile(config.tile) is not None and METHODS[config.method].square_side is not None:
        raise UsageError(
            f"--tile {config.tile}: {config.method} trains for each image that teaches, and tiles would be hundreds; "
            "use --method memory_bank, or train on crops and give --tile to scan"
        )
    if parse_tile(config.tile) is not None and METHODS[config.method].needs_defects:
        raise UsageError(
            f"--tile {config.tile}: {config.method} learns from defects, and cannot know which tile of an image shows "
            "one; use --method memory_bank, or train on crops and give --tile to scan"
        )


def choose_tiling(config: TrainConfig, good: Sequence[ReadableImage]) -> tuple[Tiling | None, str]:
    """Whether the network sees tiles, and why.

    Tiles are square, or as narrow as the usual image is. Automatically they are cut where images are at least
    `FAR_LARGER` times as long as the network's input, and so large that no pixel is lost.
    """
    tile = parse_tile(config.tile)
    if tile is None:
        return None, ""
    longest = reduction(good, config.size_px)
    if tile == AUTO and longest < FAR_LARGER:
        return None, f"none: images are {longest:.1f} times as long as the input, tiles are cut from {FAR_LARGER:g} on"
    side = max(choose_input_size([(1, 1)], config.size_px)) if tile == AUTO else int(tile)
    height, width = (int(np.median([image.size_hw[axis] for image in good])) for axis in (0, 1))
    tiling = Tiling(tile_hw=(min(side, height), min(side, width)))
    return tiling, f"{tiling}" + (f"; images are {longest:.1f} times as long as the input" if tile == AUTO else "")


def reduction(good: Sequence[ReadableImage], size_px: int | None, square_side: int | None = None) -> float:
    """How many times as long as the network's input the usual image is, if it is seen as a whole."""
    longer = float(np.median([max(image.size_hw) for image in good]))
    return longer / (square_side or max(choose_input_size([image.size_hw for image in good], size_px)))


def choose_settings(
    config: TrainConfig,
    good: Sequence[ReadableImage],
    full_scale: int,
    say: Step = silent,
    tiling: Tiling | None = None,
) -> tuple[TrainSettings, dict[str, str]]:
    """Input size and pose, from the good images where the user did not say.

    Small parts at any angle get a larger input: turning blurs the thin lines that a small one just about shows.

    Args: full_scale: white level of the good images.
    Returns: the settings, and what they rest on, for people.
    """
    sizes_hw = [image.size_hw for image in good]
    method = METHODS[config.method]
    settings = TrainSettings(
        input_size_hw=_input_size(config, sizes_hw, tiling),
        backbone=_backbone(config),
        backbone_weights=config.backbone_weights,
        epochs=config.epochs,
        seed=config.seed,
        device=torch_device(config.device),
        steps=config.steps,
        transformations=config.transformations or TRANSFORMATIONS[0],
        init=config.init or STARTS[0],
        views=config.views or VIEWS[0],
    )
    squeezed = _squeezed(config, good)
    if not method.asks_pose:
        return settings, {"pose": str(settings.pose), "pose from": _NOT_ASKED, **squeezed}
    # At the usual size, whatever size was asked for: it suffices, and was measured.
    images = TrainingImages(good, choose_input_size(sizes_hw), full_scale)
    pose, reason = _choose_pose(config, images, settings, say, len(good) if tiling is None else MOST_TEACHING)
    reasons = {"pose": str(pose), "pose from": reason, **squeezed}
    if pose.turns > 1 and config.size_px is None and tiling is None and method.square_side is None:
        shares = [share for i in spread(len(images), _SHARES) if (share := part_share(images[i])) is not None]
        if shares and np.median(shares) <= SMALL_PART:
            settings = dataclasses.replace(
                settings, input_size_hw=_input_size(config, sizes_hw, None, SMALL_PART_SCALE)
            )
            reasons["input"] = f"enlarged: parts at any angle that fill {np.median(shares):.0%} of the image"
    return dataclasses.replace(settings, pose=pose), reasons


def _backbone(config: TrainConfig) -> str:
    """A key of ``BACKBONES``, or that there is none."""
    if not METHODS[config.method].has_backbone:
        return NO_BACKBONE
    is_default = config.backbone == DEFAULT_BACKBONE
    return SCRATCH_BACKBONE if config.init == SCRATCH and is_default else config.backbone


def _input_size(
    config: TrainConfig, sizes_hw: Sequence[tuple[int, int]], tiling: Tiling | None, scale: float = 1.0
) -> tuple[int, int]:
    """Height and width of the network's input."""
    if side := square_side(config):
        return side, side
    size = choose_input_size(sizes_hw, config.size_px, scale) if tiling is None else _tile_input(config, tiling)
    multiple = METHODS[config.method].side_multiple
    return (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)


def _squeezed(config: TrainConfig, good: Sequence[ReadableImage]) -> dict[str, str]:
    """What people should know of a square input, {} for other methods.

    Raises: TrainingError: an image that has too few pixels to learn from.
    """
    side = square_side(config)
    if side is None:
        return {}
    for image in good:
        if min(image.size_hw) < LEAST_SOURCE_PX:
            height, width = image.size_hw
            raise TrainingError(
                f"{image.file.path}: {width} x {height} pixels are too few for {config.method} to learn from; give "
                f"images of at least {LEAST_SOURCE_PX} x {LEAST_SOURCE_PX}, or move it out of the folder"
            )
    return {"input": f"whatever their shape, images are squeezed to a square of {side} x {side} pixels"}


def _tile_input(config: TrainConfig, tiling: Tiling) -> tuple[int, int]:
    """A tile's input size: as long as the tile where that was chosen automatically, else as for an image."""
    longer_px = max(tiling.tile_hw) if config.tile == AUTO else None
    return choose_input_size([tiling.tile_hw], config.size_px or longer_px)


def _choose_pose(
    config: TrainConfig, good: TrainingImages, settings: TrainSettings, say: Step, taught: int
) -> tuple[Pose, str]:
    """The pose that the user or the good images name, and what it rests on. Args: taught: images or tiles that teach.

    The tiles of an image that is turned are turned tiles of the image, so whole images tell for tiles as well.
    """
    if config.pose != "auto":
        return pose_named(config.pose, taught), f"the option {config.pose}"
    if len(good) == 1:
        return FIXED, "one good image cannot tell how others lie: say --pose any if at any angle"
    name = DEFAULT_BACKBONE if settings.init == SCRATCH else settings.backbone
    backbone, _ = load_backbone(name, settings.backbone_weights)
    evidence = examine_pose(
        good, backbone.to(settings.device), settings.device, lambda n, of: say("looking how parts lie", n, of)
    )
    return evidence.pose(taught), str(evidence)


def torch_device(name: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` to what torch can use here. Raises: UsageError when there is no CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"no device named {name!r}; there are: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here; 'inspectad doctor' says why")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
