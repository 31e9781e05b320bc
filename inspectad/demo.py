"""``inspectad demo``: the whole job on a part that is rendered here, so that nobody needs data or a network for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2

from inspectad.atomic import write_atomically
from inspectad.demo_part import DEFECTS, render_part
from inspectad.errors import OutputError
from inspectad.output_links import check_stays_inside
from inspectad.progress import Step
from inspectad.records import ByteArray, Inspection

if TYPE_CHECKING:
    from inspectad.training import TrainReport

GOOD_IMAGES: Final = 16
DEFECT_IMAGES: Final = 8
LINE: Final = (None, "scratch", None, "stain", None, "dent", None, "missing_hole", None, "scratch", None, "stain")
_MARKER: Final = ".inspectad-demo"


@dataclass(frozen=True, slots=True)
class DemoFolders:
    """What the demo renders: training images, and a line whose truth is known.

    Attributes:
        truth: name of each line image to its defect, None for a good part.
    """

    good: Path
    defects: Path
    line_images: Path
    truth: dict[str, str | None]


def render_folders(output: Path, on_image: Callable[[], None] = lambda: None) -> DemoFolders:
    """Render ``good/`` (16 images), ``defects/`` (two of each kind) and ``line_images/`` (12, half of them defective).

    Raises: OutputError when the folder holds something else, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / _MARKER).exists())):
        raise OutputError(f"{output}: exists and was not made by 'inspectad demo'; choose another folder with -o")
    for name in ("good", "defects", "line_images", "model", "results"):
        check_stays_inside(output, output / name)
    write_atomically(output / _MARKER, b"")
    folders = DemoFolders(output / "good", output / "defects", output / "line_images", {})
    for i in range(GOOD_IMAGES):
        _write(folders.good / f"good_{i:02}.png", render_part(seed=i).image)
        on_image()
    for i in range(DEFECT_IMAGES):
        defect = DEFECTS[i % len(DEFECTS)]
        _write(folders.defects / f"{defect}_{i:02}.png", render_part(seed=100 + i, defect=defect).image)
        on_image()
    for i, truth in enumerate(LINE):
        name = f"part_{i + 1:03}.png"
        folders.truth[name] = truth
        _write(folders.line_images / name, render_part(seed=200 + i, defect=truth).image)
        on_image()
    return folders


def _write(path: Path, image: ByteArray) -> None:
    write_atomically(path, cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo did."""

    folders: DemoFolders
    report: TrainReport
    rows: tuple[Inspection, ...]
    output: Path


def run_demo(output: Path, step: Step) -> DemoResult:
    """Render, train and scan with heatmaps, by the same functions as the verbs."""
    from inspectad.detector import OnnxDetector
    from inspectad.scan import ScanConfig, scan
    from inspectad.train_config import TrainConfig
    from inspectad.training import train

    rendered = 0

    def on_image() -> None:
        nonlocal rendered
        rendered += 1
        step("rendering parts", rendered, GOOD_IMAGES + DEFECT_IMAGES + len(LINE))

    folders = render_folders(output, on_image)
    config = TrainConfig(good=folders.good, defects=folders.defects, output=output / "model")
    report = train(config, step)
    rows: list[Inspection] = []
    images = (str(folders.line_images),)
    scan_config = ScanConfig(images=images, output=output / "results", heatmaps="all")
    step("scanning the line", 0, 1)
    scan(scan_config, OnnxDetector.load(output / "model", threads=1), on_row=rows.append)
    return DemoResult(folders, report, tuple(rows), output)
