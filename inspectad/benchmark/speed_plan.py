"""What the options of ``benchmark speed`` ask for. Pure but for `working_devices`, which tries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspectad.detector import gpu_problem, parse_devices, try_provider
from inspectad.errors import UsageError
from inspectad.images import MAX_INPUT_PX, MIN_INPUT_PX

DEFAULT_MODEL: Final = Path("model")
PRECISIONS: Final = ("fp32", "fp16", "int8")
HEATMAPS: Final = ("off", "all")
MOST_BATCH: Final = 1024
_AUTO: Final = "auto"
_TRIED: Final = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """What to measure, and where to keep it.

    Attributes:
        images: a folder of them; None renders some.
        model: folder, or a single ``.onnx`` file, which is then measured as it is; None for ``model`` if it is there,
            and if it is not and there are no images either, for one that is trained on rendered parts.
        devices: names of `inspectad.detector.parse_devices`, or ``auto`` alone: all that work here.
        precisions, batch_sizes: () for what the device is good at, see `precisions_for` and `batch_sizes_for`.
        sizes: longer sides of the network's input in pixels; () for the model's own.
        heatmaps: of `HEATMAPS`: pipelines without, and with one for each image.
        seconds: how long each stage and each pipeline runs in each round.
        workers: images worked on at a time; 0 for what `scan` chooses.
    """

    images: Path | None = None
    model: Path | None = None
    output: Path = Path("inspectad-speed")
    devices: tuple[str, ...] = (_AUTO,)
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    heatmaps: tuple[str, ...] = HEATMAPS
    seconds: float = 2.0
    workers: int = 0


def parse_device_list(text: str) -> tuple[str, ...]:
    """``auto``, or names of devices, each of which is measured by itself. Raises: UsageError."""
    names = _parts(text)
    for name in names or [text]:
        parse_devices(name)
    if _AUTO in names and len(set(names)) > 1:
        raise UsageError(f"--devices {text}: auto means all that work here; name it alone, or name others")
    return tuple(dict.fromkeys(names))


def parse_names(text: str | None, known: Sequence[str], option: str) -> tuple[str, ...]:
    """Names with commas between; none for None. Raises: UsageError."""
    if text is None:
        return ()
    names = _parts(text)
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise UsageError(f"{option} {text}: no {', '.join(unknown) or 'name'} there; there are: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def parse_numbers(text: str | None, low: int, high: int, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between; none for None. Raises: UsageError."""
    if text is None:
        return ()
    parts = _parts(text)
    if not parts or any(not p.isascii() or not p.isdigit() or not low <= int(p[:9]) <= high for p in parts):
        raise UsageError(f"{option} {text}: give numbers from {low} to {high} with commas between")
    return tuple(dict.fromkeys(int(p) for p in parts))


def parse_sizes(text: str | None) -> tuple[int, ...]:
    """Longer sides of the input in pixels. Raises: UsageError."""
    return parse_numbers(text, MIN_INPUT_PX, MAX_INPUT_PX, "--sizes")


def parse_batch_sizes(text: str | None) -> tuple[int, ...]:
    """Images a run of the network. Raises: UsageError."""
    return parse_numbers(text, 1, MOST_BATCH, "--batch-sizes")


def _parts(text: str) -> list[str]:
    return [p.strip() for p in text.split(",")] if text.strip() else []


def is_cpu(device: str) -> bool:
    """Whether it shares its cores with all other stages."""
    return device == "cpu"


def precisions_for(device: str) -> tuple[str, ...]:
    """What is measured unless the user says otherwise."""
    return ("fp32", "int8") if is_cpu(device) else ("fp32", "fp16")


def batch_sizes_for(device: str) -> tuple[int, ...]:
    """What is measured unless the user says otherwise."""
    return (1, 4, 16) if is_cpu(device) else (1, 4, 16, 64)


def working_devices(asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which of the devices start here, and why the others do not, in words. Of ``auto`` the others are named too."""
    names = list(_TRIED) if tuple(asked) == (_AUTO,) else list(asked)
    problems = {name: problem for name in names if (problem := _problem(name))}
    return [n for n in names if n not in problems], problems


def _problem(device: str) -> str:
    return "" if is_cpu(device) else gpu_problem() or try_provider(device)
