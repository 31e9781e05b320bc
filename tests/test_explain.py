"""The explanation by input gradients: against arithmetic and finite differences, and on the command line."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

import inspectad
from inspectad.demo_part import render_part
from inspectad.heatmap import render_relevance
from inspectad.methods.devnet import DevNet, DevNetTrainer, explain_devnet
from inspectad.nn import fit_deviation as fitting
from inspectad.nn.input_gradient import input_gradient, relevance
from inspectad.nn.settings import TrainSettings

SIZE_HW = (96, 128)


@pytest.fixture(scope="module")
def network() -> DevNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STEPS", 2)
        good, defects = ([render_part(i, kind, SIZE_HW).image for i in range(3)] for kind in (None, "stain"))
        settings = TrainSettings(input_size_hw=SIZE_HW, epochs=1)
        return DevNetTrainer(good, defects, settings).fit(range(3), range(3)).module


def test_the_gradient_of_a_weighted_sum_is_its_weights() -> None:
    weights = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = input_gradient(lambda pixels: (pixels * weights).sum(dim=(1, 2, 3)), image, "cpu")
    np.testing.assert_allclose(found, weights.abs().sum(dim=0).numpy(), rtol=1e-6)


def test_the_gradient_follows_the_image_and_its_axes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = input_gradient(lambda pixels: pixels.square().sum(dim=(1, 2, 3)), image, "cpu")
    np.testing.assert_allclose(found, 2.0 * image.astype(np.float64).sum(axis=2), rtol=1e-6)


def test_the_gradient_of_the_network_equals_finite_differences(network: DevNet) -> None:
    image = render_part(9, "scratch", SIZE_HW).image
    found = input_gradient(network.score, image, "cpu")
    exact = copy.deepcopy(network).double()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    step = 1e-4
    for y, x in (np.unravel_index(found.argmax(), found.shape), (10, 20), (40, 61)):
        expected = 0.0
        for channel in range(3):
            scores = []
            for sign in (-1, 1):
                moved = pixels.clone()
                moved[0, channel, y, x] += sign * step
                with torch.no_grad():
                    scores.append(float(exact.score(moved)))
            expected += abs(scores[1] - scores[0]) / (2 * step)
        assert found[y, x] == pytest.approx(expected, rel=1e-2, abs=1e-3 * float(found.max()))


def test_the_gradient_leaves_the_network_as_it_was(network: DevNet) -> None:
    images = [render_part(1, None, size).image for size in (SIZE_HW, (192, 256))]
    explain_devnet(network, *images, None)  # no threshold is asked for
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_the_relevance_is_scaled_to_the_99th_percentile_and_smoothed() -> None:
    gradient = np.random.default_rng(2).exponential(size=(40, 50)).astype(np.float32)
    low, high = gradient.min(), np.percentile(gradient, 99)
    scaled = np.clip((gradient - low) / (high - low), 0, 1)
    expected = ndimage.gaussian_filter(scaled, 4.0, mode="mirror", truncate=4)
    np.testing.assert_allclose(relevance(gradient), expected, atol=2e-3)
    assert relevance(gradient).min() >= 0
    assert relevance(gradient).max() <= 1


def test_a_gradient_that_is_the_same_everywhere_explains_nothing() -> None:
    assert not relevance(np.full((6, 8), 0.3, np.float32)).any()


def test_the_picture_has_the_size_of_the_source_and_goes_from_blue_to_red() -> None:
    ramp = np.linspace(0, 1, 20, dtype=np.float32)[None].repeat(10, axis=0)
    source = np.full((50, 120, 3), 100, np.uint8)
    picture = render_relevance(source, ramp)
    assert picture.shape == source.shape
    left, right = picture[25, 0].astype(int), picture[25, -1].astype(int)
    assert left[2] > left[0]
    assert right[0] > right[2]
    assert (source == 100).all()


@pytest.fixture(scope="module")
def explained(run_cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A devnet model, and ``images``: two parts of one name in two folders, and a torn file."""
    root = tmp_path_factory.mktemp("explained")
    for folder, seeds, kind in (("good", range(4), None), ("defects", range(60, 62), "stain")):
        for seed in seeds:
            write(root / folder / f"{seed}.png", render_part(seed, kind, SIZE_HW).image)
    for folder, kind in (("cam1", None), ("cam2", "scratch")):
        write(root / "images" / folder / "a.png", render_part(70, kind, (192, 256)).image)
    (root / "images" / "torn.png").write_bytes((root / "good" / "0.png").read_bytes()[:500])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STEPS", 2)
        inspectad.train(
            *(root / "good", root / "defects", root / "model"), method="devnet", epochs=1, size_px=128, device="cpu"
        )
    return root


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(".png", image[..., ::-1])[1].tofile(path)


def test_explain_mirrors_the_input_at_source_resolution_and_names_what_it_cannot_read(
    explained: Path, run_cli, tmp_path: Path
) -> None:
    output = tmp_path / "explain"
    done = run_cli("explain", explained / "images", "-m", explained / "model", "-o", output)
    assert done.returncode == 4, done.stderr
    assert "torn.png: not explained" in done.stderr
    assert done.stdout == ""
    written = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png"))
    assert written == ["cam1/a.png.png", "cam2/a.png.png"]
    pictures = [cv2.imread(str(output / name)) for name in written]
    assert all(picture.shape == (192, 256, 3) for picture in pictures)
    assert not np.array_equal(*pictures)
    assert [p for p in output.rglob("*") if p.name.endswith(".tmp")] == []
    again = run_cli(
        "explain", explained / "images" / "cam1", "-m", explained / "model", "-o", explained / "images" / "e"
    )
    assert again.returncode == 0, again.stderr
    rescanned = run_cli("scan", explained / "images", "-m", explained / "model", "-o", tmp_path / "results")
    assert "3 images" in rescanned.stderr  # the pictures are none


def test_a_method_without_an_explanation_says_what_to_do(trained, run_cli, tmp_path: Path) -> None:
    done = run_cli("explain", trained.good, "-m", trained.model, "-o", tmp_path / "explain")
    assert done.returncode == 2
    assert "memory_bank has no explanation of its own" in done.stderr
    assert "scan --heatmaps shows its anomaly map" in done.stderr
    assert not (tmp_path / "explain").exists()


def test_a_single_file_without_its_folder_is_refused(explained: Path, run_cli, tmp_path: Path) -> None:
    lone = tmp_path / "line.onnx"
    lone.write_bytes((explained / "model" / "model.onnx").read_bytes())
    done = run_cli("explain", explained / "good", "-m", lone, "-o", tmp_path / "explain")
    assert done.returncode == 1
    assert "explain needs the model folder as 'train' wrote it" in done.stderr
    assert not (tmp_path / "explain").exists()


def test_a_folder_without_images_is_an_error(explained: Path, run_cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_cli("explain", tmp_path / "empty", "-m", explained / "model", "-o", tmp_path / "explain")
    assert done.returncode == 1
    assert "no images in there" in done.stderr
