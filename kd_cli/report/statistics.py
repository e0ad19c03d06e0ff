"""Was distilling worth it? Statistics over seeds, and over the test examples of a single pair.

The verdict rests on seeds alone: student and baseline are trained with the same seeds, and the
differences by seed go through a paired t test and its interval. Test examples are the same in
every seed, so McNemar's test and the bootstrap describe one pair of trained networks: pooled over
seeds they would count each image several times.

Values are shares (accuracy 0.912) and higher is better; for a quantity where lower is better, swap
students and baselines.

Sources: Student 1908, "The probable error of a mean"; Dror et al. 2018, "The hitchhiker's guide to
testing statistical significance in natural language processing"; Bouthillier et al. 2021,
"Accounting for variance in machine learning benchmarks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[float] | np.ndarray
MIN_SEEDS = 3
MAX_SEEDS = 1000
# A spread below this share of the values is rounding: 0.9 - 0.8 and 0.8 - 0.7 differ by 1e-16.
_ROUNDING = 1e-9
_UNIT = " percentage points"


@dataclass(frozen=True)
class Summary:
    """Number of values, mean, and standard deviation with n - 1 (None for a single value)."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Paired:
    """Students against baselines, seed by seed.

    Attributes:
        differences: Student minus baseline by seed, in the values' unit.
        mean: Mean difference.
        sd: Standard deviation of the differences with n - 1; None for one seed.
        level: Level of the verdict: 0.95 calls a difference where there is none in 5 %.
        interval: t interval of the mean difference at `interval_level`, or None where there is
            none: fewer than three seeds, or the same difference on every seed.
        p_value: Two-sided; None below three seeds, 1 with the same difference on every seed.
        verdict: `better` or `worse` where the interval leaves out 0, else `inconclusive`;
            `too few seeds` below three.
        p_adjusted: The p value after Holm's correction; `p_value` where there is one point.
        points: How many points were compared with one baseline.
        interval_level: `level`, or above it under Holm's correction (see `several`).
    """

    differences: tuple[float, ...]
    mean: float
    sd: float | None
    level: float
    interval: tuple[float, float] | None
    p_value: float | None
    verdict: str
    p_adjusted: float | None
    points: int
    interval_level: float


@dataclass(frozen=True)
class McNemar:
    """One pair on the same test examples: how many each got right, and the exact p value."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


@dataclass(frozen=True)
class Bootstrap:
    """Accuracy of a minus accuracy of b, and its percentile interval over test examples."""

    difference: float
    interval: tuple[float, float]
    level: float


def summary(values: Values) -> Summary:
    """Number, mean and standard deviation.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    numbers = _finite(values, "values")
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return Summary(len(numbers), float(numbers.mean()), sd)


def paired(students: Values, baselines: Values, level: float = 0.95) -> Paired:
    """Paired t test with its interval: mean +- t * sd / sqrt(n), t of n - 1 degrees of freedom.

    Assumes that the differences are independent over seeds and about normal. With the same
    difference on every seed (up to rounding) there is no interval and nothing is concluded, even
    from a difference other than 0: the p value would be 0, which no few seeds can show. Equal runs
    may be a seed that changes nothing, equal differences a test set of few images.

    Args:
        students: [n], one per seed.
        baselines: [n], the same seeds in the same order.
        level: Of the interval and the verdict, between 0 and 1.

    Raises:
        ValueError: The lengths differ or are 0, a value is not finite, or `level` is not between
            0 and 1.
    """
    return _judge(_differences(students, baselines), level, 1.0, 1)


def several(pairs: Mapping[str, tuple[Values, Values]], level: float = 0.95) -> dict[str, Paired]:
    """Verdicts for several points against one baseline, under Holm's correction.

    Under no difference anywhere, or in any part of the points, the chance that at least one of the
    points without a difference is called better or worse is at most 1 - level, however much the
    points depend on each other (they share the baseline).

    The interval of a point has the level at which Holm compares it: 1 - (1 - level) / k with
    k = adjusted / unadjusted p value, between 1 and the number of points. So it leaves out 0
    exactly where the adjusted verdict says better or worse, and it always holds the unadjusted
    interval. Each covers its own difference at `level` or above; that all cover at once is not
    promised. Points with fewer than three seeds are not tested and not counted.

    Args:
        pairs: Point -> (students [n], baselines [n]); points may have different seeds.
        level: Of the verdicts.

    Raises:
        ValueError: As `paired`.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    differences = {name: _differences(*pair) for name, pair in pairs.items()}
    alone = {name: _judge(d, level, 1.0, 1) for name, d in differences.items()}
    tested = {name: one.p_value for name, one in alone.items() if one.p_value is not None}
    factors = dict(zip(tested, _holm_factors(np.array([*tested.values()])), strict=True))
    return {
        name: _judge(d, level, float(factors.get(name, 1.0)), max(1, len(tested)))
        for name, d in differences.items()
    }


def holm(p_values: Values) -> np.ndarray:
    """Holm-adjusted p values, in the order given. Reject where one is below the level.

    Of the p value with rank r it is the largest of (m - j) * p(j), j = 0..r, and at most 1.

    Raises:
        ValueError: There is none, or one is not within 0..1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = _finite(p_values, "p values")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p values must lie within 0..1, got {p.min():g} to {p.max():g}")
    return np.minimum(1, p * _holm_factors(p))


def seeds_needed(
    differences: Values, power: float = 0.8, level: float = 0.95, cap: int = MAX_SEEDS
) -> int | None:
    """How many seeds in all the paired t test needs to call such a difference.

    The smallest n of at least three with

        P(|t'| > t(1 - (1 - level) / 2, n - 1)) >= power,

    t' noncentral t with n - 1 degrees of freedom and noncentrality sqrt(n) * |mean| / sd. Assumes
    that the true difference and the true spread are those observed, which few seeds only guess:
    an order of magnitude to plan with, not a promise.

    Returns:
        The number; None where more than `cap` would be needed (a difference near 0) and where
        there is no spread to reckon with (one seed, or the same difference on every seed).

    Raises:
        ValueError: There is no difference, one is not finite, or `power` or `level` is not
            between 0 and 1.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", chapter 2; Colas
        et al. 2018, "How many random seeds?".
    """
    d = _finite(differences, "differences")
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must lie between 0 and 1, got {power} and {level}")
    sd = _spread(d)
    if not sd:
        return None
    effect = abs(float(d.mean())) / sd

    def enough(n: int) -> bool:
        # Not "power reached": far out, older scipy answers NaN where the power is 1.
        return not _power(effect, n, level) < power

    low, high = MIN_SEEDS - 1, MIN_SEEDS
    while not enough(high):
        if high >= cap:
            return None
        low, high = high, min(2 * high, cap)
    while high - low > 1:  # power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def mcnemar(right_a: Sequence[bool] | np.ndarray, right_b: Sequence[bool] | np.ndarray) -> McNemar:
    """Exact two-sided McNemar test of one pair: min(1, 2 P(X <= min(only a, only b))),
    X binomial over the examples that one network alone got right, with probability 1/2.

    Args:
        right_a: [n] whether a got the test example right.
        right_b: [n] the same examples in the same order.

    Raises:
        ValueError: The lengths differ or are 0, or a value is neither true nor false.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
        proportions"; Dietterich 1998, "Approximate statistical tests for comparing supervised
        classification learning algorithms".
    """
    from scipy.special import bdtr

    a, b = _right(right_a, right_b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(int((a & b).sum()), only_a, only_b, int((~a & ~b).sum()), p)


def bootstrap(
    right_a: Sequence[bool] | np.ndarray,
    right_b: Sequence[bool] | np.ndarray,
    seed: int,
    draws: int = 10_000,
    level: float = 0.95,
) -> Bootstrap:
    """Percentile bootstrap of accuracy a minus accuracy b over the test examples of one pair.

    An example counts +1 (only a right), -1 (only b right) or 0, so that n examples drawn with
    replacement are one multinomial draw of these three counts: the same distribution, without the
    [draws, n] indices.

    Args:
        right_a: [n] whether a got the test example right.
        right_b: [n] the same examples in the same order.
        seed: Of the draws; the same seed gives the same interval.
        draws: Number of resamples.
        level: Of the interval.

    Raises:
        ValueError: As `mcnemar`.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    a, b = _right(right_a, right_b)
    n = len(a)
    counts = np.array([(a & ~b).sum(), (b & ~a).sum(), (a == b).sum()])
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap(float(counts[0] - counts[1]) / n, (float(low), float(high)), level)


def in_words(result: Paired, power: float = 0.8) -> str:
    """One sentence for people, in percentage points."""
    n = len(result.differences)
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    if result.verdict == "too few seeds":
        mean = _points(result.mean, sign="+") + _UNIT
        return f"too few seeds: {mean} with {seeds}; a verdict takes {MIN_SEEDS} seeds"
    if result.interval is None:
        if abs(result.mean) < _ROUNDING:
            return f"inconclusive: no difference on any of {seeds}"
        mean = _points(result.mean, sign="+") + _UNIT
        return (
            f"inconclusive: {mean} on each of {seeds}; without spread there is no interval "
            "(do the seeds change the runs? is the test set large enough?)"
        )
    level = f"{100 * result.interval_level:.4g} % interval"
    many = result.points > 1
    holm = f", Holm's correction for {result.points} comparisons" if many else ""
    low, high = result.interval
    if result.verdict != "inconclusive":
        if result.verdict == "worse":  # "worse by" turns the sign
            low, high = -high, -low
        digits = _digits(low)
        low, high, mean = (_points(x, digits) for x in (low, high, abs(result.mean)))
        return f"{result.verdict} by {mean}{_UNIT} ({level} {low} to {high}, {seeds}{holm})"
    digits = max(_digits(low), _digits(high))
    low, high = (_points(x, digits) for x in (low, high))
    needed = seeds_needed(result.differences, power, result.interval_level)
    if needed is None:
        settle = f"more than {MAX_SEEDS} seeds would be needed to settle a difference this small"
    else:
        more = max(1, needed - n)
        some = f"{more} more seed" + ("s" if more > 1 else "")
        settle = f"about {some} would settle a difference of this size (power {100 * power:g} %)"
    mean = _points(result.mean, digits, sign="+") + _UNIT
    return f"inconclusive: {mean} ({level} {low} to {high}, {seeds}{holm}); {settle}"


def _judge(d: np.ndarray, level: float, factor: float, points: int) -> Paired:
    """The verdict at `level` with its error divided by `factor` (1: a single comparison)."""
    from scipy.special import stdtr, stdtrit

    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, got {level}")
    n, mean = len(d), float(d.mean())
    alpha = (1 - level) / factor
    interval, p, verdict = None, None, "too few seeds"
    sd = _spread(d) if n > 1 else None
    if n >= MIN_SEEDS:
        p, verdict = 1.0, "inconclusive"
        if sd:
            error = sd / math.sqrt(n)
            p = 2 * float(stdtr(n - 1, -abs(mean) / error))
            half = -float(stdtrit(n - 1, alpha / 2)) * error
            interval = (mean - half, mean + half)
            if interval[0] > 0:
                verdict = "better"
            elif interval[1] < 0:
                verdict = "worse"
    adjusted = None if p is None else min(1.0, p * factor)
    return Paired(
        tuple(d.tolist()), mean, sd, level, interval, p, verdict, adjusted, points, 1 - alpha
    )


def _holm_factors(p: np.ndarray) -> np.ndarray:
    """Adjusted over unadjusted p value, before the adjusted one is cut at 1; within 1..m."""
    m = len(p)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate((m - np.arange(m)) * p[order])
    factors = np.empty(m)
    # A p value of 0 has no quotient; m is on the safe side.
    factors[order] = np.divide(adjusted, p[order], out=np.full(m, float(m)), where=p[order] > 0)
    return factors


def _power(effect: float, n: int, level: float) -> float:
    from scipy.special import nctdtr, stdtrit

    limit = -stdtrit(n - 1, (1 - level) / 2)
    shift = math.sqrt(n) * effect
    return float(1 - nctdtr(n - 1, shift, limit) + nctdtr(n - 1, shift, -limit))


def _spread(d: np.ndarray) -> float:
    """Standard deviation with n - 1; 0 for one value and where it is rounding."""
    if len(d) < 2:
        return 0.0
    from_mean = d - d.mean()
    sd = math.sqrt(float(from_mean @ from_mean) / (len(d) - 1))
    return sd if sd > _ROUNDING * max(1e-3, float(abs(d).max())) else 0.0


def _finite(values: Values, what: str) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"{what} must be a list of at least one number, got {values!r}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} must be finite, got {values!r}")
    return numbers


def _differences(students: Values, baselines: Values) -> np.ndarray:
    a, b = _finite(students, "students"), _finite(baselines, "baselines")
    if len(a) != len(b):
        raise ValueError(f"pairs need one baseline per student, got {len(a)} and {len(b)}")
    return a - b


def _right(right_a, right_b) -> tuple[np.ndarray, np.ndarray]:
    a, b = _finite(right_a, "right_a"), _finite(right_b, "right_b")
    if len(a) != len(b):
        raise ValueError(f"both need the same examples, got {len(a)} and {len(b)}")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("right or wrong must be true or false for every example")
    return a == 1, b == 1


def _digits(share: float) -> int:
    """Digits that keep a bound other than 0 from being written as 0.00 (up to six)."""
    return next((d for d in range(2, 6) if not share or round(100 * share, d)), 6)


def _points(share: float, digits: int = 2, sign: str = "") -> str:
    """A share in percentage points; no -0.00."""
    return f"{100 * share:{sign}z.{digits}f}"
