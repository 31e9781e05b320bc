"""The Python API beside `inspectad.Detector`: training with plain arguments."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from inspectad.errors import MissingDependencyError
from inspectad.progress import Step, silent

if TYPE_CHECKING:
    from inspectad.training import TrainReport


def train(
    good: str | Path,
    defects: str | Path | None = None,
    output: str | Path = "model",
    *,
    masks: str | Path | None = None,
    method: str = "memory_bank",
    size_px: int | None = None,
    tile: int | str | None = None,
    backbone: str = "efficientnet_lite0",
    backbone_weights: str | Path | None = None,
    false_reject_rate: float = 0.1,
    pose: str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    transformations: str | None = None,
    init: str | None = None,
    views: str | None = None,
    samples: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    say: Step = silent,
) -> TrainReport:
    """Train on a folder of good images, and optionally one of defects, and write a model folder.

    The arguments are those of ``inspectad train``; see `inspectad.train_config.TrainConfig`. ``say`` is told what is
    being done: (text, parts done, parts in all, details such as losses).

    Raises:
        InspectadError: with a message that says which file is wrong and what to do.
    """
    prepare_training()
    from inspectad.train_config import TrainConfig
    from inspectad.training import train as run

    return run(
        TrainConfig(
            good=Path(good),
            defects=None if defects is None else Path(defects),
            output=Path(output),
            masks=None if masks is None else Path(masks),
            method=method,
            size_px=size_px,
            tile=tile,
            backbone=backbone,
            backbone_weights=None if backbone_weights is None else Path(backbone_weights),
            false_reject_rate=false_reject_rate,
            pose=pose,
            epochs=epochs,
            steps=steps,
            transformations=transformations,
            init=init,
            views=views,
            samples=None if samples is None else Path(samples),
            device=device,
            seed=seed,
        ),
        say,
    )


def prepare_training() -> None:
    """Call before torch is first imported.

    Torch's threads spin while they wait. On a machine that does anything else that slows training several times
    over (45 against 15 s, two cores with one other job), so they are told to sleep, unless the user said otherwise.

    Raises: MissingDependencyError, naming the command, when the packages of ``[train]`` are not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = [p for p in ("torch", "onnx", "onnxscript", "safetensors", "scipy") if find_spec(p) is None]
    if missing:
        raise MissingDependencyError(
            f'this verb needs packages that are missing here ({", ".join(missing)}): pip install "inspectad[train]"'
        )
