"""Training on tiles: which teach, that images are decoded once, held out whole, and judged by all their tiles."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inspectad
from inspectad.detector import OnnxDetector
from inspectad.errors import UsageError
from inspectad.held_out import score_held_out
from inspectad.methods import METHODS
from inspectad.methods.memory_bank import MemoryBankTrainer
from inspectad.nn.fitted import Fitted
from inspectad.nn.settings import TrainSettings
from inspectad.pose import FIXED
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.tiles import OVERLAP, Tiling, cut_tile, grid, score_tiles
from inspectad.train_config import TrainConfig, choose_settings, choose_tiling
from inspectad.training import _vanishing
from inspectad.training_data import TrainingImages, select, survey
from inspectad.training_tiles import MOST_TEACHING, TrainingTiles, choose_teaching

QUICK = settings(deadline=None, max_examples=150)
SIZE_HW = (200, 300)
TILING = Tiling(tile_hw=(96, 96))


@QUICK
@given(st.integers(1, 60), st.integers(1, 400), st.integers(0, 1500))
def test_every_place_teaches_before_any_does_twice_and_images_share_alike(images: int, places: int, most: int) -> None:
    chosen = choose_teaching([places] * images, most)
    assert len(set(chosen)) == len(chosen) <= most
    by_place = Counter(place for _, place in chosen)
    if most >= places:
        assert len(by_place) == places
    if most <= places:
        assert len(chosen) == most
    by_image = Counter(image for image, _ in chosen)
    if most >= images:
        fewest, most_often = min(by_image[i] for i in range(images)), max(by_image.values())
        assert most_often - fewest <= images + 0.1 * most_often
    if most >= images * places:
        assert len(chosen) == images * places


@QUICK
@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(0, 1500))
def test_images_of_several_sizes_have_only_tiles_that_exist(counts: list[int], most: int) -> None:
    chosen = choose_teaching(counts, most)
    assert len(chosen) <= most
    assert all(0 <= tile < counts[image] for image, tile in chosen)


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """good/: five images of noise, each of its own brightness."""
    for i in range(5):
        write_png(tmp_path / "good" / f"{i}.png", noise(i))
    return tmp_path


def noise(seed: int) -> ByteArray:
    return np.random.default_rng(seed).integers(30 * seed, 30 * seed + 60, (*SIZE_HW, 3), np.uint8)


def tiles_of(folder: Path, most: int = MOST_TEACHING) -> TrainingTiles:
    return TrainingTiles(select(survey(folder), None).good, (96, 96), 255, TILING, most)


def test_items_are_tiles_of_the_images_they_are_said_to_be_of(plates: Path) -> None:
    tiles = tiles_of(plates / "good")
    rows, columns = grid(SIZE_HW, TILING, (96, 96))
    assert len(tiles) == tiles.tiles == 5 * len(rows) * len(columns) == 5 * 12
    for image in range(5):
        theirs = tiles.teaching([image])
        places = [(r, c) for r in rows for c in columns]
        for index, place in zip(theirs, places, strict=True):
            np.testing.assert_array_equal(tiles[index], cut_tile(noise(image), *place, (96, 96)))
    assert sorted(tiles.teaching([0, 3]) + tiles.teaching([1, 2, 4])) == list(range(len(tiles)))


def test_an_image_is_decoded_once_for_all_its_teaching_tiles(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    source = TrainingImages.source
    monkeypatch.setattr(TrainingImages, "source", lambda self, image: decoded.append(image) or source(self, image))
    tiles = tiles_of(plates / "good", most=17)
    for _ in range(2):
        for index in range(len(tiles)):
            tiles[index]
    assert sorted(decoded) == list(range(5))
    assert len(tiles) == 17


def test_tiles_never_outgrow_the_memory_for_decoded_images(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspectad.training_data._CACHE_BYTES", 10 * 3 * 96 * 96)
    assert len(tiles_of(plates / "good")) == 10


def test_large_images_are_surveyed_a_few_at_a_time(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inspectad import training_data

    examined = survey(plates / "good").readable
    monkeypatch.setattr("inspectad.training_data.cores", lambda: 16)
    assert training_data._threads(examined[:1]) == 8
    monkeypatch.setattr("inspectad.training_data._CACHE_BYTES", 3 * 6 * 200 * 300)
    assert training_data._threads(examined[:1]) == 3
    monkeypatch.setattr("inspectad.training_data._CACHE_BYTES", 1)
    assert training_data._threads(examined[:1]) == 1
    assert training_data._threads([]) == training_data._threads(["damaged"]) == 1


class MeanModule(nn.Module):
    """Scores an image by its mean; its map is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = images.float().mean(dim=3)
        return maps.mean(dim=(1, 2)), maps


class WatchedTrainer:
    """Learns nothing, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[list[int], list[int]]] = []

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:
        self.given.append((list(good), list(defects)))
        return Fitted(MeanModule(), {})


def worst_mean(image: ByteArray) -> float:
    """The highest mean of any tile, by hand."""
    starts_y, starts_x = ([s.start for s in spans] for spans in grid(image.shape[:2], TILING, (96, 96)))
    return max(float(image[y : y + 96, x : x + 96].mean()) for y in starts_y for x in starts_x)


def test_an_image_is_held_out_with_all_its_tiles_and_judged_by_its_worst_one(plates: Path) -> None:
    for i in range(2):
        bright = noise(i)
        bright[150:, 250:] = 250
        write_png(plates / "defects" / f"{i}.png", bright)
    good, trainer = tiles_of(plates / "good", most=23), WatchedTrainer()
    defects = tiles_of(plates / "defects", most=0)
    assert len(defects) == 0
    held_out, defect_scores = score_held_out(
        trainer, good, defects, METHODS["memory_bank"], MeanModule(), FIXED, silent
    )
    assert len(trainer.given) == 5
    for left_out, (taught, known) in enumerate(trainer.given):
        assert known == []
        assert not set(taught) & set(good.teaching([left_out]))
        assert sorted([*taught, *good.teaching([left_out])]) == list(range(len(good)))
    np.testing.assert_allclose(held_out.scores, [worst_mean(noise(i)) for i in range(5)], rtol=1e-5)
    assert (held_out.learnt_from, held_out.final_images, held_out.how) == (4, 5, "leave-one-out")
    expected = []
    for i in range(2):
        bright = noise(i)
        bright[150:, 250:] = 250
        expected.append(worst_mean(bright))
    np.testing.assert_allclose(defect_scores, expected, rtol=1e-5)


def test_a_single_good_image_is_stood_for_by_its_tiles_turned(tmp_path: Path) -> None:
    write_png(tmp_path / "good" / "only.png", noise(3))
    good = tiles_of(tmp_path / "good")
    held_out, _ = score_held_out(
        WatchedTrainer(), good, tiles_of(tmp_path / "good", most=0), METHODS["memory_bank"], MeanModule(), FIXED, silent
    )
    assert not held_out.exchangeable
    # Noise turned has nearly the same mean; the lower of two guesses is that of 15 degrees, whose factor is one.
    assert held_out.scores[0] == pytest.approx(worst_mean(noise(3)), rel=0.02)


def sized(folder: Path, *sizes_hw: tuple[int, int]) -> Path:
    for i, size_hw in enumerate(sizes_hw):
        write_png(folder / f"{i}.png", np.random.default_rng(i).integers(0, 255, size_hw, np.uint8))
    return folder


def tiling_of(folder: Path, **options: object) -> tuple[Tiling | None, tuple[int, int]]:
    """What is decided for a folder of good images: the tiling, and the network's input."""
    config = TrainConfig(good=folder, pose="fixed", device="cpu", **options)
    good = select(survey(folder), None).good
    tiling, _ = choose_tiling(config, good)
    return tiling, choose_settings(config, good, 255, tiling=tiling)[0].input_size_hw


def test_auto_cuts_tiles_of_the_input_s_own_size_where_images_are_far_larger(tmp_path: Path) -> None:
    large = sized(tmp_path / "large", (1000, 1500), (1000, 1500))
    assert tiling_of(large, tile="auto") == (Tiling(tile_hw=(320, 320), overlap=OVERLAP), (320, 320))
    assert tiling_of(large, tile="auto", size_px=160) == (Tiling(tile_hw=(160, 160)), (160, 160))
    assert tiling_of(large, tile="auto", size_px=512) == (None, (336, 512))  # 2.9 times is not far larger
    assert tiling_of(large) == (None, tiling_of(large)[1])
    assert tiling_of(sized(tmp_path / "usual", (700, 900)), tile="auto")[0] is None


def test_tiles_of_a_size_that_the_user_chose(tmp_path: Path) -> None:
    large = sized(tmp_path / "large", (1000, 1500))
    assert tiling_of(large, tile=640) == (Tiling(tile_hw=(640, 640)), (320, 320))
    assert tiling_of(large, tile="640", size_px=480) == (Tiling(tile_hw=(640, 640)), (480, 480))
    assert tiling_of(large, tile=1200)[0] == Tiling(tile_hw=(1000, 1200))  # no taller than the images


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """good/, defects/ and a model/ of tiles: brushed metal of 300 x 420 px; the defects have a dark line of 2 px."""
    root = tmp_path_factory.mktemp("texture")
    for i in range(3):
        write_png(root / "good" / f"{i}.png", brushed(i))
    for i in range(2):
        write_png(root / "defects" / f"{i}.png", scratched(brushed(50 + i)))
    inspectad.train(root / "good", root / "defects", root / "model", tile=128, size_px=128, pose="fixed", device="cpu")
    return root


def brushed(seed: int) -> ByteArray:
    rng = np.random.default_rng(seed)
    levels = 120 + 20 * cv2.blur(rng.standard_normal((300, 420), np.float32), (31, 1)) * 5
    return np.clip(levels + rng.normal(0, 2, levels.shape), 0, 255).astype(np.uint8)


def scratched(image: ByteArray) -> ByteArray:
    return cv2.line(image.copy(), (290, 130), (370, 220), 30, 2)


def test_defects_set_the_threshold_alone_and_the_model_says_so(texture: Path) -> None:
    manifest = OnnxDetector.load(texture / "model", "cpu").manifest
    assert manifest.tiling == Tiling(tile_hw=(128, 128))
    assert manifest.settings["weight of the defects"].startswith("0.00")
    assert "teach" in manifest.settings["tiles"]
    assert manifest.aspect_range == (1.0, 1.0)
    calibration = manifest.calibration
    assert len(calibration.good_scores) == 3
    assert min(calibration.defect_scores) > calibration.threshold > max(calibration.good_scores)


def test_the_detector_tiles_by_itself_as_training_did(texture: Path) -> None:
    detector = inspectad.Detector.load(texture / "model", "cpu")
    frames = [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in (brushed(80), scratched(brushed(81)))]
    prediction = detector.predict(frames)
    assert [str(v) for v in detector.verdicts(prediction)] == ["OK", "NG"]
    assert prediction.anomaly_maps.shape == (2, 38, 52)
    y, x = np.unravel_index(int(prediction.anomaly_maps[1].argmax()), (38, 52))
    assert 120 <= 8 * y <= 230
    assert 280 <= 8 * x <= 380
    score, anomaly_map = score_tiles(
        frames[1], Tiling(tile_hw=(128, 128)), (128, 128), lambda tile: detector.predict_resized(tile[np.newaxis]).only
    )
    assert prediction.image_scores[1] == pytest.approx(score)
    np.testing.assert_allclose(prediction.anomaly_maps[1], anomaly_map)
    with pytest.raises(ValueError, match="one size"):
        detector.predict([frames[0], frames[1][:200]])
    assert detector.predict([]).image_scores.shape == (0,)


def test_without_tiles_huge_images_get_a_hint(tmp_path: Path) -> None:
    config = TrainConfig(good=sized(tmp_path, (600, 900), (600, 900)), size_px=96)
    selection = select(survey(tmp_path), None)
    (hint,) = _vanishing(config, selection)
    assert all(words in hint for words in ("9 times", "75 pixels", "--tile auto"))
    assert _vanishing(dataclasses.replace(config, size_px=128), selection) == []
    assert _vanishing(dataclasses.replace(config, tile="auto"), selection) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": "auto", "method": "devnet"}, "which tile"),
        ({"tile": "large"}, "--tile large"),
        ({"tile": 8}, "from 64 to"),
        ({"tile": 160, "masks": "masks"}, "--masks"),
    ],
)
def test_what_does_not_go_with_tiles_is_refused(
    texture: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    (tmp_path / "masks").mkdir()
    given = {**options, **({"masks": tmp_path / "masks"} if "masks" in options else {})}
    with pytest.raises(UsageError, match=words):
        inspectad.train(texture / "good", texture / "defects", tmp_path / "refused", device="cpu", **given)
    assert not (tmp_path / "refused").exists()


def test_what_one_tile_alone_shows_is_a_candidate() -> None:
    """A patch in two thousand is drawn by chance one time in ten; of tiles, the most different ones are taken."""
    images = FakeTiles()
    trainer = MemoryBankTrainer(images, [], TrainSettings(input_size_hw=(96, 96)))
    level = trainer._levels[0]
    vectors = torch.ones(2000, 40) + 0.01 * torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    vectors[1234] = -1.0
    assert 1234 in trainer._choose(0, level, vectors, 20)
    images.tiling = None
    by_chance = MemoryBankTrainer(images, [], TrainSettings(input_size_hw=(96, 96)))
    found = [1234 in by_chance._choose(index, level, vectors, 20) for index in range(100)]
    assert sum(found) <= 8  # a hundredth each


class FakeTiles(list):
    """No images, but said to be tiles."""

    tiling: Tiling | None = Tiling(tile_hw=(96, 96))
