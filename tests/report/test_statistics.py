"""Statistics against scipy and statsmodels, by hand, and simulated where nothing is different.

Numbers marked sm were computed with statsmodels 0.15.0, which is not a dependency.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kd_cli.report import statistics

STUDENTS = [0.912, 0.915, 0.909, 0.921, 0.917]
BASELINES = [0.905, 0.913, 0.904, 0.914, 0.916]
shares = st.floats(0, 1, allow_subnormal=False)
CALLED = ("better", "worse")


def share_of(count: int, size: int, expected: float) -> None:
    """A count of `size` independent trials lies within 3 standard errors of its expectation."""
    error = math.sqrt(expected * (1 - expected) / size)
    assert abs(count / size - expected) < 3 * error, f"{count / size} instead of {expected}"


def test_summary_by_hand():
    assert statistics.summary([1, 2, 6]) == statistics.Summary(3, 3.0, pytest.approx(math.sqrt(7)))
    assert statistics.summary([0.5]) == statistics.Summary(1, 0.5, None)


@pytest.mark.parametrize(
    ("level", "low", "high"),
    [
        (0.95, 0.0009322211750753509, 0.007867778824924657),  # sm: DescrStatsW.tconfint_mean
        (0.99, -0.001350512651203407, 0.010150512651203415),  # scipy: ttest_rel
    ],
)
def test_paired_against_statsmodels(level, low, high):
    result = statistics.paired(STUDENTS, BASELINES, level)
    assert result.mean == pytest.approx(0.0044)
    assert result.sd == pytest.approx(0.0027928480087537908)
    assert result.interval == pytest.approx((low, high))
    assert result.p_value == result.p_adjusted == pytest.approx(0.0243879312496)
    assert result.verdict == ("better" if low > 0 else "inconclusive")
    assert (result.level, result.interval_level, result.points) == (level, pytest.approx(level), 1)


@given(st.lists(st.tuples(shares, shares), min_size=3, max_size=12), st.sampled_from([0.9, 0.95]))
@settings(deadline=None)
def test_paired_equals_scipy(pairs, level):
    a, b = np.array(pairs).T
    result = statistics.paired(a, b, level)
    if result.interval is None:
        assert np.ptp(a - b) < 1e-8
        return
    known = stats.ttest_rel(a, b)
    assert result.p_value == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)
    assert result.interval == pytest.approx(known.confidence_interval(level), rel=1e-6, abs=1e-12)
    low, high = result.interval
    assert result.verdict == ("better" if low > 0 else "worse" if high < 0 else "inconclusive")


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8))
@settings(deadline=None)
def test_swapping_turns_the_verdict(pairs):
    a, b = np.array(pairs).T
    one, other = statistics.paired(a, b), statistics.paired(b, a)
    turned = {"better": "worse", "worse": "better"}
    assert other.verdict == turned.get(one.verdict, one.verdict)
    assert other.mean == -one.mean
    assert other.p_value == one.p_value


@given(st.permutations(range(5)))
@settings(deadline=None)
def test_only_the_pairing_matters_not_the_order_of_seeds(order):
    straight = statistics.paired(STUDENTS, BASELINES)
    mixed = statistics.paired(np.array(STUDENTS)[order], np.array(BASELINES)[order])
    assert mixed.interval == pytest.approx(straight.interval)
    assert mixed.verdict == straight.verdict


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_give_no_verdict(n):
    result = statistics.paired([0.9, 0.8][:n], [0.1, 0.2][:n])
    assert result.verdict == "too few seeds"
    assert (result.interval, result.p_value, result.p_adjusted) == (None, None, None)
    assert result.differences == pytest.approx((0.8, 0.6)[:n])


def test_the_same_difference_on_every_seed_concludes_nothing():
    # 0.3 - 0.2, 0.9 - 0.8 and 0.2 - 0.1 differ in their last bits only.
    result = statistics.paired([0.3, 0.9, 0.2], [0.2, 0.8, 0.1])
    assert len(set(result.differences)) > 1
    assert result.verdict == "inconclusive"
    assert (result.interval, result.p_value, result.sd) == (None, 1.0, 0.0)
    assert statistics.seeds_needed(result.differences) is None
    assert statistics.paired([0.5] * 4, [0.5] * 4).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2, 3], [1, 2], "one baseline per student, got 3 and 2"),
        ([], [], "at least one number"),
        ([1, 2, math.nan], [1, 2, 3], "students must be finite"),
        ([1, 2, 3], [1, math.inf, 3], "baselines must be finite"),
        ([[1, 2, 3]], [1, 2, 3], "must be a list"),
    ],
)
def test_paired_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        statistics.paired(a, b)


def test_other_refusals():
    with pytest.raises(ValueError, match="values must be finite"):
        statistics.summary([0.1, math.nan])
    with pytest.raises(ValueError, match="level must lie"):
        statistics.paired(STUDENTS, BASELINES, 95)
    with pytest.raises(ValueError, match="power and level"):
        statistics.seeds_needed([1, 2, 3], power=80)
    with pytest.raises(ValueError, match="within 0..1"):
        statistics.holm([0.1, 1.2])
    with pytest.raises(ValueError, match="p values must be finite"):
        statistics.holm([0.1, math.nan])
    with pytest.raises(ValueError, match="the same examples, got 3 and 2"):
        statistics.mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="true or false"):
        statistics.bootstrap([0.4, 1], [1, 0], seed=0)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_simulated_verdict_errs_in_5_percent_and_the_interval_covers_95(n):
    size, true = 4000, 0.004
    generator = np.random.default_rng(n)
    # A seed moves student and baseline together; what is left of the noise is normal.
    seeds = generator.normal(0.9, 0.02, (size, n))
    students = seeds + true + generator.normal(0, 0.003, (size, n))
    baselines = seeds + generator.normal(0, 0.004, (size, n))
    verdicts, covered = [], 0
    for a, b in zip(students, baselines, strict=True):
        low, high = statistics.paired(a, b).interval
        covered += low <= true <= high
        verdicts.append(statistics.paired(a - true, b).verdict)
    share_of(covered, size, 0.95)
    share_of(sum(verdict in CALLED for verdict in verdicts), size, 0.05)
    share_of(verdicts.count("better"), size, 0.025)


@pytest.mark.parametrize("images", [200, 1000])
def test_simulated_verdict_on_a_small_test_set_errs_no_more(images):
    # Accuracy then moves in steps as large as its spread, and equal differences are common.
    size, generator = 4000, np.random.default_rng(images)
    right = generator.binomial(images, 0.99, (2, size, 3)) / images
    called = sum(statistics.paired(a, b).verdict in CALLED for a, b in zip(*right, strict=True))
    assert called / size < 0.05 + 3 * math.sqrt(0.05 * 0.95 / size)


def test_simulated_power_is_what_seeds_needed_says():
    # Mean 1 and spread 1 need 10 seeds, whose power is 0.8031 (sm: TTestPower.power).
    assert statistics.seeds_needed([0, 1, 2]) == 10
    size = 4000
    draws = np.random.default_rng(3).normal(1, 1, (size, 10))
    called = sum(statistics.paired(d, np.zeros(10)).verdict == "better" for d in draws)
    share_of(called, size, 0.8031)


# sm: TTestPower().solve_power(effect_size, power=power, alpha=1 - level)
@pytest.mark.parametrize(
    ("effect", "power", "level", "expected"),
    [
        (0.1, 0.8, 0.95, 786.8089),
        (0.1, 0.9, 0.95, 1052.6645),
        (0.3, 0.8, 0.95, 89.1494),
        (0.3, 0.8, 0.99, 133.0961),
        (0.5, 0.8, 0.95, 33.3671),
        (0.5, 0.9, 0.95, 43.9955),
        (0.8, 0.8, 0.95, 14.3028),
        (1.0, 0.8, 0.95, 9.9379),
        (1.5, 0.8, 0.99, 8.6079),
        (2.0, 0.8, 0.95, 4.2207),
        (3.0, 0.8, 0.95, 3.1440),
    ],
)
def test_seeds_needed_against_statsmodels(effect, power, level, expected):
    differences = np.array([effect - 1, effect, effect + 1])  # spread 1
    assert statistics.seeds_needed(differences, power, level, cap=2000) == math.ceil(expected)
    # Neither the sign nor the unit matters.
    assert statistics.seeds_needed(-7 * differences, power, level, cap=2000) == math.ceil(expected)


# sm: TTestPower().power(effect_size, n, 0.05)
@pytest.mark.parametrize(
    ("effect", "n", "power"),
    [
        (0, 7, 0.05),  # no difference: the false positives of both sides
        (0.1, 3, 0.0513883595),
        (0.5, 10, 0.2931756065),
        (1.2, 4, 0.3831581175),
        (3.0, 3, 0.7452680070),
    ],
)
def test_power_against_statsmodels(effect, n, power):
    assert statistics._power(effect, n, 0.95) == pytest.approx(power, rel=1e-7)


def test_seeds_needed_at_its_ends():
    assert statistics.seeds_needed([9.9, 10, 10.1]) == 3
    assert statistics.seeds_needed([1e7, 1e7 + 1, 1e7 + 2]) == 3  # a noncentrality of 1e7
    assert statistics.seeds_needed([-0.99, 0.01, 1.01]) is None  # needs 78,491
    assert statistics.seeds_needed([-1, 0, 1]) is None
    assert statistics.seeds_needed([0.1]) is None
    assert statistics.seeds_needed([-0.7, 0.3, 1.3], cap=90) == 90
    assert statistics.seeds_needed([-0.7, 0.3, 1.3], cap=89) is None


# sm: multipletests(p, method="holm")
@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.011, 0.005, 0.02, 0.13], [0.08, 0.044, 0.025, 0.06, 0.13]),
        ([0.9, 0.8], [1, 1]),
        ([0.001, 0.001, 0.2], [0.003, 0.003, 0.2]),
        ([0, 0, 1], [0, 0, 1]),
        ([0.3], [0.3]),
    ],
)
def test_holm_against_statsmodels(p, adjusted):
    np.testing.assert_allclose(statistics.holm(p), adjusted)


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
@settings(deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] * (len(p) - step) >= alpha:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(statistics.holm(p)) if value < alpha} == rejected


def test_simulated_family_wise_error_of_holm():
    # Five points against one baseline: three are equal to it, two are far better.
    size, generator = 4000, np.random.default_rng(11)
    baseline = generator.normal(0, 0.01, (size, 1, 5))
    points = generator.normal(0, 0.01, (size, 5, 5))
    points[:, 3:] += 0.1
    p = stats.ttest_1samp(points - baseline, 0, axis=2).pvalue
    wrong = sum(bool((statistics.holm(row)[:3] < 0.05).any()) for row in p)
    assert wrong / size < 0.05 + 3 * math.sqrt(0.05 * 0.95 / size)
    # Without a correction it would be far more often.
    assert (p[:, :3] < 0.05).any(axis=1).mean() > 0.09
    # `several` says the same as the p values.
    for a, b, row in itertools.islice(zip(points, baseline, p, strict=True), 100):
        results = statistics.several({str(k): (a[k], b[0]) for k in range(5)})
        adjusted = [result.p_adjusted for result in results.values()]
        np.testing.assert_allclose(adjusted, statistics.holm(row), rtol=1e-6)


points = st.lists(st.lists(shares, min_size=2, max_size=6), min_size=1, max_size=6)


@given(points)
@settings(deadline=None)
def test_the_interval_under_holm_never_contradicts_its_verdict(values):
    results = statistics.several({str(k): (v, [0.5] * len(v)) for k, v in enumerate(values)})
    tested = [r for r in results.values() if r.p_value is not None]
    adjusted = statistics.holm([r.p_value for r in tested]) if tested else []
    for result, p in zip(tested, adjusted, strict=True):
        assert result.points == len(tested)
        assert result.p_adjusted == pytest.approx(p)
        if abs(p - 0.05) > 1e-9:
            assert (result.verdict in CALLED) == (p < 0.05)
        alone = statistics.paired(result.differences, [0] * len(result.differences))
        if result.interval is not None:
            assert (result.verdict in CALLED) == (result.interval[0] > 0 or result.interval[1] < 0)
            assert result.interval[0] <= alone.interval[0] + 1e-12
            assert result.interval[1] >= alone.interval[1] - 1e-12
            assert 0.95 - 1e-12 <= result.interval_level <= 1 - 0.05 / len(tested) + 1e-12


def test_several_by_hand():
    flat = [0.0] * 5
    good = [x - y for x, y in zip(STUDENTS, BASELINES, strict=True)]  # p = 0.02439
    results = statistics.several(
        {"good": (good, flat), "none": ([-1, 1, 0.2, -0.2, 0.1], flat), "two": ([1, 2], [0, 0])}
    )
    # Two points are tested: 0.02439 * 2 = 0.04878 is still below 0.05; the interval is 97.5 %.
    assert results["good"].verdict == "better"
    assert results["good"].p_adjusted == pytest.approx(2 * 0.0243879312496)
    assert results["good"].interval_level == pytest.approx(0.975)
    assert 0 < results["good"].interval[0] < 0.0001
    assert results["none"].verdict == "inconclusive"
    assert results["none"].interval_level == pytest.approx(0.95)
    assert results["two"].verdict == "too few seeds"
    # With a third tested point 0.07316 is above it.
    third = {"good": (good, flat), "a": ([-1, 1, 0], [0, 0, 0]), "b": ([-1, 1, 0], [0, 0, 0])}
    assert statistics.several(third)["good"].verdict == "inconclusive"
    assert statistics.several({}) == {}


def test_a_p_value_of_0_has_the_widest_interval():
    sure = 1 + 1e-6 * np.arange(100)  # t = 3e5 with 99 degrees of freedom
    results = statistics.several({"a": (sure, [0] * 100), "b": (sure, [0] * 100)})
    assert [result.p_value for result in results.values()] == [0, 0]
    assert [result.interval_level for result in results.values()] == [0.975, 0.975]


def flags(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


# sm: mcnemar([[50, only_a], [only_b, 9]], exact=True)
@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 0.0625),
        (1, 2, 1.0),
        (3, 10, 0.09228515625),
        (7, 7, 1.0),
        (12, 30, 0.007915897334896727),
        (150, 190, 0.0342700465332939),
        (121, 59, 4.4344492637551645e-06),
    ],
)
def test_mcnemar_against_statsmodels(only_a, only_b, p):
    result = statistics.mcnemar(*flags(50, only_a, only_b, 9))
    assert result == statistics.McNemar(50, only_a, only_b, 9, pytest.approx(p, rel=1e-9))
    if only_a + only_b:
        known = stats.binomtest(only_a, only_a + only_b).pvalue
        assert result.p_value == pytest.approx(known, rel=1e-9)


def test_bootstrap_against_scipy():
    a, b = flags(60, 20, 10, 30)
    result = statistics.bootstrap(a, b, seed=0, draws=40_000)
    known = stats.bootstrap(
        (a.astype(float) - b,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert result.difference == pytest.approx(10 / 120)
    # Both move in steps of 1/120 and by the draws.
    assert result.interval == pytest.approx((known.low, known.high), abs=1.01 / 120)


def test_bootstrap_is_normal_on_many_examples():
    n, only_a, only_b = 100_000, 3000, 2500
    result = statistics.bootstrap(*flags(80_000, only_a, only_b, n - 85_500), seed=1, draws=40_000)
    mean = (only_a - only_b) / n
    error = math.sqrt(((only_a + only_b) / n - mean**2) / n)
    assert result.interval == pytest.approx(
        (mean - 1.959964 * error, mean + 1.959964 * error), abs=0.05 * error
    )


def test_bootstrap_depends_on_its_seed_alone():
    a, b = flags(60, 20, 10, 30)
    assert statistics.bootstrap(a, b, seed=4) == statistics.bootstrap(list(a), list(b), seed=4)
    mixed = np.random.default_rng(0).permutation(120)
    assert statistics.bootstrap(a[mixed], b[mixed], seed=4) == statistics.bootstrap(a, b, seed=4)
    same = statistics.bootstrap(a, a, seed=0)
    assert (same.difference, same.interval) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("students", "baselines", "words"),
    [
        (
            STUDENTS,
            BASELINES,
            "better by 0.44 percentage points (95 % interval 0.09 to 0.79, 5 seeds)",
        ),
        (
            BASELINES,
            STUDENTS,
            "worse by 0.44 percentage points (95 % interval 0.09 to 0.79, 5 seeds)",
        ),
        (
            [0.90, 0.91, 0.92],
            [0.905, 0.90, 0.91],
            "inconclusive: +0.50 percentage points (95 % interval -1.65 to 2.65, 3 seeds); "
            "about 23 more seeds would settle a difference of this size (power 80 %)",
        ),
        (
            [0.91, 0.90, 0.90],
            [0.90, 0.91, 0.90],
            "inconclusive: +0.00 percentage points (95 % interval -2.48 to 2.48, 3 seeds); "
            "more than 1000 seeds would be needed to settle a difference this small",
        ),
        ([0.9] * 3, [0.9] * 3, "inconclusive: no difference on any of 3 seeds"),
        (
            [0.8] * 3,
            [0.9] * 3,
            "inconclusive: -10.00 percentage points on each of 3 seeds; without spread there "
            "is no interval (do the seeds change the runs? is the test set large enough?)",
        ),
        (
            [0.9, 0.8],
            [0.8, 0.8],
            "too few seeds: +5.00 percentage points with 2 seeds; a verdict takes 3 seeds",
        ),
        (
            [0.9],
            [0.8],
            "too few seeds: +10.00 percentage points with 1 seed; a verdict takes 3 seeds",
        ),
        (
            # A bound of 0.0038 points is not written as 0.00.
            [0.00078, 0.00128, 0.00178],
            [0.0, 0.0, 0.0],
            "better by 0.128 percentage points (95 % interval 0.004 to 0.252, 3 seeds)",
        ),
        (
            [0.9, 0.91, 0.92],
            [0.9, 0.909998, 0.920001],
            "inconclusive: +0.0000 percentage points (95 % interval -0.0003 to 0.0004, 3 seeds); "
            "about 164 more seeds would settle a difference of this size (power 80 %)",
        ),
    ],
)
def test_in_words(students, baselines, words):
    assert statistics.in_words(statistics.paired(students, baselines)) == words


def test_in_words_under_holm():
    flat = [0.0] * 5
    good = [x - y for x, y in zip(STUDENTS, BASELINES, strict=True)]
    results = statistics.several({"good": (good, flat), "none": ([-1, 1, 0.2, -0.2, 0.1], flat)})
    assert statistics.in_words(results["good"]) == (
        "better by 0.440 percentage points (97.5 % interval 0.003 to 0.877, 5 seeds, "
        "Holm's correction for 2 comparisons)"
    )


def test_more_seeds_under_holm_are_reckoned_at_its_level():
    results = statistics.several(
        {
            "a": ([0.01, 0.03, 0.02, 0.00], [0.0] * 4),
            "b": ([0.01, -0.03, 0.02, 0.00], [0.0] * 4),
            "c": ([0.02, -0.03, 0.02, 0.01], [0.0] * 4),
        }
    )
    # sm: 10.75 seeds at 1 - 0.05 / 3, so 7 more; at 0.95 it would be 7.94.
    assert statistics.in_words(results["a"]) == (
        "inconclusive: +1.50 percentage points (98.33 % interval -1.63 to 4.63, 4 seeds, "
        "Holm's correction for 3 comparisons); about 7 more seeds "
        "would settle a difference of this size (power 80 %)"
    )


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8))
@settings(deadline=None)
def test_words_say_the_verdict(pairs):
    result = statistics.paired(*np.array(pairs).T)
    words = statistics.in_words(result)
    assert words.startswith(result.verdict)
    assert "nan" not in words and "-0.00 " not in words
