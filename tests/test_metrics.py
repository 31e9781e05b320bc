"""Figures of merit against scikit-learn, SciPy, and a brute force written from the papers' definitions."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage, stats
from sklearn import metrics as sklearn_metrics

from inspectad.metrics import PixelCounts, Rate, aupro, auroc, average_precision, best_f1, f1, pixel_auroc

QUICK = settings(deadline=None, max_examples=60)
TIED_SCORES = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 0.5, 1.0, 7.0]), min_size=1, max_size=30).map(np.array)
FREE_SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30).map(np.array)
SCORES = TIED_SCORES | FREE_SCORES
SIDE = st.integers(1, 7)


def labelled(good: np.ndarray, defect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([0, 1], [len(good), len(defect)]), np.concatenate([good, defect])


@QUICK
@given(SCORES, SCORES)
def test_auroc_equals_scikit_learn(good: np.ndarray, defect: np.ndarray) -> None:
    assert auroc(good, defect) == pytest.approx(sklearn_metrics.roc_auc_score(*labelled(good, defect)), abs=1e-12)


@QUICK
@given(TIED_SCORES, TIED_SCORES)
def test_auroc_is_the_share_of_pairs_in_order_with_ties_counting_half(good: np.ndarray, defect: np.ndarray) -> None:
    pairs = [1.0 if d > g else 0.5 if d == g else 0.0 for g in good for d in defect]
    assert auroc(good, defect) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@QUICK
@given(SCORES, SCORES)
def test_average_precision_equals_scikit_learn(good: np.ndarray, defect: np.ndarray) -> None:
    expected = sklearn_metrics.average_precision_score(*labelled(good, defect))
    assert average_precision(good, defect) == pytest.approx(expected, abs=1e-12)


@QUICK
@given(SCORES, SCORES)
def test_best_f1_is_the_highest_over_all_thresholds(good: np.ndarray, defect: np.ndarray) -> None:
    truth, scores = labelled(good, defect)
    every = [sklearn_metrics.f1_score(truth, scores >= t, zero_division=0.0) for t in np.unique(scores)]
    assert best_f1(good, defect) == pytest.approx(max(every), abs=1e-12)


@pytest.mark.parametrize("figure", [auroc, average_precision, best_f1])
def test_an_infinite_score_ranks_as_any_highest_score(figure) -> None:
    good, defect = np.array([0.1, 0.7, math.inf]), np.array([0.3, 0.9, math.inf, math.inf])
    finite = [np.where(np.isinf(side), 1e9, side) for side in (good, defect)]
    assert figure(good, defect) == figure(*finite)


@pytest.mark.parametrize("figure", [auroc, average_precision, best_f1])
@pytest.mark.parametrize(("good", "defect"), [([], [1.0]), ([1.0], []), ([], [])])
def test_a_figure_without_one_of_its_sides_is_nan(figure, good: list[float], defect: list[float]) -> None:
    assert math.isnan(figure(np.array(good), np.array(defect)))


@QUICK
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_f1_equals_scikit_learn(hits: int, alarms: int, missed: int) -> None:
    assume(hits + alarms + missed)
    truth = [1] * hits + [0] * alarms + [1] * missed
    said = [1] * (hits + alarms) + [0] * missed
    expected = sklearn_metrics.f1_score(truth, said, zero_division=0.0)
    assert f1(hits, alarms, missed) == pytest.approx(expected, abs=1e-12)


def test_f1_of_nothing_is_nan() -> None:
    assert math.isnan(f1(0, 0, 0))


@QUICK
@given(st.data(), st.integers(1, 5000), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_scipy(data: st.DataObject, total: int, confidence: float) -> None:
    events = data.draw(st.integers(0, total))
    expected = stats.binomtest(events, total).proportion_ci(confidence, method="wilson")
    assert Rate(events, total).interval(confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_rate_of_nothing_says_nothing() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval() == (0.0, 1.0)


def test_a_rate_reads_as_counts_share_and_interval() -> None:
    low, high = stats.binomtest(3, 12).proportion_ci(0.95, method="wilson")
    assert str(Rate(3, 12)) == f"3 of 12 (25.0%, 95 % interval {100 * low:.1f}% to {100 * high:.1f}%)"


@st.composite
def maps_and_masks(draw: st.DrawFn, most: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Small images of different sizes, maps with many ties or none."""
    maps, masks = [], []
    values = draw(st.sampled_from([st.integers(0, 4).map(float), st.floats(0, 1, width=32)]))
    for _ in range(draw(st.integers(1, most))):
        shape = (draw(SIDE), draw(SIDE))
        maps.append(draw(arrays(np.float32, shape, elements=values)))
        masks.append(draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 255]))))
    return maps, masks


@QUICK
@given(maps_and_masks())
def test_pixel_auroc_equals_scikit_learn(images: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    scores, truth = (np.concatenate([a.ravel() for a in side]) for side in images)
    assume(0 < np.count_nonzero(truth) < truth.size)
    assert pixel_auroc(*images) == pytest.approx(sklearn_metrics.roc_auc_score(truth > 0, scores), abs=1e-9)


def slow_aupro(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], limit: float) -> float:
    """Bergmann et al., IJCV 2021, 4.1, word by word: every threshold, every region, then the area."""
    regions = []
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask > 0, structure=np.ones((3, 3)))
        regions += [(i, labels == k + 1) for k in range(count)]
    normal_pixels = sum(int((mask == 0).sum()) for mask in masks)
    curve = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        above = [m >= threshold for m in maps]
        alarms = sum(int((a & (mask == 0)).sum()) for a, mask in zip(above, masks, strict=True))
        overlap = [(above[i] & region).sum() / region.sum() for i, region in regions]
        curve.append((alarms / normal_pixels, sum(overlap) / len(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
        if x1 == limit:
            break
    return area / limit


@settings(QUICK, max_examples=150)
@given(maps_and_masks(), st.sampled_from([0.3, 0.05, 1.0]))
def test_aupro_equals_the_brute_force(images: tuple[list[np.ndarray], list[np.ndarray]], limit: float) -> None:
    truth = np.concatenate([mask.ravel() for mask in images[1]])
    assume(0 < np.count_nonzero(truth) < truth.size)
    assert aupro(*images, limit) == pytest.approx(slow_aupro(*images, limit), abs=1e-6)


def counted(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> PixelCounts:
    counts = PixelCounts(min(float(m.min()) for m in maps), max(float(m.max()) for m in maps))
    for anomaly_map, mask in zip(maps, masks, strict=True):
        counts.add(anomaly_map, mask)
    return counts


@settings(QUICK, max_examples=150)
@given(maps_and_masks(), st.sampled_from([0.3, 0.05, 1.0]), st.integers(0, 2**32 - 1))
def test_counted_pixels_give_what_all_pixels_at_once_give(
    images: tuple[list[np.ndarray], list[np.ndarray]], limit: float, seed: int
) -> None:
    maps, masks = images
    truth = np.concatenate([mask.ravel() for mask in masks]) > 0
    assume(0 < np.count_nonzero(truth) < truth.size)
    steps = np.random.default_rng(seed)  # whole steps, so that nothing but true ties ties
    maps = [steps.choice([0, 1, 17, 40_000, 65_535], m.shape).astype(np.float32) for m in maps]
    counts = PixelCounts(0, 65_535)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        counts.add(anomaly_map, mask)
    scores = np.concatenate([m.ravel() for m in maps])
    assert counts.pixel_auroc() == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), abs=1e-9)
    assert counts.aupro(limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-6)


def test_counting_in_steps_costs_less_than_what_is_ever_printed() -> None:
    random = np.random.default_rng(0)
    masks = [np.zeros((200, 300), np.uint8) for _ in range(8)]
    for mask in masks[4:]:
        y, x = random.integers(0, 150, 2)
        mask[y : y + 30, x : x + 20] = 255
    maps = [random.lognormal(0, 0.3, mask.shape).astype(np.float32) * (1 + (mask > 0)) for mask in masks]
    counts = counted(maps, masks)
    assert counts.pixel_auroc() == pytest.approx(pixel_auroc(maps, masks), abs=1e-6)
    assert counts.aupro() == pytest.approx(aupro(maps, masks), abs=1e-6)


def test_counted_pixels_of_one_score_only() -> None:
    mask = one_defect()
    counts = counted([np.ones(mask.shape, np.float32)], [mask])
    assert (counts.pixel_auroc(), counts.aupro()) == (0.5, pytest.approx(0.15, abs=1e-7))
    nothing = PixelCounts(0, 1)
    assert math.isnan(nothing.pixel_auroc())
    assert math.isnan(nothing.aupro())


def one_defect(size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[4:9, 5:12] = 255
    return mask


def test_a_perfect_map_has_aupro_and_pixel_auroc_1() -> None:
    mask = one_defect()
    perfect = (mask > 0).astype(np.float32)
    assert aupro([perfect], [mask]) == pytest.approx(1.0, abs=1e-7)
    assert pixel_auroc([perfect], [mask]) == 1.0


def test_a_constant_map_has_the_aupro_of_chance() -> None:
    flat = np.ones((20, 20), np.float32)
    assert aupro([flat], [one_defect()]) == pytest.approx(0.15, abs=1e-7)  # the area under y = x up to .3, over .3
    assert pixel_auroc([flat], [one_defect()]) == 0.5


def test_aupro_weighs_a_small_region_as_much_as_a_large_one() -> None:
    mask = one_defect()
    mask[15, 15] = 255
    only_the_large_one = (one_defect() > 0).astype(np.float32)
    # Half of the regions found at no false alarm, then a straight line to (1, 1): mean height .5 + .5 * .15.
    assert aupro([only_the_large_one], [mask]) == pytest.approx(0.575, abs=1e-6)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[0, 0] = mask[1, 1] = mask[3, 4] = 1
    found = np.zeros((4, 5), np.float32)
    found[3, 4] = 1
    assert aupro([found], [mask], 1.0) == pytest.approx(0.75, abs=1e-6)  # 1 of 2 regions, then a line to (1, 1)


def test_aupro_needs_a_region_and_a_normal_pixel() -> None:
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    assert math.isnan(aupro([values], [np.zeros((3, 3), np.uint8)]))
    assert math.isnan(aupro([values], [np.ones((3, 3), np.uint8)]))


def test_good_images_count_as_defect_free_pixels_of_aupro() -> None:
    mask, noise = one_defect(), np.random.default_rng(0).random((20, 20)).astype(np.float32)
    alarming = np.full((20, 20), 2.0, np.float32)  # a good image that outscores every defect pixel
    with warnings.catch_warnings(action="error"):
        assert aupro([noise], [mask]) > aupro([noise, alarming], [mask, np.zeros_like(mask)])
        assert aupro([noise, alarming], [mask, np.zeros_like(mask)]) == 0.0
