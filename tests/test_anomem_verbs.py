"""``--method anomem`` on the command line: what it refuses, and the way from a training to the other verbs."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, write_png

import inspectad
from inspectad.demo_part import render_part
from inspectad.errors import UsageError
from inspectad.export import ExportConfig, export
from inspectad.methods import METHODS
from inspectad.training import TrainReport

PART_HW = (96, 128)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    for i in range(5):
        write_png(root / "good" / f"{i}.png", render_part(i, None, PART_HW).image)
    for i in range(3):
        write_png(root / "defects" / f"{i}.png", render_part(60 + i, "missing_hole", PART_HW).image)
    return root


@dataclass(frozen=True, slots=True)
class Made:
    """A model of these, and what was said while it was trained."""

    model: Path
    report: TrainReport
    said: tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def made(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("anomem")
    said: list[tuple[str, str]] = []
    report = inspectad.train(
        *(folders / "good", folders / "defects", root / "model"),
        method="anomem",
        epochs=1,
        size_px=128,
        pose="fixed",
        device="cpu",
        say=lambda text, done, total, detail="", /: said.append((text, detail)),
    )
    return Made(root / "model", report, tuple(said))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "random"}, "--init random: there are: pretrained, scratch"),
        ({"views": "hard"}, "--views hard: there are: inspection, paper"),
        (
            {"init": "scratch", "backbone_weights": "x.pth"},
            r"--backbone-weights x\.pth: --init scratch starts from none",
        ),
        ({"steps": 5}, "--steps 5: anomem has no scales or stages"),
        ({"samples": "s"}, "--samples s: anomem generates no images"),
        ({"masks": "m"}, "--masks m: anomem has no use for masks"),
        ({"method": "memory_bank", "init": "scratch"}, "--init scratch: memory_bank has one start"),
        ({"method": "devnet", "views": "paper"}, "--views paper: devnet does not contrast views"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        inspectad.train(folders / "good", output=tmp_path / "model", **{"method": "anomem", **options})
    assert list(tmp_path.iterdir()) == []


def test_both_losses_and_the_prototypes_in_use_are_told_meanwhile(made: Made) -> None:
    details = [detail for text, detail in made.said if text == "learning prototypes"]
    assert "contrast " in details[-1]
    assert ", variance " in details[-1]
    assert ", prototypes in use " in details[-1]


def test_the_model_says_what_it_is(made: Made, run_cli: RunCli) -> None:
    manifest = made.report.manifest
    assert (manifest.method, manifest.backbone) == ("anomem", "efficientnet_lite0")
    assert manifest.input_size_hw == (96, 128)
    assert manifest.calibration.held_out == "cross-fitting in 3 parts"
    assert len(manifest.calibration.defect_scores) == 3
    assert manifest.parity.score_difference <= manifest.parity.limit
    assert manifest.settings["prototypes"] == "192, 48, 12"  # a quarter of the patches of four images; one is held out
    assert "weight of the defects" in manifest.settings
    assert sorted(p.name for p in made.model.iterdir()) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    done = run_cli("info", "-m", made.model)
    assert done.returncode == 0, done.stderr
    assert "anomem" in done.stdout


def test_it_scans_as_the_trained_network_scores(made: Made, folders: Path, tmp_path: Path, run_cli: RunCli) -> None:
    write_png(tmp_path / "line" / "bad.png", render_part(90, "missing_hole", PART_HW).image)
    write_png(tmp_path / "line" / "good.png", render_part(91, None, PART_HW).image)
    (tmp_path / "line" / "text.png").write_text("no image")
    done = run_cli("scan", tmp_path / "line", "-m", made.model, "-o", tmp_path / "results", "--heatmaps")
    assert done.returncode == 4, done.stderr
    with open(tmp_path / "results" / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows["text.png"]["verdict"] == "UNREADABLE"
    assert float(rows["bad.png"]["score"]) > float(rows["good.png"]["score"]) > 0
    assert (tmp_path / "results" / "heatmaps" / "bad.png.png").is_file()


def test_it_is_exported_in_half_precision(made: Made, tmp_path: Path) -> None:
    manifest, _ = export(ExportConfig(model=made.model, output=tmp_path / "half.onnx", precision="fp16"))
    assert manifest.parity.verdict_changes == 0
    detector = inspectad.Detector.load(tmp_path / "half.onnx", "cpu")
    prediction = detector.predict([render_part(3, None, PART_HW).image])
    assert np.isfinite(prediction.anomaly_maps).all()


def test_it_trains_from_nothing_on_the_papers_backbone(tmp_path: Path) -> None:
    write_png(tmp_path / "good" / "0.png", render_part(0, None, PART_HW).image)
    report = inspectad.train(
        tmp_path / "good",
        output=tmp_path / "model",
        method="anomem",
        init="scratch",
        views="paper",
        epochs=1,
        size_px=64,
        pose="fixed",
        device="cpu",
    )
    manifest = report.manifest
    assert (manifest.backbone, manifest.backbone_sha256) == ("resnet18", "")
    assert manifest.input_size_hw == (64, 64)
    assert manifest.settings["start"] == "scratch; all layers learn"


def test_inputs_are_multiples_of_the_coarsest_stride() -> None:
    assert METHODS["anomem"].side_multiple == 32
