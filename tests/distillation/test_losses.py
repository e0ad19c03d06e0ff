"""Every loss against NumPy in float64, against numbers found by hand, and its gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kd_cli.distillation import losses

LABELS = np.array([0, 3, 1, 1, 2])
STUDENT = np.random.default_rng(1).normal(0, 3, (5, 4)).astype("float32")
TEACHER = np.random.default_rng(2).normal(0, 3, (5, 4)).astype("float32")
ROWS = np.arange(5)


def outputs(logits) -> dict:
    return {"logits": tf.constant(logits, tf.float32)}


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(temperature: float) -> np.ndarray:
    log_p, log_q = log_softmax(TEACHER / temperature), log_softmax(STUDENT / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def close(value, expected) -> None:
    np.testing.assert_allclose(np.asarray(value), expected, rtol=2e-6, atol=1e-6)


def gradient(loss, logits, *arguments, **hyper) -> np.ndarray:
    """Of the sum of the loss's terms over the batch, with respect to the student's logits."""
    student = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(student)
        labels, teacher = arguments
        terms = loss(labels, {"logits": student}, teacher, **hyper)
        total = tf.add_n([tf.reduce_sum(term) for term in terms.values()])
    return tape.gradient(total, student).numpy()


def test_an_image_without_a_label_has_no_term_of_the_labels():
    labels = np.array(LABELS)
    hidden = np.where(np.arange(len(labels)) == 1, -1, labels)
    for loss, options in (
        (losses.cross_entropy, {"label_smoothing": 0.1}),
        (losses.hinton, {"alpha": 0.3, "temperature": 2.0}),
        (losses.hard, {"alpha": 0.3}),
    ):
        one = loss(tf.constant(hidden), outputs(STUDENT), outputs(TEACHER), **options)
        whole = loss(tf.constant(labels), outputs(STUDENT), outputs(TEACHER), **options)
        for name in whole:
            expected = np.array(whole[name])
            if name == "hard":
                expected[1] = 0
            close(one[name], expected)


def test_cross_entropy_equals_numpy():
    terms = losses.cross_entropy(tf.constant(LABELS), outputs(STUDENT), None)
    assert list(terms) == ["hard"]
    close(terms["hard"], -log_softmax(STUDENT)[ROWS, LABELS])


def test_label_smoothing_equals_numpy():
    target = 0.8 * np.eye(4)[LABELS] + 0.2 / 4
    terms = losses.cross_entropy(tf.constant(LABELS), outputs(STUDENT), None, label_smoothing=0.2)
    close(terms["hard"], -(target * log_softmax(STUDENT)).sum(axis=-1))


SHARES = np.random.default_rng(3).dirichlet(np.ones(4), 5)  # as mixup makes them of labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_to_shares_of_the_classes_equals_numpy(smoothing):
    target = (1 - smoothing) * SHARES + smoothing / 4
    labels = tf.constant(SHARES, tf.float32)
    terms = losses.cross_entropy(labels, outputs(STUDENT), None, label_smoothing=smoothing)
    close(terms["hard"], -(target * log_softmax(STUDENT)).sum(axis=-1))
    whole = tf.one_hot(LABELS, 4)
    same = losses.cross_entropy(whole, outputs(STUDENT), None, label_smoothing=smoothing)
    plain = losses.cross_entropy(LABELS, outputs(STUDENT), None, label_smoothing=smoothing)
    close(same["hard"], plain["hard"])


WEIGHTS = np.array([0.5, 0.0, 2.0, 7.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_multiply_each_example_by_that_of_its_label(smoothing):
    target = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    weights = tf.Variable(WEIGHTS, dtype=tf.float32)
    terms = losses.cross_entropy(
        tf.constant(LABELS),
        outputs(STUDENT),
        None,
        label_smoothing=smoothing,
        class_weights=weights,
    )
    close(terms["hard"], -WEIGHTS[LABELS] * (target * log_softmax(STUDENT)).sum(axis=-1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_of_shares_weigh_each_share_by_its_class(smoothing):
    expected = 0.0
    for label in range(4):  # what the pure label would lose, times its share
        target = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
        expected -= SHARES[:, label] * WEIGHTS[label] * (target * log_softmax(STUDENT)).sum(axis=-1)
    terms = losses.cross_entropy(
        tf.constant(SHARES, tf.float32),
        outputs(STUDENT),
        None,
        label_smoothing=smoothing,
        class_weights=tf.constant(WEIGHTS, tf.float32),
    )
    close(terms["hard"], expected)


@pytest.mark.parametrize(
    ("loss", "hyper", "other"),
    [
        (losses.hinton, dict(alpha=0.3, temperature=2), "soft"),
        (losses.hard, dict(alpha=0.3), "teacher"),
    ],
)
def test_class_weights_are_of_the_labels_term_alone(loss, hyper, other):
    given = tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER)
    plain = loss(*given, **hyper)
    terms = loss(*given, **hyper, class_weights=tf.constant(WEIGHTS, tf.float32))
    close(terms["hard"], plain["hard"] * WEIGHTS[LABELS])
    np.testing.assert_array_equal(terms[other], plain[other])
    ones = loss(*given, **hyper, class_weights=tf.ones(4))
    np.testing.assert_array_equal(ones["hard"], plain["hard"])


@pytest.mark.parametrize(
    ("loss", "hyper"),
    [(losses.hinton, dict(alpha=0.3, temperature=2)), (losses.hard, dict(alpha=0.3))],
)
def test_the_labels_share_of_a_distillation_takes_shares_too(loss, hyper):
    labels = tf.constant(SHARES, tf.float32)
    terms = loss(labels, outputs(STUDENT), outputs(TEACHER), **hyper)
    close(terms["hard"], -0.3 * (SHARES * log_softmax(STUDENT)).sum(axis=-1))
    plain = loss(LABELS, outputs(STUDENT), outputs(TEACHER), **hyper)
    (other,) = terms.keys() - {"hard"}
    close(terms[other], plain[other])


def test_cross_entropy_of_a_fair_coin_is_ln_2():
    assert float(losses.cross_entropy([1], outputs([[5, 5]]), None)["hard"][0]) == pytest.approx(
        0.69314718, rel=1e-7
    )


def test_label_smoothing_by_hand():
    # q = (3/4, 1/4), target (0.9, 0.1): -0.9 ln 0.75 - 0.1 ln 0.25 = 0.25891387 + 0.13862944.
    terms = losses.cross_entropy([0], outputs([[math.log(3), 0]]), None, label_smoothing=0.2)
    assert float(terms["hard"][0]) == pytest.approx(0.39754331, rel=1e-6)


@pytest.mark.parametrize(("t_squared", "factor"), [(True, 9), (False, 1)])
def test_hinton_equals_numpy(t_squared, factor):
    terms = losses.hinton(
        tf.constant(LABELS),
        outputs(STUDENT),
        outputs(TEACHER),
        alpha=0.3,
        temperature=3.0,
        t_squared=t_squared,
    )
    assert list(terms) == ["hard", "soft"]
    close(terms["hard"], -0.3 * log_softmax(STUDENT)[ROWS, LABELS])
    close(terms["soft"], 0.7 * factor * kl(3.0))


@pytest.mark.parametrize(("t_squared", "soft"), [(True, 0.47092333), (False, 0.11773083)])
def test_hinton_by_hand(t_squared, soft):
    # At T = 2 the teacher is (3/4, 1/4), the student (1/2, 1/2):
    # KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.13081204; times 0.9, times T^2 = 4 or 1.
    terms = losses.hinton(
        [0],
        outputs([[0, 0]]),
        outputs([[2 * math.log(3), 0]]),
        alpha=0.1,
        temperature=2.0,
        t_squared=t_squared,
    )
    assert float(terms["hard"][0]) == pytest.approx(0.069314718, rel=1e-6)
    assert float(terms["soft"][0]) == pytest.approx(soft, rel=1e-6)


def test_hinton_has_the_factor_unless_told_otherwise():
    terms = losses.hinton(
        tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER), alpha=0.0, temperature=3.0
    )
    close(terms["soft"], 9 * kl(3.0))


@pytest.mark.parametrize(("t_squared", "factor"), [(True, 100), (False, 1)])
def test_function_matching_equals_numpy_without_labels(t_squared, factor):
    terms = losses.function_matching(
        None, outputs(STUDENT), outputs(TEACHER), temperature=10.0, t_squared=t_squared
    )
    assert list(terms) == ["soft"]
    # In float32 the divergence is exact to about 1e-7, whatever its size; the factor comes after.
    np.testing.assert_allclose(terms["soft"], factor * kl(10.0), rtol=1e-6, atol=2e-7 * factor)


def test_function_matching_by_hand_and_from_teacher_to_student():
    # KL((1/2, 1/2) || (3/4, 1/4)) = 0.5 ln(2/3) + 0.5 ln 2; the other way round it is 0.13081204.
    terms = losses.function_matching(
        None, outputs([[math.log(3), 0]]), outputs([[0, 0]]), temperature=1.0
    )
    assert float(terms["soft"][0]) == pytest.approx(0.14384104, rel=1e-6)


def test_hard_equals_numpy():
    terms = losses.hard(tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER), alpha=0.3)
    log_q = log_softmax(STUDENT)
    assert list(terms) == ["hard", "teacher"]
    close(terms["hard"], -0.3 * log_q[ROWS, LABELS])
    close(terms["teacher"], -0.7 * log_q[ROWS, TEACHER.argmax(axis=1)])


def test_hard_by_hand():
    # q = (3/4, 1/4); the label is 0, the teacher says 1: 0.25 * ln(4/3) and 0.75 * ln 4.
    terms = losses.hard([0], outputs([[math.log(3), 0]]), outputs([[-1, 1]]), alpha=0.25)
    assert float(terms["hard"][0]) == pytest.approx(0.071920518, rel=1e-6)
    assert float(terms["teacher"][0]) == pytest.approx(1.03972077, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_a_student_equal_to_its_teacher_has_no_soft_loss(temperature):
    terms = losses.hinton(
        tf.constant(LABELS), outputs(TEACHER), outputs(TEACHER), alpha=0.5, temperature=temperature
    )
    assert not np.any(terms["soft"])


@pytest.mark.parametrize("hyper", [{"loss": "hinton", "temperature": 4.0}, {"loss": "hard"}])
def test_alpha_1_is_the_cross_entropy(hyper):
    loss = getattr(losses, hyper.pop("loss"))
    terms = loss(tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER), alpha=1.0, **hyper)
    close(sum(terms.values()), -log_softmax(STUDENT)[ROWS, LABELS])


@pytest.mark.parametrize("hyper", [{"loss": "hinton", "temperature": 4.0}, {"loss": "hard"}])
def test_alpha_0_ignores_the_labels(hyper):
    loss = getattr(losses, hyper.pop("loss"))
    terms = loss(tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER), alpha=0.0, **hyper)
    assert not np.any(terms["hard"])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_cross_entropy_of_huge_logits_is_exact(smoothing):
    # log q = (0, -20000, -10000): -log q of the label, and -mean(log q) = 10000 with smoothing.
    terms = losses.cross_entropy([1], outputs([[1e4, -1e4, 0]]), None, label_smoothing=smoothing)
    assert float(terms["hard"][0]) == pytest.approx((1 - smoothing) * 2e4 + smoothing * 1e4)


def test_the_soft_loss_of_huge_logits_is_exact():
    # At T = 10 log q of the teacher's class is -2000; times T^2.
    terms = losses.function_matching(
        None,
        outputs([[-1e4, 1e4, 0]]),
        outputs([[1e4, -1e4, 0]]),
        temperature=10.0,
        t_squared=True,
    )
    assert float(terms["soft"][0]) == pytest.approx(2e5)


def test_a_confident_mistake_has_a_gradient():
    found = gradient(losses.cross_entropy, [[1e4, -1e4, 0]], [1], None)
    np.testing.assert_array_equal(found, [[1, -1, 0]])


def test_a_confident_mistake_about_the_teacher_has_a_gradient():
    found = gradient(
        losses.function_matching,
        [[1e4, -1e4, 0]],
        None,
        outputs([[-1e4, 1e4, 0]]),
        temperature=1.0,
    )
    np.testing.assert_array_equal(found, [[1, -1, 0]])


def test_gradient_of_the_smoothed_cross_entropy():
    target = 0.9 * np.eye(4)[LABELS] + 0.1 / 4
    found = gradient(losses.cross_entropy, STUDENT, tf.constant(LABELS), None, label_smoothing=0.1)
    close(found, np.exp(log_softmax(STUDENT)) - target)


@pytest.mark.parametrize(("t_squared", "factor"), [(True, 5.0), (False, 1 / 5.0)])
def test_gradient_of_the_soft_term(t_squared, factor):
    # d/dz of T^2 * KL is T * (q_T - p_T), of KL alone (q_T - p_T) / T.
    found = gradient(
        losses.function_matching,
        STUDENT,
        None,
        outputs(TEACHER),
        temperature=5.0,
        t_squared=t_squared,
    )
    close(found, factor * (np.exp(log_softmax(STUDENT / 5)) - np.exp(log_softmax(TEACHER / 5))))


def test_gradient_of_hinton_is_the_weighted_sum():
    found = gradient(
        losses.hinton,
        STUDENT,
        tf.constant(LABELS),
        outputs(TEACHER),
        alpha=0.2,
        temperature=5.0,
    )
    hard = np.exp(log_softmax(STUDENT)) - np.eye(4)[LABELS]
    soft = 5 * (np.exp(log_softmax(STUDENT / 5)) - np.exp(log_softmax(TEACHER / 5)))
    close(found, 0.2 * hard + 0.8 * soft)


def test_gradient_of_hard_pulls_to_label_and_decision():
    found = gradient(losses.hard, STUDENT, tf.constant(LABELS), outputs(TEACHER), alpha=0.2)
    target = 0.2 * np.eye(4)[LABELS] + 0.8 * np.eye(4)[TEACHER.argmax(axis=1)]
    close(found, np.exp(log_softmax(STUDENT)) - target)


def test_new_values_of_tensors_do_not_trace_again():
    hyper = {
        "alpha": tf.Variable(0.1),
        "temperature": tf.Variable(1.0),
        "t_squared": tf.Variable(True),
    }
    traces = []

    @tf.function
    def soft():
        traces.append(1)
        terms = losses.hinton(tf.constant(LABELS), outputs(STUDENT), outputs(TEACHER), **hyper)
        return terms["soft"]

    close(soft(), 0.9 * kl(1.0))
    hyper["alpha"].assign(0.6)
    hyper["temperature"].assign(3.0)
    close(soft(), 0.4 * 9 * kl(3.0))
    hyper["t_squared"].assign(False)
    close(soft(), 0.4 * kl(3.0))
    assert len(traces) == 1


@pytest.mark.parametrize("t_squared", [True, False])
def test_a_temperature_may_be_a_whole_number(t_squared):
    terms = losses.function_matching(
        None, outputs(STUDENT), outputs(TEACHER), temperature=3, t_squared=t_squared
    )
    close(terms["soft"], (9 if t_squared else 1) * kl(3.0))


@pytest.mark.parametrize(
    ("target", "hyper", "expected"),
    [
        ("kd_cli.distillation.cross_entropy", {"label_smoothing": 0.0}, "CE(labels, student)"),
        (
            "kd_cli.distillation.cross_entropy",
            {"label_smoothing": 0.1},
            "CE(labels, student), label smoothing 0.1",
        ),
        (
            "kd_cli.distillation.hinton",
            {"alpha": 0.1, "temperature": 4.0, "t_squared": True},
            "0.1 * CE(labels, student) + 0.9 * T^2 * KL(teacher/T || student/T), T = 4",
        ),
        (
            "kd_cli.distillation.hinton",
            {"alpha": 0.9, "temperature": 2.0, "t_squared": False},
            "0.9 * CE(labels, student) + 0.1 * KL(teacher/T || student/T), T = 2",
        ),
        (
            "kd_cli.distillation.function_matching",
            {"temperature": 10.0, "t_squared": False},
            "KL(teacher/T || student/T), T = 10",
        ),
        (
            "kd_cli.distillation.hard",
            {"alpha": 0.25},
            "0.25 * CE(labels, student) + 0.75 * CE(argmax teacher, student)",
        ),
        ("mine.cosine", {"beta": 2}, "mine.cosine(beta=2)"),
    ],
)
def test_formula(target, hyper, expected):
    assert losses.formula(target, hyper) == expected
