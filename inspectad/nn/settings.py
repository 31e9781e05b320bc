"""What a method needs to know, in one frozen value that is stored with the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad.checkpoint import Checkpoints
from inspectad.pose import FIXED, Pose
from inspectad.records import ByteArray

PRETRAINED: Final = "pretrained"
SCRATCH: Final = "scratch"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Settings of one training.

    Attributes:
        input_size_hw: height and width that every image is resized to.
        backbone: a key of ``inspectad.nn.backbone.BACKBONES``.
        backbone_weights: file that replaces the backbone's own weights.
        bank_size: vectors in the memory bank; twice as many gained nothing on the five sets and cost the search twice.
        pose: in which ways parts lie; copies of the good images in these poses may teach too.
        epochs: how long methods that train a network do so; None for the method's own.
        seed: of everything random.
        device: ``cpu`` or ``cuda``, torch's name.
        steps: training steps of each scale or stage, of a method that has some; None for its own.
        transformations: which ones a method that tells transformations apart does: ``rotations`` or ``all``.
        init: what a method that can do either starts from: `PRETRAINED` or `SCRATCH`, from nothing.
        views: which random views a method that contrasts them draws: ``inspection`` or ``paper``.
        checkpoints: where a long training keeps how far it came; None keeps nothing.
        show: is given a picture of what a generative method has learnt so far, now and then while it trains.
    """

    input_size_hw: tuple[int, int]
    backbone: str = "efficientnet_lite0"
    backbone_weights: Path | None = None
    bank_size: int = 2048
    pose: Pose = FIXED
    epochs: int | None = None
    seed: int = 0
    device: str = "cpu"
    steps: int | None = None
    transformations: str = "rotations"
    init: str = PRETRAINED
    views: str = "inspection"
    checkpoints: Checkpoints | None = None
    show: Callable[[ByteArray], None] | None = None
