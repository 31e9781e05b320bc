"""Scans in tiles: a thin scratch is found, boxed and drawn where it is; what was not calibrated for is warned of."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import RunCli, Trained, write_png

import inspectad
from inspectad.demo_part import render_part
from inspectad.detector import OnnxDetector
from inspectad.records import ByteArray

SIZE_HW = (480, 720)
SCRATCH = (400, 150, 520, 230)  # x, y from and to


def plate(seed: int, *, scratched: bool = False) -> ByteArray:
    """Brushed metal with four holes; the scratch is two pixels wide."""
    rng = np.random.default_rng(seed)
    levels = 120 + 20 * cv2.blur(rng.standard_normal(SIZE_HW, np.float32), (31, 1)) * 5
    levels += rng.normal(0, 2, SIZE_HW)
    image = np.clip(levels, 0, 255).astype(np.uint8)
    for x, y in ((90, 80), (630, 80), (90, 400), (630, 400)):
        cv2.circle(image, (x, y), 20, 20, -1, cv2.LINE_AA)
    if scratched:
        cv2.line(image, SCRATCH[:2], SCRATCH[2:], 190, 1, cv2.LINE_AA)
        cv2.line(image, (SCRATCH[0], SCRATCH[1] + 2), (SCRATCH[2], SCRATCH[3] + 2), 60, 1, cv2.LINE_AA)
    return image


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good/ to train on; test/good and test/defects with masks/; and a model/ of tiles."""
    root = tmp_path_factory.mktemp("line")
    for i in range(4):
        write_png(root / "good" / f"{i}.png", plate(i))
    for i in range(2):
        write_png(root / "test" / "good" / f"{i}.png", plate(20 + i))
        write_png(root / "test" / "defects" / f"{i}.png", plate(30 + i, scratched=True))
        mask = cv2.line(np.zeros(SIZE_HW, np.uint8), SCRATCH[:2], SCRATCH[2:], 255, 4)
        write_png(root / "masks" / f"{i}.png", mask)
    inspectad.train(root / "good", output=root / "model", tile="auto", size_px=160, pose="fixed", device="cpu")
    return root


def rows_of(output: Path) -> dict[str, dict[str, object]]:
    return {row["image"]: row for row in map(json.loads, (output / "results.jsonl").read_text().splitlines())}


def test_a_thin_scratch_is_found_boxed_and_drawn_where_it_is(line: Path, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("scan", line / "test", "-m", line / "model", "-o", tmp_path, "--format", "jsonl", "--heatmaps")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    for name, row in rows_of(tmp_path).items():
        shown = cv2.imread(str(tmp_path / "heatmaps" / f"{name}.png"))
        assert shown.shape == (*SIZE_HW, 3)
        if name.startswith("good"):
            assert (row["verdict"], row["boxes"]) == ("OK", [])
            continue
        assert row["verdict"] == "NG"
        (x, y, width, height), *_ = row["boxes"]
        assert SCRATCH[0] - 40 <= x <= SCRATCH[0] + 48
        assert SCRATCH[2] - 48 <= x + width <= SCRATCH[2] + 40
        assert SCRATCH[1] - 40 <= y
        assert y + height <= SCRATCH[3] + 40
        coloured = np.ptp(shown[SCRATCH[1] : SCRATCH[3], SCRATCH[0] : SCRATCH[2]].astype(int), axis=2) > 30
        assert coloured.mean() > 0.2


def test_a_model_of_whole_images_hardly_sees_it(line: Path, tmp_path: Path) -> None:
    """What the tiles are for: at the same input size the scratch is a fifth of a pixel."""
    inspectad.train(line / "good", output=tmp_path, size_px=160, pose="fixed", device="cpu")

    def severities(model: Path) -> tuple[np.ndarray, np.ndarray]:
        detector = OnnxDetector.load(model, "cpu")
        frames = [
            cv2.cvtColor(plate(seed, scratched=scratched), cv2.COLOR_GRAY2RGB)
            for scratched in (False, True)
            for seed in (20, 21)
        ]
        scores = detector.predict(frames).image_scores / detector.threshold
        return scores[:2], scores[2:]

    whole_good, whole_defects = severities(tmp_path)
    tiles_good, tiles_defects = severities(line / "model")
    assert tiles_defects.min() > 1 > tiles_good.max()
    assert tiles_defects.min() / tiles_good.max() > whole_defects.min() / whole_good.max()


def test_evaluate_measures_pixels_of_a_model_of_tiles(line: Path, run_cli: RunCli) -> None:
    done = run_cli(
        "evaluate", line / "test/good", line / "test/defects", "-m", line / "model", "--masks", line / "masks", "--json"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["image_auroc"] == 1
    assert figures["pixel_auroc"] > 0.97
    assert figures["masked_defects"] == 2


def test_maps_are_an_eighth_as_fine_as_the_tiles(line: Path, run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("scan", line / "test/good", "-m", line / "model", "-o", tmp_path, "--maps")
    assert cv2.imread(str(tmp_path / "maps" / "0.png.tiff"), cv2.IMREAD_UNCHANGED).shape == (60, 90)


def test_info_and_train_say_what_the_tiles_are(line: Path, run_cli: RunCli) -> None:
    shown = run_cli("info", "-m", line / "model").stdout
    assert "160 x 160 px, at least 0.125 of a side in common" in shown
    assert "teach" in shown


def test_tiles_for_a_model_of_whole_images_are_warned_of(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "part.png", render_part(3, None, (320, 384)).image)
    done = run_cli("scan", tmp_path / "in", "-m", trained.model, "-o", tmp_path / "out", "--tile", "96", "--maps")
    assert done.returncode == 0, done.stderr
    assert "not calibrated for these" in done.stderr
    assert cv2.imread(str(tmp_path / "out/maps/part.png.tiff"), cv2.IMREAD_UNCHANGED).shape == (40, 48)
    plain = run_cli("scan", tmp_path / "in", "-m", trained.model, "-o", tmp_path / "out", "--tile", "auto", "--maps")
    assert "calibrated" not in plain.stderr
    assert cv2.imread(str(tmp_path / "out/maps/part.png.tiff"), cv2.IMREAD_UNCHANGED).shape == (80, 96)


def test_rows_of_other_tiles_are_not_gone_on_with(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    def resumed(*options: str) -> "subprocess.CompletedProcess[str]":
        return run_cli("scan", trained.good, "-m", trained.model, "-o", tmp_path, "--resume", *options)

    assert resumed("--tile", "96").returncode == 0
    assert resumed("--tile", "96").returncode == 0
    for options in ((), ("--tile", "128")):
        refused = resumed(*options)
        assert refused.returncode == 1
        assert "--tile" in refused.stderr


def test_a_wrong_tile_is_wrong_usage(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--tile", "wide")
    assert done.returncode == 2
    assert "--tile wide" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_large_image_takes_little_more_memory_than_its_pixels(line: Path, run_cli: RunCli, tmp_path: Path) -> None:
    """25 megapixels, with heatmap: its 75 MB a few times over. (100 megapixels: README, "Large images".)"""
    write_png(tmp_path / "in" / "big.png", np.tile(plate(40, scratched=True), (11, 7))[:5000, :5000])
    # Not getrusage: a process starts with the peak of the one that it was forked from.
    prelude = (
        "import atexit, pathlib, sys\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))\n"
        "atexit.register(lambda: print(peak(), file=sys.stderr))"
    )
    done = run_cli("scan", tmp_path / "in", "-m", line / "model", "-o", tmp_path / "out", "--heatmaps", prelude=prelude)
    assert done.returncode == 0
    assert int(done.stderr.splitlines()[-1].split()[1]) < 800_000  # kB
