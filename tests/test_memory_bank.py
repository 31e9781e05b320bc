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
from inspectad.methods.memory_bank import (
    SMOOTHING_PX,
    SOFTNESS,
    TOP_SHARE,
    MemoryBank,
    MemoryBankTrainer,
    nearest_distance,
    restore_memory_bank,
    soft_normalise,
)
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur

QUICK = settings(deadline=None, max_examples=40)
SIZE_HW = (192, 240)


def unit_vectors(count: int, dimensions: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_nearest(patches: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return cdist(patches.astype(np.float64), bank.astype(np.float64)).min(axis=1)


def settings_of(size_hw: tuple[int, int] = SIZE_HW, seed: int = 0, bank_size: int = 512) -> TrainSettings:
    return TrainSettings(input_size_hw=size_hw, seed=seed, bank_size=bank_size)


def fitted(seed: int = 0, size_hw: tuple[int, int] = (96, 128), images: int = 2, bank_size: int = 200) -> MemoryBank:
    parts = [render_part(i, None, size_hw).image for i in range(images)]
    return MemoryBankTrainer(parts, [], settings_of(size_hw, seed, bank_size)).fit(range(images))


@pytest.fixture(scope="module")
def bank_of_parts() -> MemoryBank:
    return fitted(size_hw=SIZE_HW, images=5, bank_size=512)


def judge(module: MemoryBank, image: np.ndarray) -> tuple[float, np.ndarray]:
    with torch.inference_mode():
        score, anomaly_map = module(torch.from_numpy(image).unsqueeze(0))
    return float(score[0]), anomaly_map[0].numpy()


def levels_of(module: MemoryBank, image: np.ndarray) -> list[np.ndarray]:
    """Raw features of one image: (patches, C) a level."""
    with torch.inference_mode():
        levels = module.features(torch.from_numpy(image).unsqueeze(0))
    return [level[0].flatten(1).T.numpy().astype(np.float64) for level in levels]


def patches_of(module: MemoryBank, image: np.ndarray) -> np.ndarray:
    """What the bank is searched for, in numpy: each level x / (|x| + offset), side by side."""
    pairs = zip(levels_of(module, image), module.offsets.tolist(), strict=True)
    return np.concatenate([x / (np.linalg.norm(x, axis=1, keepdims=True) + offset) for x, offset in pairs], axis=1)


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


def test_a_patch_in_the_bank_has_distance_zero() -> None:
    bank = torch.from_numpy(unit_vectors(300, 152, 0))
    assert float(nearest_distance(bank[::7], bank).max()) <= 1.1e-6


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
    distances = exact_nearest(patches_of(module, image), module.bank.numpy()).reshape(height, width)
    coarse = ndimage.gaussian_filter(distances, SMOOTHING_PX / 8, mode="nearest", truncate=4)
    top = max(1, round(TOP_SHARE * height * width))
    assert score == pytest.approx(np.sort(coarse.ravel())[-top:].mean(), rel=1e-4)
    enlarged = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(anomaly_map, enlarged, rtol=1e-3, atol=1e-3)


@QUICK
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 3), st.integers(0, 10**6))
def test_soft_normalisation_divides_by_length_plus_offset(height: int, width: int, offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = [rng.standard_normal((2, channels, height, width)).astype(np.float32) for channels in (3, 7)]
    found = soft_normalise([torch.from_numpy(x) for x in levels], [torch.tensor(offset), torch.tensor(0.0)]).numpy()
    assert found.shape == (2, height, width, 10)
    expected = np.moveaxis(levels[0] / (np.linalg.norm(levels[0], axis=1, keepdims=True) + np.float32(offset)), 1, -1)
    np.testing.assert_allclose(found[..., :3], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[..., 3:], axis=-1), 1.0, atol=1e-5)  # offset 0: unit length


def test_a_patch_without_features_is_no_division_by_zero() -> None:
    zero = torch.zeros(1, 4, 2, 2)
    assert torch.equal(soft_normalise([zero], [torch.tensor(0.0)]), torch.zeros(1, 2, 2, 4))


def test_the_offsets_are_half_the_mean_length_of_the_good_patches() -> None:
    module = fitted(images=2)
    levels = [levels_of(module, render_part(i, None, (96, 128)).image) for i in range(2)]
    lengths = [np.linalg.norm(np.concatenate(level), axis=1).mean() for level in zip(*levels, strict=True)]
    assert SOFTNESS == 0.5
    np.testing.assert_allclose(module.offsets.numpy(), 0.5 * np.array(lengths), rtol=1e-5)


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
    assert judge(module, render_part(0, None, (96, 128)).image)[0] < 1e-5
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
    assert first.bank.shape == (200, 152)
    assert torch.equal(first.bank, again.bank)
    assert not torch.equal(first.bank, other.bank)


def test_the_bank_holds_patches_of_the_images_it_was_fitted_to_and_of_no_other() -> None:
    parts = [render_part(i, None, (96, 128)).image for i in range(4)]
    trainer = MemoryBankTrainer(parts, [], settings_of((96, 128), bank_size=150))
    trainer.fit(range(4))  # fills the cache of patches
    module = trainer.fit([1, 3])
    patches = [patches_of(module, part) for part in parts]
    assert exact_nearest(module.bank.numpy(), np.concatenate([patches[1], patches[3]])).max() < 1e-4
    assert exact_nearest(module.bank.numpy(), np.concatenate([patches[0], patches[2]])).min() > 1e-3


def test_a_restored_module_computes_the_same() -> None:
    module = fitted()
    restored = restore_memory_bank(module.state_dict(), settings_of((96, 128)))
    image = render_part(9, "stain", (96, 128)).image
    (score, anomaly_map), (score_again, map_again) = judge(module, image), judge(restored, image)
    assert score == score_again
    np.testing.assert_array_equal(anomaly_map, map_again)
