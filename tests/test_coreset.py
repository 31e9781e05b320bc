"""The coreset against the plain algorithm it speeds up, and against the best choice by brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from inspectad.nn import coreset
from inspectad.nn.coreset import greedy_coreset, project

QUICK = settings(deadline=None, max_examples=60)
COORDINATES = st.integers(-6, 6).map(float)  # few values: many duplicates and many equal distances


def points_of(count: int, dimensions: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


def plain_traversal(points: np.ndarray, size: int) -> list[int]:
    """Gonzalez (1985) as written: from point 0, always the point farthest from all chosen ones."""
    exact = points.astype(np.float64)
    distances = np.linalg.norm(exact - exact[0], axis=1)
    chosen = [0]
    while len(chosen) < size:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(exact - exact[chosen[-1]], axis=1))
    return chosen


def radius(points: np.ndarray, chosen) -> float:
    return float(cdist(points.astype(np.float64), points[list(chosen)].astype(np.float64)).min(axis=1).max())


@settings(QUICK, max_examples=40)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_the_traversal_is_the_plain_one(count: int, size: int, dimensions: int, seed: int) -> None:
    points = points_of(count, dimensions, seed)
    expected = plain_traversal(points, min(size, count))
    found = greedy_coreset(points, size)
    assert len(found) == len(expected)
    assert radius(points, found) == pytest.approx(radius(points, expected), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("candidates", [1, 2, 5, 17, 64])
def test_looking_at_few_candidates_at_a_time_changes_nothing(monkeypatch, candidates: int) -> None:
    monkeypatch.setattr(coreset, "_CANDIDATES", candidates)
    points = points_of(250, 6, 5)
    assert greedy_coreset(points, 60).tolist() == plain_traversal(points, 60)


def test_the_traversal_of_more_points_than_candidates_is_the_plain_one() -> None:
    points = points_of(6000, 8, 3)
    assert greedy_coreset(points, 300).tolist() == plain_traversal(points, 300)


@QUICK
@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 3), st.data())
def test_the_covering_radius_is_at_most_twice_the_best(
    count: int, size: int, dimensions: int, data: st.DataObject
) -> None:
    points = data.draw(arrays(np.float32, (count, dimensions), elements=COORDINATES))
    size = min(size, count)
    best = min(radius(points, subset) for subset in combinations(range(count), size))
    assert radius(points, greedy_coreset(points, size)) <= 2 * best + 1e-3


@QUICK
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3), st.sampled_from([1.0, 0.1, 1e3]), st.data())
def test_no_point_is_chosen_twice(count: int, size: int, dimensions: int, scale: float, data: st.DataObject) -> None:
    points = data.draw(arrays(np.float32, (count, dimensions), elements=st.sampled_from([0.0, 0.3, 0.7])))
    chosen = greedy_coreset(points * np.float32(scale), size)
    assert len(set(chosen.tolist())) == len(chosen) == min(size, count)


@pytest.mark.parametrize("candidates", [3, 2048])
@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_no_point_is_chosen_twice_among_many_copies(monkeypatch, candidates: int, distinct: int) -> None:
    monkeypatch.setattr(coreset, "_CANDIDATES", candidates)
    points = np.repeat(points_of(distinct, 32, 0), 40, axis=0)
    chosen = greedy_coreset(points, 30)
    assert len(set(chosen.tolist())) == 30
    assert len({points[i].tobytes() for i in chosen[:distinct]}) == distinct  # each kind before any copy


def test_few_points_are_all_kept() -> None:
    assert greedy_coreset(points_of(5, 2, 0), 9).tolist() == [0, 1, 2, 3, 4]


def test_features_of_few_dimensions_are_not_projected() -> None:
    features = points_of(10, 8, 0)
    np.testing.assert_array_equal(project(features, 8, seed=0), features)


def test_the_projection_keeps_distances_on_average() -> None:
    features = points_of(30, 152, 1)
    before = pdist(features.astype(np.float64), "sqeuclidean")
    ratios = np.stack([pdist(project(features, 32, seed), "sqeuclidean") / before for seed in range(40)])
    # Johnson-Lindenstrauss: each ratio has mean 1 and variance 2 / 32.
    assert ratios.mean() == pytest.approx(1.0, abs=0.02)
    assert ratios.std() == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert np.quantile(ratios, 0.001) > 0.3
    assert np.quantile(ratios, 0.999) < 2.2


def test_a_projected_distance_follows_the_chi_square_law() -> None:
    pair = points_of(2, 152, 2)
    before = float(pdist(pair.astype(np.float64), "sqeuclidean")[0])
    ratios = [float(pdist(project(pair, 32, seed), "sqeuclidean")[0]) / before for seed in range(300)]
    assert stats.kstest(np.array(ratios) * 32, stats.chi2(32).cdf).pvalue > 0.001


def test_the_projection_depends_on_its_seed_only() -> None:
    features = points_of(10, 100, 0)
    first, again, other = project(features, 16, 4), project(features.copy(), 16, 4), project(features, 16, 5)
    assert (first.shape, first.dtype) == ((10, 16), np.float32)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
