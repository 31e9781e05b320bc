"""The default method against SciPy and numpy, piece by piece, and on a rendered part with a defect."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from inspectad.demo_part import DEFECTS, render_part
from inspectad.methods.memory_bank import SMOOTHING_PX, TOP_SHARE, MemoryBank, MemoryBankTrainer, restore_memory_bank
from inspectad.nn.levels import LEVELS, Level, LevelBank, patch_vectors, random_directions
from inspectad.nn.patches import SAME, nearest_distance, soft_normalise
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur

QUICK = settings(deadline=None, max_examples=40)
SIZE_HW = (192, 240)


def unit_vectors(count: int, dimensions: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_nearest(patches: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.maximum(cdist(patches.astype(np.float64), bank.astype(np.float64)).min(axis=1), SAME)


def settings_of(size_hw: tuple[int, int] = SIZE_HW, seed: int = 0, bank_size: int = 512) -> TrainSettings:
    return TrainSettings(input_size_hw=size_hw, seed=seed, bank_size=bank_size)


def fitted(seed: int = 0, size_hw: tuple[int, int] = (96, 128), images: int = 2, bank_size: int = 200) -> MemoryBank:
    parts = [render_part(i, None, size_hw).image for i in range(images)]
    return MemoryBankTrainer(parts, [], settings_of(size_hw, seed, bank_size)).fit(range(images), []).module


@pytest.fixture(scope="module")
def bank_of_parts() -> MemoryBank:
    return fitted(size_hw=SIZE_HW, images=5, bank_size=512)


def judge(module: MemoryBank, image: np.ndarray) -> tuple[float, np.ndarray]:
    with torch.inference_mode():
        score, anomaly_map = module(torch.from_numpy(image).unsqueeze(0))
    return float(score[0]), anomaly_map[0].numpy()


def maps_of(module: MemoryBank, image: np.ndarray) -> list[np.ndarray]:
    """The backbone's maps of one image: (C, h, w) each."""
    with torch.inference_mode():
        maps = module.backbone(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    return [m[0].numpy().astype(np.float64) for m in maps]


def vectors_of(level: Level, maps: list[np.ndarray]) -> np.ndarray:
    """What a level makes of the maps, in numpy: (D, h, w)."""
    x = maps[level.source]
    if level.side > 1:  # mean of the places inside the map
        box = np.ones((level.side, level.side))
        sums = np.stack([ndimage.convolve(channel, box, mode="constant") for channel in x])
        x = sums / ndimage.convolve(np.ones(x.shape[1:]), box, mode="constant")
    if level.is_relative:
        x = x - x.mean(axis=(1, 2), keepdims=True)
    if level.dimensions is not None:
        x = np.einsum("chw,cd->dhw", x, random_directions(len(x), level.dimensions))
    return x


def patches_of(bank: LevelBank, maps: list[np.ndarray]) -> np.ndarray:
    """What a bank is searched for, in numpy: x / (|x| + offset), (patches, D)."""
    x = vectors_of(bank.level, maps).reshape(-1, maps[bank.level.source][0].size).T
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + float(bank.offset))


@QUICK
@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 40), st.integers(0, 10**6))
def test_the_nearest_distance_equals_scipy(patches: int, bank: int, dimensions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((n, dimensions)).astype(np.float32) for n in (patches, bank))
    found = nearest_distance(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, exact_nearest(x, y), rtol=1e-4, atol=1e-3)


@QUICK
@given(st.integers(1, 60), st.integers(2, 60), st.floats(1e-6, 1e-2), st.integers(0, 10**6))
def test_the_distance_to_a_close_neighbour_keeps_its_digits(
    bank: int, dimensions: int, offset: float, seed: int
) -> None:
    y = unit_vectors(bank, dimensions, seed)
    x = y + np.float32(offset) * unit_vectors(bank, dimensions, seed + 1)
    found = nearest_distance(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    expected = exact_nearest(x, y)
    assert (found >= expected * (1 - 1e-5) - 1e-9).all()  # it is the distance to a vector of the bank
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.median(found / np.maximum(expected, 1e-6)) == pytest.approx(1.0, abs=1e-3)


def test_a_patch_in_the_bank_is_the_same_whichever_of_its_copies_is_found() -> None:
    bank = torch.from_numpy(unit_vectors(300, 152, 0))
    copies = torch.cat([bank + 1e-5, bank])
    assert torch.equal(nearest_distance(bank[::7], copies), torch.full((43,), SAME))


@QUICK
@given(st.floats(0.3, 4.0), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_the_blur_equals_scipy(sigma: float, height: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    blur = GaussianBlur(sigma)
    found = blur(torch.from_numpy(values)[None, None])[0, 0].numpy()
    expected = ndimage.gaussian_filter(values.astype(np.float64), sigma, mode="nearest", radius=blur.radius)
    assert blur.radius >= 4 * sigma
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_score_and_map_follow_from_the_pieces() -> None:
    size_hw = (96, 128)
    module = fitted(size_hw=size_hw)
    image = render_part(9, "dent", size_hw).image
    score, anomaly_map = judge(module, image)
    height, width = 12, 16  # stride 8
    maps, total = maps_of(module, image), np.zeros((height, width))
    for bank in module.banks:
        h, w = maps[bank.level.source].shape[1:]
        distances = exact_nearest(patches_of(bank, maps), bank.bank.numpy()).reshape(h, w)
        total += bank.level.weight * cv2.resize(distances, (width, height), interpolation=cv2.INTER_LINEAR)
    total /= sum(bank.level.weight for bank in module.banks)
    coarse = ndimage.gaussian_filter(total, SMOOTHING_PX / 8, mode="nearest", truncate=4)
    top = max(1, round(TOP_SHARE * height * width))
    assert score == pytest.approx(np.sort(coarse.ravel())[-top:].mean(), rel=1e-4)
    enlarged = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(anomaly_map, enlarged, rtol=1e-3, atol=1e-3)


@QUICK
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 3), st.integers(0, 10**6))
def test_soft_normalisation_divides_by_length_plus_offset(height: int, width: int, offset: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 7, height, width)).astype(np.float32)
    found = soft_normalise(torch.from_numpy(x), torch.tensor(offset)).numpy()
    expected = np.moveaxis(x / (np.linalg.norm(x, axis=1, keepdims=True) + np.float32(offset)), 1, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    units = soft_normalise(torch.from_numpy(x), torch.tensor(0.0)).numpy()
    np.testing.assert_allclose(np.linalg.norm(units, axis=-1), 1.0, atol=1e-5)


def test_a_patch_without_features_is_no_division_by_zero() -> None:
    zero = torch.zeros(1, 4, 2, 2)
    assert torch.equal(soft_normalise(zero, torch.tensor(0.0)), torch.zeros(1, 2, 2, 4))


@pytest.mark.parametrize("level", LEVELS["efficientnet_lite0"])
def test_the_vectors_of_a_level_equal_numpy(level: Level) -> None:
    rng = np.random.default_rng(5)
    maps = [rng.standard_normal((c, h, w)) for c, h, w in ((40, 6, 8), (112, 3, 4), (672, 3, 4))]
    found = patch_vectors(level, [torch.from_numpy(m.astype(np.float32))[None] for m in maps])[0].numpy()
    np.testing.assert_allclose(found, vectors_of(level, maps), rtol=1e-3, atol=1e-4)


def test_a_relative_level_ignores_what_all_places_of_an_image_share() -> None:
    level = next(level for level in LEVELS["efficientnet_lite0"] if level.is_relative)
    maps = [torch.randn(1, c, 6, 6, generator=torch.Generator().manual_seed(c)) for c in (40, 112)]
    shifted = [m + torch.linspace(-3, 3, m.shape[1])[None, :, None, None] for m in maps]
    torch.testing.assert_close(patch_vectors(level, maps), patch_vectors(level, shifted), rtol=1e-4, atol=1e-5)


def test_the_random_directions_are_orthonormal_and_keep_distances() -> None:
    directions = random_directions(672, 160)
    np.testing.assert_allclose(directions.T @ directions, np.eye(160), atol=1e-5)
    pairs = np.random.default_rng(1).standard_normal((500, 672))
    ratio = np.linalg.norm(pairs @ directions, axis=1) / np.linalg.norm(pairs, axis=1)
    assert ratio.mean() == pytest.approx(np.sqrt(160 / 672), rel=0.01)
    assert ratio.std() < 0.06 * ratio.mean()


def test_the_offsets_are_a_share_of_the_mean_length_of_the_good_patches() -> None:
    module = fitted(images=2)
    maps = [maps_of(module, render_part(i, None, (96, 128)).image) for i in range(2)]
    for bank in module.banks:
        lengths = [np.linalg.norm(vectors_of(bank.level, m), axis=0).ravel() for m in maps]
        expected = bank.level.softness * np.concatenate(lengths).mean()
        assert float(bank.offset) == pytest.approx(expected, rel=1e-4)


def test_the_score_is_the_mean_of_the_highest_hundredth(bank_of_parts: MemoryBank) -> None:
    score, anomaly_map = judge(bank_of_parts, render_part(21, "stain", SIZE_HW).image)
    share = np.sort(anomaly_map.ravel())[-round(0.01 * anomaly_map.size) :].mean()
    assert score == pytest.approx(share, rel=0.05)  # of the enlarged map; the score is taken before enlarging


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_raises_the_score_and_the_peak_lies_on_it(bank_of_parts: MemoryBank, defect: str) -> None:
    good, bad = render_part(31, None, SIZE_HW), render_part(31, defect, SIZE_HW)
    score_before, map_before = judge(bank_of_parts, good.image)
    score, anomaly_map = judge(bank_of_parts, bad.image)
    y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    away = ndimage.distance_transform_edt(bad.mask == 0)
    assert score > 1.05 * score_before
    assert anomaly_map.max() > map_before.max()
    assert away[y, x] <= 16  # two patches


def test_a_training_image_scores_lowest() -> None:
    module = fitted(images=2, bank_size=10**6)  # every patch is kept
    assert judge(module, render_part(0, None, (96, 128)).image)[0] < 1.01 * SAME
    assert judge(module, render_part(5, None, (96, 128)).image)[0] > 0.05


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    module = fitted()
    images = np.stack([render_part(i, None, (96, 128)).image for i in (7, 8, 9)])
    with torch.inference_mode():
        scores, maps = module(torch.from_numpy(images))
    for i, image in enumerate(images):
        score, anomaly_map = judge(module, image)
        assert score == pytest.approx(float(scores[i]), rel=1e-5)
        np.testing.assert_allclose(maps[i].numpy(), anomaly_map, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bank_and_another_seed_another() -> None:
    first, again, other = fitted(seed=3), fitted(seed=3), fitted(seed=4)
    shapes = [tuple(bank.bank.shape) for bank in first.banks]
    assert shapes == [
        (100, 40),
        (96, 112),
        (96, 160),
        (96, 112),
    ]  # half a bank; at stride 16 two images have 96 patches
    pairs = list(zip(first.banks, again.banks, strict=True))
    assert all(torch.equal(a.bank, b.bank) for a, b in pairs)
    assert not torch.equal(first.banks[0].bank, other.banks[0].bank)


def test_the_bank_holds_patches_of_the_images_it_was_fitted_to_and_of_no_other() -> None:
    parts = [render_part(i, None, (96, 128)).image for i in range(4)]
    trainer = MemoryBankTrainer(parts, [], settings_of((96, 128), bank_size=150))
    trainer.fit(range(4), [])  # fills the cache of patches
    module = trainer.fit([1, 3], []).module
    for bank in module.banks:
        patches = [patches_of(bank, maps_of(module, part)) for part in parts]
        assert exact_nearest(bank.bank.numpy(), np.concatenate([patches[1], patches[3]])).max() <= SAME
        assert exact_nearest(bank.bank.numpy(), np.concatenate([patches[0], patches[2]])).min() > 0.01


def test_a_restored_module_computes_the_same() -> None:
    module = fitted()
    restored = restore_memory_bank(module.state_dict(), settings_of((96, 128)))
    image = render_part(9, "stain", (96, 128)).image
    (score, anomaly_map), (score_again, map_again) = judge(module, image), judge(restored, image)
    assert score == score_again
    np.testing.assert_array_equal(anomaly_map, map_again)
