"""One cell of the benchmark: draw, train and measure by the same functions as the verbs."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from inspectad.atomic import write_atomically
from inspectad.benchmark.datasets import Dataset
from inspectad.benchmark.draws import Draw, draw
from inspectad.benchmark.peer_process import Peer, measure_peer
from inspectad.benchmark.plan import ALL, PEER, AccuracyConfig
from inspectad.benchmark.rows import Cell, Figures, Row
from inspectad.demo_part import render_part
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError
from inspectad.evaluate import Evaluation, evaluate_files
from inspectad.image_files import ImageFile
from inspectad.images import MIN_INPUT_PX
from inspectad.methods import METHODS
from inspectad.progress import Step
from inspectad.train_config import TrainConfig, choose_settings
from inspectad.training import TrainReport, train
from inspectad.training_data import select, survey


def run_cell(cell: Cell, dataset: Dataset, config: AccuracyConfig, peer: Peer | None, say: Step) -> Row:
    """Measure a cell. Whatever goes wrong becomes its error, so that the other cells are still run."""
    try:
        shots = None if cell.good_shots == ALL else int(cell.good_shots)
        drawn = draw(dataset, shots, cell.defect_shots, cell.seed)
        if cell.method == PEER:
            assert peer is not None
            say("running the peer", 0, 1)
            return Row(cell, measure_peer(peer, drawn, _our_input_size(drawn, config), cell.seed))
        return Row(cell, _measure(cell, drawn, dataset.masks, config, say))
    except InspectadError as error:
        return Row(cell, None, _one_line(str(error)))
    except Exception as error:  # a bug or a lack of memory in one cell is not the end of a night's run
        return Row(cell, None, _one_line(f"{type(error).__name__}: {error}"))


def _our_input_size(drawn: Draw, config: AccuracyConfig) -> tuple[int, int]:
    """Height and width that `train` chooses for the drawn good images."""
    with tempfile.TemporaryDirectory(prefix="inspectad-benchmark-", ignore_cleanup_errors=True) as name:
        pose = "auto" if config.size_px is None else "fixed"  # which has no say in a given size
        trained = TrainConfig(good=_copy(drawn.train_good, Path(name)), size_px=config.size_px, pose=pose)
        selection = select(survey(trained.good), None)
        return choose_settings(trained, selection.good, selection.full_scale)[0].input_size_hw


def warm_up() -> None:
    """Train once on nothing of interest: the first training of a process also pays for what it loads (2 s)."""
    with tempfile.TemporaryDirectory(prefix="inspectad-benchmark-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        part = render_part(seed=0, size_hw=(96, 96)).image
        write_atomically(work / "good" / "part.png", cv2.imencode(".png", part)[1].tobytes())
        train(TrainConfig(good=work / "good", output=work / "model", size_px=MIN_INPUT_PX))


def _measure(cell: Cell, drawn: Draw, masks: Path | None, config: AccuracyConfig, say: Step) -> Figures:
    with tempfile.TemporaryDirectory(prefix="inspectad-benchmark-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        trained = train(
            TrainConfig(
                good=_copy(drawn.train_good, work / "good"),
                defects=_copy(drawn.train_defects, work / "defects") if drawn.train_defects else None,
                output=work / "model",
                method=cell.method,
                size_px=config.size_px,
                false_reject_rate=config.false_reject_rate,
                seed=cell.seed,
                **method_options(cell.method, config),
            ),
            say,
        )
        detector = OnnxDetector.load(work / "model", threads=1)
        return _figures(trained, evaluate_files(drawn.test_good, drawn.test_defects, masks, detector, say))


def method_options(method: str, config: AccuracyConfig) -> dict[str, Any]:
    """The options that only some methods know, as `TrainConfig` takes them; {} for the other methods."""
    known = METHODS[method]
    options: dict[str, Any] = {"steps": config.steps} if known.has_steps else {}
    return options | ({"transformations": config.transformations} if known.tells_transformations else {})


def _copy(files: Sequence[ImageFile], folder: Path) -> Path:
    """Copy the drawn files into a folder, under the names they had."""
    for file in files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)
    return folder


def _figures(trained: TrainReport, measured: Evaluation) -> Figures:
    return Figures(
        good_images=len(trained.manifest.good_images),
        defect_images=len(trained.manifest.defect_images),
        test_good=measured.false_rejects.total,
        test_defects=measured.escapes.total,
        masks=measured.masked,
        unreadable=len(measured.unreadable),
        trained_on=measured.trained_on,
        image_auroc=measured.image_auroc,
        aupr=measured.aupr,
        pixel_auroc=measured.pixel_auroc,
        aupro=measured.aupro,
        image_f1=measured.image_f1 if measured.escapes.total else math.nan,
        best_f1=measured.best_f1,
        false_reject_rate=measured.false_rejects.value,
        escape_rate=measured.escapes.value,
        fit_s=trained.seconds,
        images_per_s=measured.images_per_s,
        model_mb=trained.model_bytes / 1e6,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
