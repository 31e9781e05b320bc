"""What the options of ``benchmark accuracy`` ask for: which cells, in which order. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad import __version__
from inspectad.benchmark.datasets import Dataset
from inspectad.benchmark.rows import Cell
from inspectad.errors import UsageError

ALL: Final = "all"
PEER: Final = "anomalib_patchcore"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyConfig:
    """What to measure, and where to keep it.

    Attributes:
        datasets: folders in MVTec layout, or plain ones; see `datasets`.
        shots: numbers of good images to train on, or ``all``.
        defect_shots: numbers of defects to train on.
        seeds: how many draws of the images: 0 to this minus 1.
        size_px: longer side of the network's input; None chooses it from the images.
        steps, transformations: as `inspectad.train_config.TrainConfig` has them, for the methods that know them.
        peer: a Python with anomalib, to be compared with; None for no comparison.
    """

    datasets: tuple[Path, ...]
    output: Path = Path("inspectad-benchmark")
    shots: tuple[str, ...] = ("1", "4", "16")
    defect_shots: tuple[int, ...] = (0,)
    seeds: int = 3
    methods: tuple[str, ...] = ("memory_bank",)
    size_px: int | None = None
    steps: int | None = None
    transformations: str | None = None
    false_reject_rate: float = 0.1
    peer: Path | None = None


def parse_shots(text: str) -> tuple[str, ...]:
    """``1,4,16,all`` to its parts. Raises: UsageError."""
    parts = _parts(text)
    if not parts or any(p != ALL and (not p.isascii() or not p.isdigit() or not int(p)) for p in parts):
        raise UsageError(f"--shots {text}: give numbers of good images from 1, or all, as 1,4,16,all")
    return tuple(dict.fromkeys(p if p == ALL else str(int(p)) for p in parts))


def parse_defect_shots(text: str) -> tuple[int, ...]:
    """``0,1,5`` to numbers. Raises: UsageError."""
    parts = _parts(text)
    if not parts or any(not p.isascii() or not p.isdigit() for p in parts):
        raise UsageError(f"--defect-shots {text}: give numbers of defect images from 0, as 0,1,5,10")
    return tuple(dict.fromkeys(int(p) for p in parts))


def parse_methods(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """``memory_bank,...`` to names. Raises: UsageError."""
    parts = _parts(text)
    unknown = [p for p in parts if p not in known]
    if unknown or not parts:
        raise UsageError(
            f"--methods {text}: no method named {', '.join(unknown) or text!r}; there are: {', '.join(known)}"
        )
    return tuple(dict.fromkeys(parts))


def _parts(text: str) -> list[str]:
    return [p.strip() for p in text.split(",")] if text.strip() else []


def plan(
    config: AccuracyConfig,
    datasets: Mapping[str, Dataset],
    peer_version: str = "",
    options: Mapping[str, str] | None = None,
) -> list[Cell]:
    """All cells, in the order in which they are run: those of one draw one after the other, the peer's last.

    With all good images and no defect drawn, every seed draws the same ones, so only the first is run.

    Args:
        peer_version: of the peer's program, when there is one.
        options: by method, what else was asked of it, in words.
    """
    methods = [(method, __version__) for method in config.methods]
    methods += [(PEER, f"{__version__}, {peer_version}")] if peer_version else []
    return [
        Cell(
            dataset=dataset.name,
            method=method,
            good_shots=shots,
            defect_shots=defect_shots,
            seed=seed,
            size="auto" if config.size_px is None else str(config.size_px),
            asked_rate=config.false_reject_rate,
            images=dataset.digest,
            version=version,
            options=(options or {}).get(method, ""),
        )
        for dataset in datasets.values()
        for shots in config.shots
        for defect_shots in config.defect_shots
        for seed in range(1 if shots == ALL and not defect_shots else config.seeds)
        for method, version in methods
    ]
