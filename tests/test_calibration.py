"""Thresholds against their closed forms and by simulation: what is promised of good images, and what defects may do."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from inspectad.calibration import (
    BANK_EXPONENT,
    PRIOR_IMAGES,
    PRIOR_SD,
    HeldOut,
    calibrate,
    exceedance,
    extrapolated_bound,
    fold_of,
)

QUICK = settings(deadline=None, max_examples=80)
NO_DEFECTS = np.zeros(0, np.float32)
# Good scores within 1 % to 10 % of each other, and now and then a high one.
GOOD_SCORES = st.lists(
    st.one_of(st.floats(0.5, 0.5625, width=32), st.floats(0.5, 3.0, width=32)), min_size=1, max_size=40
).map(lambda values: np.array(values, np.float32))
DEFECT_SCORES = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=12).map(lambda v: np.array(v, np.float32))
RATES = st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]) | st.floats(0.001, 0.49)


def held(scores: np.ndarray, peaks: np.ndarray | None = None, **changes: object) -> HeldOut:
    """Scores that need no correction."""
    given = {"learnt_from": 10, "final_images": 10, "how": "leave-one-out", **changes}
    scores = np.asarray(scores, np.float32)
    return HeldOut(scores=scores, peaks=scores if peaks is None else np.asarray(peaks, np.float32), **given)


def threshold_of(scores: np.ndarray, rate: float, defects: np.ndarray = NO_DEFECTS) -> float:
    return calibrate(held(scores), defects, rate)[0].threshold


def narrow_scores(count: int, seed: int) -> np.ndarray:
    """Distinct scores so close together that none of them can be flagged."""
    return np.random.default_rng(seed).permutation(np.linspace(0.5, 0.54, count)).astype(np.float32)


@pytest.mark.parametrize(
    ("law", "count", "rate"),
    [
        (stats.norm(-0.5, 0.07), 299, 0.01),
        (stats.norm(-0.5, 0.3), 350, 0.01),
        (stats.norm(-0.5, 0.07), 199, 0.05),
        (stats.uniform(-1.0, 0.2), 299, 0.01),
        (stats.uniform(-1.0, 0.2), 99, 0.2),
        (stats.expon(-0.5, 0.1), 199, 0.05),  # a long tail of good images, of which some are taken for suspects
        (stats.expon(-0.5, 0.1), 99, 0.2),
    ],
)
def test_fresh_good_images_are_rejected_at_most_as_often_as_asked(law, count: int, rate: float) -> None:
    rng = np.random.default_rng(8)
    thresholds = [threshold_of(np.exp(law.rvs(count, random_state=rng)), rate) for _ in range(80)]
    rejected = law.sf(np.log(thresholds))  # the exact rate among fresh images, for each calibration
    error = 3 * rejected.std() / math.sqrt(len(rejected))
    assert rejected.mean() <= rate + error
    assert rejected.mean() >= rate - 1 / (count + 1) - error  # and not without need more seldom


@QUICK
@given(st.sampled_from([Fraction(1, 100), Fraction(1, 20), Fraction(1, 10), Fraction(1, 3)]), st.integers(0, 150))
def test_with_enough_images_the_threshold_is_an_order_statistic(rate: Fraction, more: int) -> None:
    count = math.ceil(3 / rate) - 1 + more
    scores = narrow_scores(count, more)
    rank = math.ceil((count + 1) * (1 - rate))  # in whole numbers
    calibration, _ = calibrate(held(scores), NO_DEFECTS, float(rate))
    assert calibration.threshold == pytest.approx(float(np.sort(scores)[rank - 1]), rel=1e-12)
    assert calibration.expected_rate == float(rate)
    assert calibration.supported_rate <= float(rate)


@pytest.mark.parametrize("low", [0.2, 0.3, 0.5, 1.1])
@pytest.mark.parametrize("count", [299, 337])
def test_the_image_that_sets_the_threshold_is_not_above_it_by_rounding(low: float, count: int) -> None:
    rank = math.ceil(Fraction(99, 100) * (count + 1))
    for seed in range(30):
        scores = np.random.default_rng(seed).uniform(low, 1.08 * low, count).astype(np.float32)
        calibration, _ = calibrate(held(scores, learnt_from=9), NO_DEFECTS, 0.01)
        assert calibration.threshold >= float(np.sort(scores)[rank - 1]) * calibration.correction
        assert (scores.astype(np.float64) * calibration.correction > calibration.threshold).sum() == count - rank


@QUICK
@given(GOOD_SCORES, RATES)
def test_with_fewer_images_the_threshold_is_the_posterior_predictive_quantile(scores: np.ndarray, rate: float) -> None:
    calibration, suspects = calibrate(held(scores), NO_DEFECTS, rate)
    logs = np.log(scores.astype(np.float64))
    usual = np.delete(logs, suspects.good)
    if len(logs) >= 5:  # suspects count for no more than what would make an image one
        mad = np.median(np.abs(logs - np.median(logs)))
        logs = np.minimum(logs, np.median(logs) + 4 * max(1.4826 * mad, PRIOR_SD / 2))
    assume(len(scores) + 1 < 3 / rate)
    # Gelman et al., BDA3, 3.3: sigma^2 ~ Inv-chi2(n0, s0^2), flat mean; one further observation is Student-t.
    freedom = PRIOR_IMAGES + len(logs) - 1
    variance = (PRIOR_IMAGES * PRIOR_SD**2 + len(logs) * np.var(logs)) / freedom
    predictive = stats.t(freedom, logs.mean(), math.sqrt(variance * (1 + 1 / len(logs))))
    expected = float(np.exp(predictive.ppf(1 - rate)))
    assert extrapolated_bound(np.exp(logs), rate) == pytest.approx(expected, rel=1e-6)
    if len(scores) > 2:  # the third highest, or the highest that is no suspect
        expected = max(expected, float(np.sort(scores)[min(len(scores) - 2, len(usual)) - 1]))
    assert calibration.threshold == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "rate"), [(1, 0.05), (4, 0.05), (12, 0.02)])
def test_the_extrapolation_keeps_its_rate_where_its_assumptions_hold(count: int, rate: float) -> None:
    rng, draws = np.random.default_rng(2), 4000
    spread = PRIOR_SD * np.sqrt(PRIOR_IMAGES / rng.chisquare(PRIOR_IMAGES, draws))
    logs = spread[:, None] * rng.standard_normal((draws, count + 1)) - 0.7
    rejected = sum(math.exp(row[-1]) > extrapolated_bound(np.exp(row[:-1]), rate) for row in logs)
    assert stats.binomtest(rejected, draws, rate, alternative="greater").pvalue > 0.001
    assert rejected > 0.5 * rate * draws  # nor is it kept by calling everything good


@QUICK
@given(GOOD_SCORES, st.floats(0.002, 0.4))
def test_the_expected_rate_undoes_the_extrapolation(scores: np.ndarray, rate: float) -> None:
    precise = scores.astype(np.float64)
    bound = extrapolated_bound(precise, rate)
    assert exceedance(precise, bound) == pytest.approx(rate, rel=1e-6)


@settings(QUICK, max_examples=150)
@given(GOOD_SCORES, DEFECT_SCORES | st.just(NO_DEFECTS), RATES, RATES)
@example(np.append(narrow_scores(18, 0), np.float32(0.61)), NO_DEFECTS, 0.049, 0.051)
def test_a_lower_rate_never_gives_a_lower_threshold(
    scores: np.ndarray, defects: np.ndarray, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert threshold_of(scores, low, defects) >= threshold_of(scores, high, defects) * (1 - 1e-12)


@QUICK
@given(GOOD_SCORES, RATES)
def test_the_supported_rate_leaves_three_images_or_the_suspects_and_one_above(scores: np.ndarray, rate: float) -> None:
    calibration, suspects = calibrate(held(scores), NO_DEFECTS, rate)
    above = max(3, 1 + len(suspects.good))
    assert calibration.supported_rate == pytest.approx(min(1.0, above / (len(scores) + 1)))


def test_one_good_image_supports_nothing_and_is_extrapolated_with_the_prior_spread() -> None:
    calibration, suspects = calibrate(held([0.4], exchangeable=False), NO_DEFECTS, 0.01)
    expected = 0.4 * math.exp(stats.t.ppf(0.99, PRIOR_IMAGES) * PRIOR_SD * math.sqrt(2))
    assert calibration.threshold == pytest.approx(expected, rel=1e-6)
    assert calibration.supported_rate == 1.0
    assert (suspects.good, suspects.defects) == ((), ())


def test_copies_of_one_image_are_never_taken_for_that_many_images() -> None:
    scores = narrow_scores(350, 0)
    assert calibrate(held(scores), NO_DEFECTS, 0.01)[0].supported_rate < 0.01
    assert calibrate(held(scores, exchangeable=False), NO_DEFECTS, 0.01)[0].supported_rate == 1.0


@settings(QUICK, max_examples=150)
@given(GOOD_SCORES, DEFECT_SCORES, RATES)
def test_defects_choose_between_the_highest_good_score_and_the_threshold_of_good_images_alone(
    scores: np.ndarray, defects: np.ndarray, rate: float
) -> None:
    calibration, suspects = calibrate(held(scores), defects, rate)
    alone = threshold_of(scores, rate)
    highest = float(np.delete(scores, suspects.good).max())
    assert calibration.threshold >= min(alone, highest) * (1 - 1e-12)
    if calibration.threshold > alone:  # no known defect pays for it
        assert len(defects) >= 5
        assert calibration.threshold < defects.min()
        assert calibration.threshold <= threshold_of(scores, rate / 10)


@QUICK
@given(GOOD_SCORES, st.lists(st.floats(0.5, 3.0, width=32), min_size=5, max_size=9), st.floats(0, 1e4, width=32))
def test_one_arbitrary_defect_more_leaves_the_threshold_among_what_the_others_say(
    scores: np.ndarray, others: list[float], arbitrary: float
) -> None:
    calibration, suspects = calibrate(held(scores), np.array([*others, arbitrary], np.float32), 0.01)
    alone, highest = threshold_of(scores, 0.01), float(np.delete(scores, suspects.good).max())
    most = threshold_of(scores, 0.001)
    assert min(alone, highest) * (1 - 1e-9) <= calibration.threshold <= most
    found = [d for d in others if d > highest]
    if len(found) >= 5:
        low, high = min(alone, math.sqrt(highest * min(found))), min(most, math.sqrt(highest * max(found)))
        assert low * (1 - 1e-9) <= calibration.threshold <= high * (1 + 1e-9)


def test_defects_far_above_all_good_images_spare_false_rejects() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43, 0.44], np.float32)
    far = np.array([0.9, 0.95, 1.0, 1.1, 1.2], np.float32)
    alone, strict = threshold_of(scores, 0.1), threshold_of(scores, 0.01)
    assert threshold_of(scores, 0.1, far) == strict > alone
    near = np.array([0.5, 0.52, 0.53, 0.54, 0.9], np.float32)  # half-way to the lowest is below the stricter threshold
    assert threshold_of(scores, 0.1, near) == pytest.approx(math.sqrt(0.44 * 0.5), rel=1e-6)
    assert alone < math.sqrt(0.44 * 0.5) < strict
    for doubtful in (far[:4], np.append(far, np.float32(0.42))):
        assert threshold_of(scores, 0.1, doubtful) <= alone


def test_of_five_defects_the_one_that_a_rise_would_miss_counts_as_an_escape() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43, 0.44], np.float32)
    others = [0.9, 0.95, 1.0, 1.1]
    alone, strict = threshold_of(scores, 0.1), threshold_of(scores, 0.01)
    near = (alone + strict) / 2
    calibration, _ = calibrate(held(scores), np.array([near, *others], np.float32), 0.1)
    assert calibration.threshold < near  # it is known, and so not passed
    assert calibration.escapes == 1  # but it would be, had it not been known


def test_a_rise_expects_no_more_false_rejects_than_were_asked() -> None:
    scores = narrow_scores(60, 1)
    far = np.linspace(0.9, 1.2, 6).astype(np.float32)
    calibration, _ = calibrate(held(scores), far, 0.1)
    assert calibration.threshold > threshold_of(scores, 0.1)
    assert calibration.expected_rate <= 0.1


def test_a_huge_or_a_mislabelled_defect_among_six_moves_the_threshold_little() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43], np.float32)
    usual = np.array([0.50, 0.51, 0.52, 0.53, 0.54, 0.55], np.float32)
    alone, threshold = threshold_of(scores, 0.01), threshold_of(scores, 0.01, usual)
    assert 0.43 < threshold < alone
    for odd in (1e6, 0.405):
        moved = threshold_of(scores, 0.01, np.append(usual, np.float32(odd)))
        assert moved == pytest.approx(threshold, rel=0.03)


@pytest.mark.parametrize("count", range(5))
def test_a_mislabelled_defect_has_no_say_however_few_there_are(count: int) -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43], np.float32)
    real = np.linspace(0.5, 0.55, count).astype(np.float32)
    mislabelled = np.append(real, np.float32(0.405))
    assert threshold_of(scores, 0.01, mislabelled) == threshold_of(scores, 0.01, real)


def test_with_one_good_image_the_defects_are_believed() -> None:
    guess = held([1.0], exchangeable=False)
    defects = np.array([0.5, 0.6, 0.7], np.float32)
    calibration, suspects = calibrate(guess, defects, 0.01)
    assert 0.4 < calibration.threshold < 0.54
    assert suspects.defects == ()  # nor does a guess accuse them
    assert calibration.threshold < calibrate(guess, NO_DEFECTS, 0.01)[0].threshold


def test_defects_far_away_leave_the_threshold_alone() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43], np.float32)
    far = np.array([5.0, 6.0], np.float32)
    calibration, _ = calibrate(held(scores), far, 0.01)
    assert calibration.threshold == threshold_of(scores, 0.01)
    assert calibration.expected_rate == 0.01


def test_defects_close_by_lower_the_threshold_half_way_in_logs() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43], np.float32)
    near = np.array([0.45, 0.45, 0.45], np.float32)
    calibration, _ = calibrate(held(scores), near, 0.01)
    assert calibration.threshold == pytest.approx(float(stats.gmean([0.43, 0.45])), rel=1e-6)
    assert calibration.expected_rate > 0.01  # and what that costs is said
    assert "3 defects" in calibration.rule


@pytest.mark.parametrize("seed", range(3))
def test_a_defect_among_the_good_never_pushes_the_threshold_below_a_good_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        scores = rng.uniform(0.2, 0.215, 4).astype(np.float32)
        calibration, _ = calibrate(held(scores, learnt_from=9), np.array([0.19], np.float32), 0.01)
        assert calibration.threshold >= float(scores.max()) * calibration.correction  # not even by rounding


@QUICK
@given(GOOD_SCORES, DEFECT_SCORES | st.just(NO_DEFECTS), RATES)
def test_false_rejects_and_escapes_are_counted_at_thresholds_that_did_not_know_the_image(
    scores: np.ndarray, defects: np.ndarray, rate: float
) -> None:
    c, _ = calibrate(held(scores), defects, rate)
    others = [threshold_of(np.delete(scores, i), rate, defects) for i in range(len(scores)) if len(scores) > 1]
    assert c.false_rejects == sum(float(s) > t for s, t in zip(scores, others, strict=False))
    if len(defects) != 5:  # four of five would not raise the threshold that five raised
        without = [threshold_of(scores, rate, np.delete(defects, i)) for i in range(len(defects))]
        assert c.escapes == sum(float(d) <= t for d, t in zip(defects, without, strict=True))
    np.testing.assert_allclose(c.good_scores, scores, rtol=1e-6)
    np.testing.assert_allclose(c.defect_scores, defects, rtol=1e-6, atol=1e-30)


def test_a_good_image_at_three_times_the_usual_score_is_suspected_and_moves_the_threshold_little() -> None:
    usual = [0.40, 0.41, 0.42, 0.43, 0.40]
    thresholds = []
    for odd in (1.23, 123.0):
        calibration, suspects = calibrate(held([*usual, odd]), NO_DEFECTS, 0.01)
        assert suspects.good == (5,)
        assert calibration.false_rejects == 1
        thresholds.append(calibration.threshold)
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-12)  # however odd it is
    assert threshold_of(np.array(usual), 0.01) < thresholds[0] < 0.6


@QUICK
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.floats(0.125, 10.0, width=32), min_size=n, max_size=n)))
def test_among_fewer_than_five_good_images_none_is_suspected(scores: list[float]) -> None:
    assert calibrate(held(np.array(scores)), NO_DEFECTS, 0.01)[1].good == ()


def test_a_defect_that_scores_like_a_good_image_is_suspected() -> None:
    scores = np.array([0.40, 0.41, 0.42, 0.43, 0.44], np.float32)
    _, suspects = calibrate(held(scores), np.array([0.9, 0.405, 0.8, 0.2], np.float32), 0.01)
    assert suspects.defects == (1, 3)


def test_scores_of_smaller_banks_are_brought_to_the_final_one() -> None:
    scores = np.array([0.40, 0.42, 0.44], np.float32)
    smaller = held(scores, learnt_from=2, final_images=3)
    factor = (3 / 2) ** -BANK_EXPONENT
    calibration, _ = calibrate(smaller, NO_DEFECTS, 0.05)
    assert calibration.correction == pytest.approx(factor)
    assert calibration.threshold == pytest.approx(factor * threshold_of(scores, 0.05), rel=1e-6)


@QUICK
@given(GOOD_SCORES, DEFECT_SCORES | st.just(NO_DEFECTS), RATES, st.floats(0.2, 5.0))
def test_the_map_threshold_is_never_below_the_threshold(
    scores: np.ndarray, defects: np.ndarray, rate: float, share: float
) -> None:
    calibration, _ = calibrate(held(scores, scores * np.float32(share)), defects, rate)
    assert calibration.map_threshold >= calibration.threshold


def test_the_map_threshold_follows_the_peaks_of_good_images() -> None:
    scores = narrow_scores(299, 4)
    calibration, _ = calibrate(held(scores, scores * np.float32(1.25)), NO_DEFECTS, 0.01)
    assert calibration.map_threshold == pytest.approx(1.25 * float(np.sort(scores)[-3]), rel=1e-6)


def test_identical_and_zero_scores_still_give_a_positive_finite_threshold() -> None:
    for value in (0.0, 0.5):
        for count in (1, 5, 120):
            threshold = threshold_of(np.full(count, value, np.float32), 0.01)
            assert 0 < threshold < math.inf
            assert threshold >= value


@QUICK
@given(st.integers(1, 400), st.integers(1, 40))
def test_folds_are_contiguous_and_even(count: int, most: int) -> None:
    folds = np.asarray(fold_of(count, most))
    number = count if count <= most else min(8, most)
    sizes = np.bincount(folds)
    assert len(folds) == count
    assert len(sizes) == min(number, count)
    assert (np.diff(folds) >= 0).all()
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


def test_up_to_the_limit_one_image_is_left_out_at_a_time() -> None:
    assert list(fold_of(16, 16)) == list(range(16))
    assert len(set(fold_of(17, 16))) == 8
