"""The Python API beside `inspectad.Detector`: training with plain arguments."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from inspectad.errors import MissingDependencyError

if TYPE_CHECKING:
    from inspectad.training import TrainReport


def train(
    good: str | Path,
    defects: str | Path | None = None,
    output: str | Path = "model",
    *,
    method: str = "memory_bank",
    size_px: int | None = None,
    backbone: str = "efficientnet_lite0",
    backbone_weights: str | Path | None = None,
    false_reject_rate: float = 0.01,
    device: str = "auto",
    seed: int = 0,
) -> TrainReport:
    """Train on a folder of good images, and optionally one of defects, and write a model folder.

    The arguments are those of ``inspectad train``; see `inspectad.training.TrainConfig`.

    Raises:
        InspectadError: with a message that says which file is wrong and what to do.
    """
    require_train_extra()
    from inspectad.training import TrainConfig
    from inspectad.training import train as run

    return run(
        TrainConfig(
            good=Path(good),
            defects=None if defects is None else Path(defects),
            output=Path(output),
            method=method,
            size_px=size_px,
            backbone=backbone,
            backbone_weights=None if backbone_weights is None else Path(backbone_weights),
            false_reject_rate=false_reject_rate,
            device=device,
            seed=seed,
        )
    )


def require_train_extra() -> None:
    """Raises: MissingDependencyError, naming the command, when the packages of ``[train]`` are not installed."""
    missing = [p for p in ("torch", "onnx", "onnxscript", "safetensors", "scipy") if find_spec(p) is None]
    if missing:
        raise MissingDependencyError(
            f'this verb needs packages that are missing here ({", ".join(missing)}): pip install "inspectad[train]"'
        )
