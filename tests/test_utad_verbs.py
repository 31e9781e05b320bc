"""``--method utad`` on the command line: what it refuses, and the whole way from one training to every other verb."""

import csv
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import RunCli, write_png

import inspectad
from inspectad import train_config
from inspectad.demo_part import render_part
from inspectad.errors import TrainingError, UsageError
from inspectad.explain import ExplainConfig, explain
from inspectad.export import ExportConfig, export
from inspectad.image_files import RESULTS_MARKER, find_images
from inspectad.images import resize
from inspectad.methods import METHODS
from inspectad.methods.utad import UTADTrainer
from inspectad.nn.settings import TrainSettings
from inspectad.nn.two_stage import shares_of
from inspectad.nn.two_stage_pictures import TITLES
from inspectad.restore import read_manifest, restore
from inspectad.train_config import TrainConfig, square_side
from inspectad.training import TrainReport

PART_HW = (96, 128)
OPTIONS = {"method": "utad", "steps": 2, "size_px": 64, "pose": "fixed", "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``good``: two parts in colour and one in grey. ``defects``, and ``tiny``: one of 1 x 1 pixel among good ones."""
    root = tmp_path_factory.mktemp("parts")
    for seed in range(2):
        write_png(root / "good" / f"{seed}.png", render_part(seed, None, PART_HW).image)
    write_png(root / "good" / "grey.png", cv2.cvtColor(render_part(2, None, PART_HW).image, cv2.COLOR_RGB2GRAY))
    write_png(root / "defects" / "scratch.png", render_part(60, "scratch", PART_HW).image)
    write_png(root / "tiny" / "part.png", render_part(0, None, PART_HW).image)
    write_png(root / "tiny" / "spot.png", np.full((1, 1, 3), 90, np.uint8))
    return root


@dataclass(frozen=True, slots=True)
class Made:
    """A model of these in two steps a stage, the pictures that came with it, and what was said meanwhile."""

    model: Path
    samples: Path
    report: TrainReport
    said: tuple[str, ...]


@pytest.fixture(scope="module")
def made(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("utad")
    said: dict[str, None] = {}
    report = inspectad.train(
        *(folders / "good", folders / "defects", root / "model"),
        samples=root / "samples",
        say=lambda text, *_: said.setdefault(text),
        **OPTIONS,
    )
    return Made(root / "model", root / "samples", report, tuple(said))


# --- what it refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 2}, "--epochs 2: utad does not train in epochs"),
        ({"transformations": "all"}, "--transformations all: utad does not tell transformations apart"),
        ({"init": "scratch"}, "--init scratch: utad has one start"),
        ({"views": "paper"}, "--views paper: utad does not contrast views"),
        ({"tile": "auto"}, "--tile auto: utad .*train on crops"),
        ({"masks": "m"}, "--masks m: utad has no use for masks"),
        ({"steps": 0}, "--steps 0: give a number from 1 to 100000"),
        ({"method": "anomem", "steps": 2}, "--steps 2: anomem has no scales or stages"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        inspectad.train(folders / "good", output=tmp_path / "model", **{"method": "utad", **options})
    assert list(tmp_path.iterdir()) == []


def test_an_image_with_too_few_pixels_is_named(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"spot\.png: 1 x 1 pixels are too few for utad"):
        inspectad.train(folders / "tiny", output=tmp_path / "model", **OPTIONS)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("method", "device", "size_px", "side"),
    [
        ("utad", "cpu", None, 128),
        ("utad", "cuda", None, 256),
        ("utad", "cpu", 256, 256),
        ("utad", "cpu", 130, 192),
        ("htdg", "cuda", None, 64),
        ("memory_bank", "cpu", None, None),
    ],
)
def test_the_side_of_its_square_follows_the_device_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, device: str, size_px: int | None, side: int | None
) -> None:
    monkeypatch.setattr(train_config, "torch_device", lambda _: device)
    assert square_side(TrainConfig(good=tmp_path, method=method, size_px=size_px)) == side


# --- the whole way


def test_the_model_says_what_it_is(made: Made, run_cli: RunCli) -> None:
    manifest = inspectad.Detector.load(made.model, "cpu").manifest
    assert (manifest.method, manifest.backbone) == ("utad", "efficientnet_lite0")
    assert manifest.input_size_hw == (64, 64)
    assert manifest.calibration.held_out == "cross-fitting in 2 parts"
    assert len(manifest.calibration.defect_scores) == 1
    assert manifest.parity.score_difference <= manifest.parity.limit
    done = run_cli("info", "-m", made.model)
    assert done.returncode == 0, done.stderr
    for text in ("squeezed to a square of 64 x 64 pixels", "mirrored never", "learning to restore detail: restored"):
        assert text in done.stdout


def test_training_leaves_three_files_and_warns(made: Made) -> None:
    assert sorted(os.listdir(made.model)) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    for text in ("--steps 2: too few", "3 good images: this method learns from nothing"):
        assert len([warning for warning in made.report.warnings if text in warning]) == 1
    stages = {text.partition(", without ")[0] for text in made.said}
    assert {"learning impressions", "learning to restore detail", "measuring what is usual"} <= stages


def test_samples_are_a_picture_that_no_scan_takes_for_a_part(made: Made) -> None:
    assert sorted(os.listdir(made.samples)) == [RESULTS_MARKER, "samples.png"]
    picture = cv2.imread(str(made.samples / "samples.png"))
    assert picture.shape == (4 * 66 - 2, 3 * 66 - 2, 3)
    assert find_images(made.samples.parent) == []


def test_scan_evaluate_and_export(made: Made, folders: Path, run_cli: RunCli, tmp_path: Path) -> None:
    scanned = run_cli("scan", folders, "-m", made.model, "-o", tmp_path / "results", "--heatmaps", "--device", "cpu")
    assert scanned.returncode == 0, scanned.stderr
    with open(tmp_path / "results" / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert all(np.isfinite(score) and score > 0 for score in rows.values())
    assert cv2.imread(str(tmp_path / "results" / "heatmaps" / "good" / "grey.png.png")).shape == (*PART_HW, 3)
    measured = run_cli("evaluate", folders / "good", folders / "defects", "-m", made.model, "--json", "--device", "cpu")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["false_rejects"]["of"] == 3
    with pytest.raises(UsageError, match=r"int8: utad compares .* export it as fp32 or fp16"):
        export(ExportConfig(model=made.model, output=tmp_path / "line.onnx", precision="int8"))
    assert not (tmp_path / "line.onnx").exists()
    export(ExportConfig(model=made.model, output=tmp_path / "line.onnx"))
    part = render_part(0, None, PART_HW).image
    exported = inspectad.Detector.load(tmp_path / "line.onnx", "cpu").predict([part]).image_scores
    assert float(exported[0]) == pytest.approx(rows["good/0.png"], rel=1e-4)


def test_explain_draws_four_panels(made: Made, folders: Path, tmp_path: Path) -> None:
    write_png(folders.parent / "odd" / "large.png", np.tile(render_part(0, None, PART_HW).image, (6, 6, 1)))
    for kind, count in (("good", 3), ("odd", 1)):
        images = str((folders if kind == "good" else folders.parent) / kind)
        assert explain(ExplainConfig(images=(images,), model=made.model, output=tmp_path / kind)).pictures == count
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "good" / "0.png.png")), cv2.COLOR_BGR2RGB)
    height, width = PART_HW
    assert picture.shape == (height + 24, 4 * width + 3 * 4, 3)
    assert np.array_equal(picture[24:, :width], render_part(0, None, PART_HW).image)
    assert (picture[:24] < 128).any(axis=(0, 2)).sum() > 4 * len(TITLES)  # something is written above
    large = cv2.imread(str(tmp_path / "odd" / "large.png.png"))
    assert large.shape == (384 + 24, 4 * 512 + 3 * 4, 3)
    # What is drawn is what the module makes of the image at its input size.
    module = restore(made.model, read_manifest(made.model)[0], "explain").module
    seen = resize(render_part(0, None, PART_HW).image, (64, 64))
    with torch.inference_mode():
        restored = module.reconstruct(shares_of(torch.from_numpy(seen)[None])).restored[0].permute(1, 2, 0)
    expected = cv2.resize((restored.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), (width, height))
    shown = picture[24:, 2 * (width + 4) : 2 * (width + 4) + width]
    assert np.abs(shown.astype(int) - expected).max() <= 2


# --- stopped and started again

KILLED = """
import os, sys
import inspectad.nn.stages as stages

stages._SECONDS, stages._LOOK_EVERY = -1.0, 1

def hook(event, arguments, seen=[]):
    if event == "os.rename" and "checkpoint" in str(arguments[1]):
        seen.append(event)
        if len(seen) == {at}:
            os.kill(os.getpid(), {number})

sys.addaudithook(hook)
"""
"""A signal before the ``at``-th checkpoint is in place; there is one after each step, the last one finished."""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_training_that_was_killed_goes_on_to_the_same_model(
    made: Made, folders: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    options = ("--method", "utad", "--steps", 2, "--size", 64, "--pose", "fixed", "--device", "cpu")
    arguments = ("train", folders / "good", folders / "defects", "-o", out, *options)
    done = run_cli(*arguments, prelude=KILLED.format(at=4, number=int(signal.SIGKILL)))
    assert done.returncode == -signal.SIGKILL
    assert len(list((out / "checkpoint").glob("*.safetensors"))) == 2  # one of each stage
    assert not (out / "model.onnx").exists()
    said: list[str] = []
    inspectad.train(*(folders / "good", folders / "defects", out), say=lambda text, *_: said.append(text), **OPTIONS)
    assert "going on where the last training was stopped" in said
    assert "going on where the last training was stopped" not in made.said
    assert sorted(os.listdir(out)) == ["manifest.yaml", "model.onnx", "weights.safetensors"]
    for name in ("model.onnx", "weights.safetensors"):
        assert (out / name).read_bytes() == (made.model / name).read_bytes()


def test_it_learns_nothing_from_defects() -> None:
    """So calibration need not train without a defect to score it."""
    assert not METHODS["utad"].learns_defects
    good, defect = ([resize(render_part(s, k, PART_HW).image, (64, 64))] for s, k in ((0, None), (60, "scratch")))
    settings = TrainSettings(input_size_hw=(64, 64), device="cpu", steps=1)
    without = UTADTrainer(good, [], settings).fit([0], []).module.state_dict()
    with_one = UTADTrainer(good, defect, settings).fit([0], [0]).module.state_dict()
    assert all(torch.equal(without[name], tensor) for name, tensor in with_one.items())
