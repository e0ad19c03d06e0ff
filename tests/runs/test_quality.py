"""Quality and fidelity by hand, in closed form, and against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    top_k_accuracy_score,
)

from kd_cli.runs import quality

LABELS = np.random.default_rng(0).integers(0, 12, 300)
LOGITS = np.random.default_rng(1).normal(0, 2, (300, 12)).astype("float32")


def drawn(n: int, classes: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits times `scale`, and labels drawn from the probabilities of the unscaled ones."""
    generator = np.random.default_rng(7)
    logits = generator.normal(0, 1.5, (n, classes))
    p = np.exp(quality.log_softmax(logits))
    labels = (p.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return scale * logits, np.minimum(labels, classes - 1)


def two_classes(confidence: np.ndarray) -> np.ndarray:
    """Logits of two classes whose first has this probability."""
    return np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)


def test_log_softmax_equals_scipy():
    expected = scipy_log_softmax(LOGITS.astype(np.float64), axis=1)
    np.testing.assert_allclose(quality.log_softmax(LOGITS), expected, rtol=1e-12)
    assert quality.log_softmax(LOGITS).dtype == np.float64


def test_accuracy_nll_and_top5_equal_scikit_learn():
    result = quality.quality(LOGITS, LABELS)
    p = np.exp(scipy_log_softmax(LOGITS.astype(np.float64), axis=1))
    for one in (result, quality.score(LOGITS, LABELS)):
        assert one["accuracy"] == accuracy_score(LABELS, LOGITS.argmax(axis=1))
        assert one["nll"] == pytest.approx(log_loss(LABELS, p, labels=range(12)))
    assert set(quality.score(LOGITS, LABELS)) == {"accuracy", "nll"}
    assert result["top5"] == top_k_accuracy_score(LABELS, LOGITS, k=5, labels=range(12))
    one_hot = np.eye(12)[LABELS]
    assert result["brier"] == pytest.approx(((p - one_hot) ** 2).sum() / 300)


def test_balanced_accuracy_equals_scikit_learn():
    logits, labels = drawn(400, 6, 2.0)
    kept = (labels != 4) & ((labels != 1) | (np.arange(400) % 9 == 0))  # none of 4, few of 1
    result = quality.quality(logits[kept], labels[kept])
    expected = balanced_accuracy_score(labels[kept], logits[kept].argmax(axis=1))
    assert result["balanced_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert result["balanced_accuracy"] != pytest.approx(result["accuracy"], rel=1e-3)


def test_a_constant_prediction_in_closed_form():
    # K = 4, even probabilities: NLL ln 4, Brier (3/4)^2 + 3 (1/4)^2 = 3/4; the first class wins.
    labels = np.array([0, 1, 2, 3, 0])
    result = quality.quality(np.full((5, 4), 2.5), labels, temperature=3.0)
    assert result["nll"] == result["nll_scaled"] == pytest.approx(math.log(4))
    assert result["brier"] == pytest.approx(0.75)
    assert result["accuracy"] == 0.4
    assert result["ece"] == result["ece_equal_mass"] == pytest.approx(0.4 - 0.25)
    assert result["per_class"] == [1.0, 0.0, 0.0, 0.0]


def test_a_sure_and_right_or_wrong_network():
    labels = np.arange(4)
    right = quality.quality(100 * np.eye(4), labels)
    assert (right["accuracy"], right["ece"]) == (1.0, pytest.approx(0))
    assert (right["nll"], right["brier"]) == (pytest.approx(0), pytest.approx(0))
    wrong = quality.quality(100 * np.eye(4), (labels + 1) % 4)
    assert (wrong["accuracy"], wrong["ece"]) == (0.0, pytest.approx(1))
    assert (wrong["nll"], wrong["brier"]) == (pytest.approx(100), pytest.approx(2))


def test_per_class_accuracy_by_hand():
    logits = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 3, 0]])
    assert quality.quality(logits, np.array([0, 0, 1, 1]))["per_class"] == [0.5, 0.5, None]


@pytest.mark.parametrize(("classes", "has"), [(5, False), (10, False), (11, True)])
def test_top5_only_where_it_means_something(classes, has):
    result = quality.quality(np.eye(classes), np.arange(classes))
    assert ("top5" in result) == has
    assert "ece_scaled" not in result


def test_equal_logits_are_won_by_the_first_class():
    result = quality.quality(np.zeros((12, 12)), np.arange(12))
    assert result["accuracy"] == pytest.approx(1 / 12)
    assert result["top5"] == pytest.approx(5 / 12)
    assert quality.fidelity(np.zeros((1, 3)), np.eye(3)[:1], np.array([0]))["agreement"] == 1


def test_calibration_error_of_a_calibrated_construction_is_0():
    # 100 examples with confidence c, of which 100 c are right, for each of five confidences.
    confidence = np.repeat([0.6, 0.7, 0.8, 0.9, 0.99], 100)
    labels = np.concatenate([np.arange(100) >= 100 * c for c in (0.6, 0.7, 0.8, 0.9, 0.99)])
    result = quality.quality(two_classes(confidence), labels.astype(int))
    assert result["ece"] == pytest.approx(0, abs=1e-12)
    assert result["ece_equal_mass"] == pytest.approx(0, abs=1e-12)


def test_calibration_error_by_hand():
    # Bins of 1/15: 0.61 and 0.65 in (0.6, 0.667], one right; 0.9 and 0.92 in (0.867, 0.933], both.
    logits = two_classes(np.array([0.61, 0.65, 0.9, 0.92]))
    labels = np.array([0, 1, 0, 0])
    result = quality.quality(logits, labels)
    assert result["ece"] == pytest.approx((abs(1 - 1.26) + abs(2 - 1.82)) / 4)
    # Four examples in 15 bins are alone in theirs.
    assert result["ece_equal_mass"] == pytest.approx((0.39 + 0.65 + 0.1 + 0.08) / 4)


def test_bins_of_equal_width_are_closed_on_the_right():
    edges = np.linspace(0, 1, 16)
    assert quality._equal_width(edges[1:], 15).tolist() == list(range(15))
    assert quality._equal_width(edges[1:-1] + 1e-9, 15).tolist() == list(range(1, 15))


def test_bins_of_equal_mass():
    assert quality._equal_mass(np.array([0.4, 0.2, 0.3, 0.1]), 2).tolist() == [1, 0, 1, 0]
    # Equal confidences stay together, where the first of them falls.
    assert quality._equal_mass(np.array([0.1, 0.5, 0.5, 0.5, 0.9, 1]), 3).tolist() == [
        *(0, 0, 0, 0),
        *(2, 2),
    ]
    sizes = np.bincount(quality._equal_mass(np.random.default_rng(0).random(1003), 15))
    assert len(sizes) == 15 and sizes.max() - sizes.min() == 1


def test_reliability_adds_up_to_ece():
    table = quality.reliability(LOGITS, LABELS)
    assert {key: len(value) for key, value in table.items()} == {
        "edges": 16,
        "count": 15,
        "confidence": 15,
        "accuracy": 15,
    }
    filled = table["count"] > 0
    assert table["count"].sum() == 300
    assert np.isnan(table["accuracy"][~filled]).all() and not filled[0]
    inside = table["confidence"][filled]
    assert (inside > table["edges"][:-1][filled]).all()
    assert (inside <= table["edges"][1:][filled]).all()
    gap = abs(table["accuracy"] - table["confidence"])[filled] @ table["count"][filled] / 300
    assert gap == pytest.approx(quality.quality(LOGITS, LABELS)["ece"])
    assert len(quality.reliability(LOGITS, LABELS, bins=4)["count"]) == 4


@pytest.mark.parametrize("scale", [3.0, 1.0, 0.2])
def test_the_temperature_of_scaled_logits_is_the_scale(scale):
    logits, labels = drawn(40_000, 5, scale)
    temperature = quality.fit_temperature(logits, labels)
    # The estimate has a standard error of about 1 % here.
    assert temperature == pytest.approx(scale, rel=0.03)
    result = quality.quality(logits, labels, temperature)
    assert result["temperature"] == temperature
    assert result["nll_scaled"] <= result["nll"]
    assert result["ece_scaled"] < 0.01
    assert scale == 1 or result["ece"] > 0.05
    plain = quality.quality(logits / temperature, labels)
    assert result["nll_scaled"] == pytest.approx(plain["nll"])
    assert result["ece_scaled"] == pytest.approx(plain["ece"])


def test_the_temperature_is_where_the_slope_is_0():
    # d NLL / d (1/T) = mean over examples of E[z] - z[label].
    temperature = quality.fit_temperature(LOGITS[:50], LOGITS[:50, :6].argmax(axis=1))
    labels = LOGITS[:50, :6].argmax(axis=1)
    p = np.exp(quality.log_softmax(LOGITS[:50].astype(np.float64) / temperature))
    slope = (p * LOGITS[:50]).sum(axis=1) - LOGITS[np.arange(50), labels]
    assert slope.mean() == pytest.approx(0, abs=1e-4)


def test_the_temperature_in_closed_form():
    # Logits (2, 0), right in three of four: sigmoid(2 / T) = 3/4, T = 2 / ln 3.
    logits, labels = np.tile([2.0, 0.0], (4, 1)), np.array([0, 0, 0, 1])
    assert quality.fit_temperature(logits, labels) == pytest.approx(2 / math.log(3), rel=1e-5)


def test_the_temperature_at_its_ends():
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    low, high = quality.TEMPERATURES
    always = quality.fit_temperature(logits, np.array([0, 1]))
    never = quality.fit_temperature(logits, np.array([1, 0]))
    assert low <= always < 0.1
    assert 0.99 * high < never <= high


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_huge_logits_stay_finite(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]], dtype)
    labels = np.array([1, 0])
    with np.errstate(all="raise", under="ignore"):
        result = quality.quality(logits, labels, temperature=0.5)
        near = quality.fidelity(logits, logits[:, ::-1], labels, 0.5)
        temperature = quality.fit_temperature(logits, labels)
        quality.reliability(logits, labels)
    assert result["nll"] == pytest.approx(2e4, rel=1e-3)
    assert 0.01 <= temperature <= 1e4
    assert np.isfinite([value for value in near.values() if value is not None]).all()


def test_fidelity_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 0.75 ln 1.5 + 0.25 ln 0.5, at T = 1;
    # at T = 2 the teacher's logits (ln 3, 0) become (ln sqrt 3, 0).
    teacher, student = np.array([[math.log(3), 0]]), np.array([[5.0, 5.0]])
    result = quality.fidelity(student, teacher, np.array([0]), temperature=2.0)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    assert result["kl"] == pytest.approx(0.13081204)
    assert result["kl_at_temperature"] == pytest.approx(
        p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    )
    assert result["temperature"] == 2.0
    assert result["agreement"] == 1.0  # equal logits: the first class
    assert result["agreement_teacher_wrong"] is None
    # The other way round it is 0.5 ln(2/3) + 0.5 ln 2.
    assert quality.fidelity(teacher, student, np.array([0]))["kl"] == pytest.approx(0.14384104)


def test_agreement_where_the_teacher_is_wrong_by_hand():
    teacher, student = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 2]]
    result = quality.fidelity(student, teacher, np.array([0, 0, 0, 0]))
    assert result["agreement"] == 0.5
    assert result["agreement_teacher_wrong"] == 0.5  # of the second and third, the second
    assert (result["kl_at_temperature"], result["temperature"]) == (None, None)


def test_fidelity_on_training_by_hand():
    teacher, student = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 2]]
    found = quality.fidelity_on_training(student, teacher, np.array([0, -1, 1, 0]))
    assert (found["images"], found["agreement"]) == (4, 0.5)
    assert found["accuracy"] == pytest.approx(2 / 3)  # of three with a label, the first and third
    # Two rows agree. In the others e/(e+2) meets 1/(e+2) and the other way: (e - 1) / (e + 2).
    assert found["kl"] == pytest.approx(0.5 * (math.e - 1) / (math.e + 2))
    none = quality.fidelity_on_training(student, teacher, np.full(4, -1))
    assert none["accuracy"] is None and none["agreement"] == 0.5
    assert quality.fidelity_on_training(student + np.nan, teacher, np.full(4, -1)) is None


def test_certainty_by_hand():
    # Probabilities 1/2, 1/4, 1/4 and three thirds: entropies 1.5 ln 2 and ln 3.
    logits = np.array([[math.log(2), 0, 0], [0, 0, 0]])
    found = quality.certainty(logits, np.array([0, -1]))
    assert found["images"] == 2 and found["accuracy"] == 1  # the second has no label
    assert found["entropy"] == pytest.approx((1.5 * math.log(2) + math.log(3)) / 2)
    assert found["entropy_at_temperature"] is None
    # At T 2 the first has exp(ln 2 / 2) = sqrt 2 against 1 and 1.
    p = np.array([math.sqrt(2), 1, 1]) / (2 + math.sqrt(2))
    at = quality.certainty(logits[:1], np.array([-1]), 2.0)
    assert at["entropy_at_temperature"] == pytest.approx(-(p * np.log(p)).sum())
    assert at["accuracy"] is None


def test_fidelity_of_the_teacher_to_itself():
    result = quality.fidelity(LOGITS, LOGITS, LABELS, 4.0)
    assert (result["agreement"], result["agreement_teacher_wrong"]) == (1.0, 1.0)
    assert (result["kl"], result["kl_at_temperature"]) == (0.0, 0.0)


matrices = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(
            st.lists(st.sampled_from([-1e4, -3.0, 0.0, 0.5, 2.0, 1e4]), min_size=12, max_size=12),
            min_size=n,
            max_size=n,
        ),
        st.lists(st.integers(0, 11), min_size=n, max_size=n),
    )
)


@given(matrices, st.floats(0.1, 20))
@settings(deadline=None, max_examples=50)
def test_bounds_and_invariances(values, temperature):
    logits, labels = np.array(values[0]), np.array(values[1])
    result = quality.quality(logits, labels, temperature)
    assert result["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert 0 <= result["accuracy"] <= result["top5"] <= 1
    assert 0 <= result["brier"] <= 2 + 1e-12
    for key in ("ece", "ece_equal_mass", "ece_scaled"):
        assert 0 <= result[key] <= 1
    seen = np.bincount(labels, minlength=12)
    weighted = sum(a * c for a, c in zip(result["per_class"], seen, strict=True) if c)
    assert weighted / len(labels) == pytest.approx(result["accuracy"])
    # Neither the order of the examples nor a constant added to a row matters.
    mixed = np.random.default_rng(0).permutation(len(labels))
    again = quality.quality(logits[mixed] + 8, labels[mixed], temperature)
    for key, value in result.items():
        assert again[key] == pytest.approx(value, abs=1e-9), key
    other = np.roll(logits, 1, axis=1)
    near = quality.fidelity(other, logits, labels, temperature)
    assert near["kl"] >= -1e-12 and near["kl_at_temperature"] >= -1e-12


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), r"got \(2, 3\) and \(1,\)"),
        (np.zeros((0, 3)), np.array([], int), "expected logits"),
        (np.zeros(3), np.array([0, 1, 2]), "expected logits"),
        (np.array([[0, np.nan]]), np.array([0]), "logits must be finite"),
        (np.zeros((1, 3)), np.array([3]), r"within 0..2, got 3 to 3"),
        (np.zeros((1, 3)), np.array([-1]), r"within 0..2, got -1"),
        (np.zeros((1, 3)), np.array([0.5]), "class numbers, got float64"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, message):
    for call in (quality.quality, quality.fit_temperature, quality.reliability):
        with pytest.raises(ValueError, match=message):
            call(logits, labels)
    with pytest.raises(ValueError, match=message):
        quality.fidelity(logits, logits, labels)


def test_other_refusals():
    for temperature in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be positive"):
            quality.quality(LOGITS, LABELS, temperature)
        with pytest.raises(ValueError, match="temperature must be positive"):
            quality.fidelity(LOGITS, LOGITS, LABELS, temperature)
    with pytest.raises(ValueError, match="differ in shape"):
        quality.fidelity(LOGITS[:, :5], LOGITS, LABELS % 5)


def test_logits_that_are_nearly_equal_are_told_apart():
    """Their log-probabilities are the same number: 1e-17 is less than the last digit of ln 2."""
    logits, labels = np.array([[0.0, 1e-17]]), np.array([1])
    assert len(set(quality.log_softmax(logits)[0])) == 1
    assert quality.score(logits, labels)["accuracy"] == 1
    assert quality.quality(logits, labels)["accuracy"] == 1


def test_a_score_of_logits_that_are_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        quality.score(np.array([[0.0, np.nan]]), np.array([0]))


def test_chance_is_the_most_frequent_class_and_two_standard_errors():
    share, limit = quality.chance(np.repeat([0, 1, 2], [50, 25, 25]))
    assert (share, limit) == (0.5, pytest.approx(0.5 + 2 * 0.05))
