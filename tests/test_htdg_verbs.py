"""``--method htdg`` on the command line: what it refuses, and the whole way from one training to every other verb."""

import csv
import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from conftest import RunCli, write_png

import inspectad
from inspectad import console, training
from inspectad.benchmark import accuracy
from inspectad.benchmark.accuracy import run_accuracy
from inspectad.benchmark.datasets import read_datasets
from inspectad.benchmark.plan import AccuracyConfig, plan
from inspectad.benchmark.show import cell_progress
from inspectad.benchmark.speed_models import Models
from inspectad.demo_part import render_part
from inspectad.errors import InspectadError, OutputError, TrainingError, UsageError
from inspectad.explain import ExplainConfig, explain
from inspectad.export import ExportConfig, export, to_fp16
from inspectad.held_out import score_held_out
from inspectad.image_files import RESULTS_MARKER, find_images
from inspectad.methods import METHODS, htdg
from inspectad.pose import FIXED
from inspectad.training import TrainReport
from inspectad.training_data import TrainingImages

PART_HW = (96, 128)
SMALL = "import inspectad.methods.htdg as htdg; htdg.sides_of = lambda _: (25,)"
"""Runs before the program: one scale instead of five. What it does is the same, what it learns is not the point."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``good``: a part in colour and one in grey. ``defects``, and ``tiny``: one of 1 x 1 pixel among good ones."""
    root = tmp_path_factory.mktemp("parts")
    write_png(root / "good" / "colour.png", render_part(0, None, PART_HW).image)
    write_png(root / "good" / "grey.png", cv2.cvtColor(render_part(1, None, PART_HW).image, cv2.COLOR_RGB2GRAY))
    write_png(root / "defects" / "scratch.png", render_part(60, "scratch", PART_HW).image)
    write_png(root / "tiny" / "part.png", render_part(0, None, PART_HW).image)
    write_png(root / "tiny" / "spot.png", np.full((1, 1, 3), 90, np.uint8))
    return root


@dataclass(frozen=True, slots=True)
class Made:
    """A model of these in two steps a scale, the pictures that came with it, and what was said meanwhile."""

    model: Path
    samples: Path
    report: TrainReport
    said: tuple[str, ...]


@pytest.fixture(scope="module")
def made(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("htdg")
    said: dict[str, None] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(htdg, "sides_of", lambda _: (25,))
        report = inspectad.train(
            *(folders / "good", folders / "defects", root / "model"),
            method="htdg",
            steps=2,
            device="cpu",
            samples=root / "samples",
            say=lambda text, *_: said.setdefault(text),
        )
    return Made(root / "model", root / "samples", report, tuple(said))


# --- what it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size_px": 128}, "--size 128: htdg sees a square of 64 pixels"),
        ({"epochs": 2}, "--epochs 2: htdg does not train in epochs"),
        ({"backbone": "resnet18"}, "--backbone resnet18: htdg has no backbone"),
        ({"backbone_weights": "x.pth"}, r"--backbone-weights x\.pth: htdg has no backbone"),
        ({"pose": "any"}, "--pose any: htdg"),
        ({"tile": "auto"}, "--tile auto: htdg .*train on crops"),
        ({"masks": "m"}, "--masks m: htdg has no use for masks"),
        ({"steps": 0}, "--steps 0: give a number from 1 to 100000"),
        ({"steps": 100_001}, "--steps 100001: give a number"),
        ({"transformations": "flips"}, "--transformations flips: there are: rotations, all"),
        ({"method": "memory_bank", "steps": 2}, "--steps 2: memory_bank has no scales or stages"),
        (
            {"method": "devnet", "transformations": "all"},
            "--transformations all: devnet does not tell transformations apart",
        ),
        ({"method": "memory_bank", "samples": "s"}, "--samples s: memory_bank generates no images"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        inspectad.train(folders / "good", output=tmp_path / "model", **{"method": "htdg", **options})
    assert list(tmp_path.iterdir()) == []


def test_an_image_with_too_few_pixels_is_named(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"spot\.png: 1 x 1 pixels are too few for htdg"):
        inspectad.train(folders / "tiny", output=tmp_path / "model", method="htdg", steps=1, device="cpu")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("where", ["good", "good/shown", "defects"])
def test_samples_do_not_go_among_the_images(folders: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(UsageError, match="whose images it would mix with"):
        inspectad.train(
            folders / "good", folders / "defects", tmp_path / "model", method="htdg", samples=folders / where
        )


def test_samples_that_cannot_be_written_are_refused_before_training(folders: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for samples, kind, said in ((file, UsageError, "is a file"), (file / "below", OutputError, "cannot be written")):
        with pytest.raises(kind, match=said) as caught:
            inspectad.train(folders / "good", output=tmp_path / "model", method="htdg", samples=samples)
        assert isinstance(caught.value, InspectadError)
    assert not (tmp_path / "model").exists()


# --- the whole way


def test_the_model_says_what_it_is(made: Made, run_cli: RunCli) -> None:
    manifest = inspectad.Detector.load(made.model, "cpu").manifest
    assert (manifest.method, manifest.backbone, manifest.backbone_sha256) == ("htdg", "none", "")
    assert manifest.input_size_hw == (64, 64)
    assert manifest.calibration.held_out == "leave-one-out"
    assert len(manifest.calibration.defect_scores) == 1
    assert manifest.parity.score_difference <= manifest.parity.limit
    done = run_cli("info", "-m", made.model)
    assert done.returncode == 0, done.stderr
    assert "none, the network was trained from nothing" in done.stdout
    assert "squeezed to a square of 64 x 64 pixels" in done.stdout


def test_training_leaves_three_files_and_warns(made: Made) -> None:
    assert sorted(os.listdir(made.model)) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    told = [warning for warning in made.report.warnings if "--steps 2: too few" in warning]
    assert len(told) == 1  # of the model itself, not of those that calibration trains


def test_no_model_is_trained_for_the_sake_of_a_defect(made: Made) -> None:
    """Two good images: one is left out twice. A method that knows no defect has none to leave out."""
    assert sorted({text.partition(", without ")[2] for text in made.said}) == ["", "part 1 of 2", "part 2 of 2"]


def test_the_only_good_image_takes_one_training_whatever_defects_there_are(folders: Path) -> None:
    """The defects are scored by the model itself, which has not seen them."""

    class Counting:
        fits = 0

        def fit(self, good, defects, say):
            self.fits += 1

    good = TrainingImages(training.survey(folders / "good").readable[:1], (64, 64), 255)
    defects = TrainingImages(training.survey(folders / "defects").readable, (64, 64), 255)
    trainer, final = Counting(), MeanGrey()
    held_out, scores = score_held_out(trainer, good, defects, METHODS["htdg"], final, FIXED, lambda *_: None)
    assert trainer.fits == 0
    assert held_out.how.startswith("turned copies")
    assert scores.tolist() == [pytest.approx(defects[0].mean(), rel=1e-5)]


def graph_of(model: Path) -> bytes:
    """Without the manifest behind it."""
    found = onnx.load(model / "model.onnx")
    del found.metadata_props[:]
    return bytes(found.SerializeToString())


class MeanGrey(torch.nn.Module):
    """Its score is an image's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.float().mean(dim=(1, 2, 3)), images.float().mean(dim=3)


def test_samples_are_a_picture_that_no_scan_takes_for_a_part(made: Made) -> None:
    assert sorted(os.listdir(made.samples)) == [RESULTS_MARKER, "samples.png"]
    picture = cv2.imread(str(made.samples / "samples.png"))
    assert picture.std() > 0
    assert min(picture.shape[:2]) >= 64
    assert find_images(made.samples.parent) == []


def test_scan_evaluate_and_export(made: Made, folders: Path, run_cli: RunCli, tmp_path: Path) -> None:
    scanned = run_cli("scan", folders, "-m", made.model, "-o", tmp_path / "results", "--heatmaps", "--device", "cpu")
    assert scanned.returncode == 0, scanned.stderr
    with open(tmp_path / "results" / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(rows) == 5
    assert all(np.isfinite(score) and score > 0 for score in rows.values())
    assert cv2.imread(str(tmp_path / "results" / "heatmaps" / "good" / "grey.png.png")).shape == (*PART_HW, 3)
    measured = run_cli("evaluate", folders / "good", folders / "defects", "-m", made.model, "--json", "--device", "cpu")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["false_rejects"]["of"] == 2
    export(ExportConfig(model=made.model, output=tmp_path / "line.onnx", precision="fp16"))
    part = render_part(0, None, PART_HW).image
    exported = inspectad.Detector.load(tmp_path / "line.onnx", "cpu").predict([part]).image_scores
    assert float(exported[0]) == pytest.approx(rows["good/colour.png"], rel=0.01)


def test_verbs_that_it_has_no_answer_for_say_so(made: Made, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="htdg has no explanation of its own"):
        explain(ExplainConfig(images=(str(folders / "good"),), model=made.model, output=tmp_path / "explain"))
    with pytest.raises(UsageError, match="no convolutional trunk that half precision would make faster"):
        to_fp16(graph_of(made.model))  # as of a method that does not say what its trunk consists of
    models = Models(made.model, made.report.manifest, tmp_path, lambda *_: None)
    models.check((), ())
    with pytest.raises(UsageError, match="a model of htdg has one input size, 64 x 64 px"):
        models.check((), (128,))


def test_large_images_are_said_to_lose_their_small_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tiles, which other methods have, are not what is advised."""
    config = training.TrainConfig(good=tmp_path, method="htdg")
    write_png(tmp_path / "large.png", np.zeros((600, 900, 3), np.uint8))
    selection = training.select(training.survey(tmp_path), None)
    (said,) = training._vanishing(config, selection)
    assert "14 times as long" in said
    assert "train on crops" in said
    assert "--tile" not in said


def test_benchmark_accuracy_takes_it_and_its_steps(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(htdg, "sides_of", lambda _: (25,))
    monkeypatch.setattr(accuracy, "warm_up", lambda: None)
    config = AccuracyConfig(datasets=(folders,), output=tmp_path, shots=("1",), seeds=1, methods=("htdg",), steps=1)
    with cell_progress() as progress:
        (row,) = run_accuracy(config, progress, lambda: False).rows
        assert (row.error, row.cell.options) == ("", "steps 1")
        assert 0 <= row.figures.image_auroc <= 1
        monkeypatch.setattr(accuracy, "run_cell", None)  # measured before, so nobody is asked
        assert run_accuracy(config, progress, lambda: False).rows[0].cell == row.cell
        with pytest.raises(UsageError, match="--steps 1: none of memory_bank has scales or stages"):
            run_accuracy(dataclasses.replace(config, methods=("memory_bank",)), progress, lambda: False)
    other = plan(dataclasses.replace(config, steps=2), read_datasets((folders,)), options={"htdg": "steps 2"})
    assert other[0] != row.cell


# --- stopped and started again

KILLED = """
import os, sys

def hook(event, arguments, seen=[]):
    if event == "os.rename" and "checkpoint" in str(arguments[1]):
        seen.append(event)
        if len(seen) == {at}:
            os.kill(os.getpid(), {number})

sys.addaudithook(hook)
"""
"""A signal before the ``at``-th checkpoint is in place."""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_training_that_was_killed_goes_on_to_the_same_model(
    made: Made, folders: Path, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    options = ("--method", "htdg", "--steps", 2, "--device", "cpu", "--samples", tmp_path / "samples")
    arguments = ("train", folders / "good", folders / "defects", "-o", out, *options)
    done = run_cli(*arguments, prelude=f"{SMALL}\n" + KILLED.format(at=3, number=int(signal.SIGKILL)))
    assert done.returncode == -signal.SIGKILL
    assert len(list((out / "checkpoint").glob("*.safetensors"))) == 2
    assert not (out / "model.onnx").exists()
    scanned = run_cli("scan", folders / "good", "-m", out, "-o", tmp_path / "results")
    assert scanned.returncode == 1
    assert "no such model" in scanned.stderr
    assert find_images(out) == []

    shown = (tmp_path / "samples" / "samples.png").read_bytes()
    assert shown == (made.samples / "samples.png").read_bytes()

    said: list[str] = []
    monkeypatch.setattr(htdg, "sides_of", lambda _: (25,))
    inspectad.train(
        *(folders / "good", folders / "defects", out),
        method="htdg",
        steps=2,
        device="cpu",
        say=lambda text, *_: said.append(text),
    )
    assert "going on where the last training was stopped" in said
    assert "going on where the last training was stopped" not in made.said
    assert sorted(os.listdir(out)) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    for name in ("model.onnx", "weights.safetensors"):
        assert (out / name).read_bytes() == (made.model / name).read_bytes()


def test_where_there_is_no_terminal_a_line_says_losses_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([10.0, 20.0, 70.0, 280.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(console, "err", console.console(stderr=True))
    progress = console.StepProgress(None)
    progress.said = 0.0
    for done in (100, 101, 150, 190):
        progress.step("learning the pyramid", done, 200, "scale 4 of 5, D 0.512, G 1.204, rec 0.008")
    assert capsys.readouterr().err.splitlines() == [
        "learning the pyramid ...",
        "learning the pyramid: 150 of 200, scale 4 of 5, D 0.512, G 1.204, rec 0.008, 60 s left",
        "learning the pyramid: 190 of 200, scale 4 of 5, D 0.512, G 1.204, rec 0.008, 30 s left",
    ]
