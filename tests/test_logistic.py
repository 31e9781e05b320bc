"""Ridge logistic regression against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from inspectad.nn.logistic import balanced, fit_logistic


def drawn(good: int, defects: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_positive = rng.permutation(np.arange(good + defects) < defects)
    examples = rng.standard_normal((good + defects, dimensions)) + 0.7 * is_positive[:, None]
    return examples + rng.standard_normal(dimensions), is_positive


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.1, 3.0, 25.0]), st.integers(0, 99))
def test_it_equals_scikit_learn(good: int, defects: int, dimensions: int, strength: float, seed: int) -> None:
    examples, is_positive = drawn(good, defects, dimensions, seed)
    examples /= np.sqrt(dimensions)
    reference = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-10)
    reference.fit(examples, is_positive)
    found = fit_logistic(examples, balanced(is_positive), is_positive, strength)
    ours = examples @ found[:-1] + found[-1]
    np.testing.assert_allclose(ours, reference.decision_function(examples), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(found[:-1], reference.coef_[0], rtol=1e-2, atol=2e-3)


def test_the_shares_of_examples_count_like_copies_of_them() -> None:
    examples, is_positive = drawn(6, 4, 5, 0)
    times = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 1])
    shared = fit_logistic(examples, times.astype(np.float64), is_positive, 2.0)
    repeated = np.repeat(np.arange(10), times)
    copied = fit_logistic(examples[repeated], np.ones(len(repeated)), is_positive[repeated], 2.0)
    np.testing.assert_allclose(shared, copied, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shares", [None, np.arange(1.0, 10.0)])
def test_balanced_shares_give_both_kinds_the_same_weight(shares: np.ndarray | None) -> None:
    is_positive = np.arange(9) < 2
    found = balanced(is_positive, shares)
    assert found[is_positive].sum() == pytest.approx(4.5)
    assert found[~is_positive].sum() == pytest.approx(4.5)


def test_kinds_that_can_be_told_apart_perfectly_give_finite_weights() -> None:
    examples = np.array([[-1.0], [-1.0], [1.0], [1.0]]) * 1e3
    is_positive = np.array([False, False, True, True])
    found = fit_logistic(examples, balanced(is_positive), is_positive, 1e6)
    assert np.isfinite(found).all()
    assert ((examples @ found[:-1] + found[-1] > 0) == is_positive).all()
