"""Methods against the values and gradients of their authors' own codes (PyTorch, in float64).

`methods_values.npz` holds fixed random inputs, and what RepDistiller, mdistiller, the authors of
DIST and NKD, and DeiT's formula give for them. Feature maps are NCHW there, kernels [out, in, h,
w].
"""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.distillation import losses
from kd_cli.distillation.contrastive import CRD
from kd_cli.distillation.feature_losses import (
    attention,
    attention_map,
    averaged,
    pkt,
    relational,
    similarity,
)
from kd_cli.distillation.hint import Hint
from kd_cli.distillation.logit_losses import deit, dist, dkd, mutual, nkd
from kd_cli.distillation.review import ReviewKD
from kd_cli.distillation.several import combined, confidence
from kd_cli.errors import ConfigError

VALUES = dict(np.load(Path(__file__).with_name("methods_values.npz")))
Y = tf.constant(VALUES["in/y"], tf.int64)
PAIR = [["s", "t"]]


def tensor(name):
    value = VALUES[name]
    return tf.constant(np.moveaxis(value, 1, -1) if value.ndim == 4 else value, tf.float32)


ZS, ZT = tensor("in/zs"), tensor("in/zt")
FS, FT = tf.nn.relu(tensor("in/fs1_raw")), tf.nn.relu(tensor("in/ft1_raw"))


def value_and_gradient(loss, at):
    """Of the sum of the terms' batch means, by the tensor `at`."""
    with tf.GradientTape() as tape:
        tape.watch(at)
        terms = loss(at)
        assert all(term.shape == at.shape[:1] for term in terms.values())
        total = tf.add_n([tf.reduce_mean(term) for term in terms.values()])
    return float(total), tape.gradient(total, at).numpy()


def close(found, key, name):
    value, gradient = found
    expected = VALUES[f"{key}/d_{name}"]
    expected = np.moveaxis(expected, 1, -1) if expected.ndim == 4 else expected
    assert value == pytest.approx(float(VALUES[key]), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def logits(loss, **keys):
    return lambda z: loss(Y, {"logits": z}, {"logits": ZT}, **keys)


HINTON = {"alpha": 0.0, "t_squared": True}
LOGITS = {
    "kd/repdistiller/T4": logits(losses.hinton, temperature=4.0, **HINTON),
    "logit_std_kd/T2": logits(losses.hinton, temperature=2.0, standardise=True, **HINTON),
    "dkd/alpha1_beta8_T4": logits(dkd, temperature=4.0, target=1.0, nontarget=8.0),
    "dist/beta1_gamma1_T1": logits(dist, temperature=1.0),
    "nkd/gamma1.5_T1": logits(nkd, temperature=1.0, gamma=1.5),
}


@pytest.mark.parametrize("key", LOGITS)
def test_losses_of_logits(key):
    close(value_and_gradient(LOGITS[key], ZS), key, "zs")


def shares(z):
    """Softmax in float64."""
    e = np.exp(np.float64(z) - np.float64(z).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_mutual_is_the_authors_without_their_1e_8():
    """They have KL as sum p log(1e-8 + p / (q + 1e-8)); it is 2e-5 below KL here."""
    value, gradient = value_and_gradient(logits(mutual), ZS)
    q, p = shares(ZS), shares(ZT)
    theirs = (p * np.log(1e-8 + p / (q + 1e-8))).sum(1).mean()
    assert theirs == pytest.approx(float(VALUES["dml/kl"]), rel=1e-6)
    assert value == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert value == pytest.approx(float(VALUES["dml/kl"]), rel=5e-5)
    ratio = p / (q + 1e-8)
    by_q = -p * ratio / (q + 1e-8) / (1e-8 + ratio) / len(q)
    expected = VALUES["dml/kl/d_zs"]
    np.testing.assert_allclose(q * (by_q - (by_q * q).sum(1, keepdims=True)), expected, atol=1e-7)
    np.testing.assert_allclose(gradient, (q - p) / len(q), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_mutual_is_a_mean_over_the_others_and_teaches_none_of_them():
    """NumPy, and the gradient by the others, which is not 0 where it is not stopped."""
    others = tf.stack([ZT, ZS + 1.5 * tensor("in/zt2"), -ZT], axis=1)  # [B, 3, K]
    with tf.GradientTape() as tape:
        tape.watch([ZS, others])
        (value,) = mutual(None, {"logits": ZS}, {"logits": others}).values()
    by_own, by_others = tape.gradient(value, [ZS, others])
    assert by_others is None and np.abs(VALUES["dml/kl/d_zt_not_stopped"]).max() > 0.01
    q, p = shares(ZS), shares(others)
    kl = (p * (np.log(p) - np.log(q)[:, None])).sum(-1).mean(1)
    np.testing.assert_allclose(value, kl, rtol=1e-4)
    np.testing.assert_allclose(by_own, q - p.mean(1), rtol=1e-3, atol=1e-5)
    far = {"logits": tf.constant([[1e4, -1e4, 0.0]])}
    (value,) = mutual(None, {"logits": tf.constant([[-1e4, 1e4, 0.0]])}, far).values()
    assert float(value[0]) == pytest.approx(2e4) and not np.any(
        mutual(None, far, far)["mutual"].numpy()
    )


def test_several_teachers_at_the_temperature_of_the_loss():
    members = tf.stack([ZT, tensor("in/zt2"), tensor("in/zt3")], axis=1)
    made = combined(members, 4.0, None)
    found = value_and_gradient(
        lambda z: losses.hinton(Y, {"logits": z}, {"logits": made}, temperature=4.0, **HINTON), ZS
    )
    close(found, "multi_teacher/mean_of_probabilities_T4", "zs")


def test_teachers_weighted_by_confidence():
    """CA-MKD's weights by hand; the mixture of probabilities with them."""
    members = np.stack([VALUES["in/zt"], VALUES["in/zt2"], VALUES["in/zt3"]], axis=1)
    members = members.astype(np.float64)

    def softmax(z):
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    cross = -np.log(softmax(members)[np.arange(16), :, VALUES["in/y"]])
    weights = (1 - softmax(cross)) / 2
    found = confidence(tf.constant(members, tf.float32), Y)
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.numpy().sum(1), 1, rtol=1e-5)
    mixed = (weights[..., None] * softmax(members / 3)).sum(1)
    made = combined(tf.constant(members, tf.float32), 3.0, found)
    np.testing.assert_allclose(tf.nn.softmax(made / 3), mixed, rtol=1e-4, atol=1e-7)
    shares = tf.one_hot(Y, 10)
    by_share = confidence(tf.constant(members, tf.float32), shares)
    np.testing.assert_allclose(by_share, weights, rtol=1e-5, atol=1e-7)
    unknown = confidence(tf.constant(members, tf.float32), tf.fill([16], tf.constant(-1, tf.int64)))
    np.testing.assert_allclose(unknown, 1 / 3, rtol=1e-6)


def test_the_distillation_token():
    key, token = "deit/hard_alpha0.5_tau1", tensor("in/zs_dist")

    def loss(class_head, token_head):
        student = {"logits": ZS, "features": {"c": class_head, "t": token_head}}
        return deit(Y, student, {"logits": ZT}, student_taps=["c", "t"])

    close(value_and_gradient(lambda z: loss(z, token), ZS), key, "zs")
    close(value_and_gradient(lambda z: loss(ZS, z), token), key, "zs_dist")


def features(loss, theirs, **keys):
    return lambda f: loss(
        None, {"features": {"s": f}}, {"features": {"t": theirs}}, pairs=PAIR, **keys
    )


FEATURES = {
    "at/stage1": (features(attention, attention_map(FT)), FS, "fs"),
    "sp/stage1": (features(similarity, FT), FS, "fs"),
    "rkd/wd25_wa50": (features(relational, tensor("in/et")), tensor("in/es"), "es"),
    "pkt/repdistiller": (features(pkt, tensor("in/et")), tensor("in/es"), "es"),
}


@pytest.mark.parametrize("key", FEATURES)
def test_losses_of_layers(key):
    loss, at, name = FEATURES[key]
    close(value_and_gradient(loss, at), key, name)


def built(layer, student, teacher, labels=()):
    keras.utils.set_random_seed(0)
    layer.build({"s": student}, {"t": teacher}, np.asarray(labels))
    return layer


def called(layer, theirs):
    return lambda f: layer.call(Y, {"features": {"s": f}}, {"features": {"t": theirs}})


def test_a_hint_without_a_projector():
    layer = built(Hint(pairs=PAIR, projector="none"), (4, 4, 8), (4, 4, 8))
    close(
        value_and_gradient(called(layer, tensor("in/gt1")), tensor("in/gs1")),
        "fitnet/mse_same_shape",
        "gs1",
    )


def test_a_hint_behind_fitnets_projector():
    """1x1 convolution, BatchNormalization, ReLU; the reference gives gradients alone."""
    layer = built(Hint(pairs=PAIR, projector="conv"), (4, 4, 8), (4, 4, 16))
    convolution, norm, _ = layer.projectors[0].chain
    weights = {k.rpartition("/w/")[2]: v for k, v in VALUES.items() if "fitnet/convreg/w/" in k}
    convolution.set_weights([weights["conv.weight"].transpose(2, 3, 1, 0), weights["conv.bias"]])
    norm.gamma.assign(weights["bn.weight"])
    norm.beta.assign(weights["bn.bias"])
    own = {"conv.weight": convolution.kernel, "bn.weight": norm.gamma, "bn.bias": norm.beta}
    with tf.GradientTape() as tape:
        tape.watch(FS)
        total = tf.reduce_mean(called(layer, FT)(FS)["hint"])
    by_feature, *by_weight = tape.gradient(total, [FS, *(v.value for v in own.values())])
    expected = np.moveaxis(VALUES["fitnet/convreg/d_fs1"], 1, -1)
    np.testing.assert_allclose(by_feature, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    for name, found in zip(own, by_weight, strict=True):
        wanted = VALUES[f"fitnet/convreg/d_w_{name}"]
        wanted = wanted.transpose(2, 3, 1, 0) if wanted.ndim == 4 else wanted
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("projector", ["linear", "orthogonal", "ensemble"])
@pytest.mark.parametrize("distance", ["mse", "cosine", "smooth_l1"])
def test_projectors_and_distances_against_numpy(projector, distance):
    """The student's 24 numbers to the teacher's 32, layer-normalised."""
    keys = {"projector": projector, "distance": distance, "normalise": "layer"}
    layer = built(Hint(pairs=PAIR, **keys), (24,), (32,))
    ours, theirs = VALUES["in/es"].astype(np.float64), VALUES["in/et"].astype(np.float64)
    weights = [np.asarray(w, np.float64) for w in layer.get_weights()]
    if projector == "linear":
        made = ours @ weights[0] + weights[1]
    elif projector == "ensemble":
        pairs = zip(weights[::2], weights[1::2], strict=True)
        made = np.mean([np.maximum(ours @ w + b, 0) for w, b in pairs], axis=0)
    else:
        matrix = layer.projectors[0].chain[0](np.eye(24, dtype=np.float32)).numpy()
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-5)
        made = ours @ matrix
    wanted = (theirs - theirs.mean(1, keepdims=True)) / np.sqrt(theirs.var(1, keepdims=True) + 1e-5)
    gap = np.abs(made - wanted)
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(wanted, axis=1)
    expected = {
        "mse": (gap**2).mean(1),
        "smooth_l1": np.where(gap < 1, gap**2 / 2, gap - 0.5).mean(1),
        "cosine": 1 - (made * wanted).sum(1) / lengths,
    }[distance]
    found = called(layer, tensor("in/et"))(tensor("in/es"))["hint"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ours, kernel", [(4, 1), (8, 3), (2, 4), (9, 6)])
def test_fitnets_projector_between_resolutions(ours, kernel):
    """Kernels of RepDistiller's ConvReg to a teacher's map of 4x4."""
    layer = built(Hint(pairs=PAIR, projector="conv"), (ours, ours, 3), (4, 4, 5))
    convolution = layer.projectors[0].chain[0]
    assert convolution.kernel_size == (kernel, kernel)
    made = layer.projectors[0](tf.ones([2, ours, ours, 3]), training=True)
    assert made.shape == (2, 4, 4, 5)


def test_attention_of_two_resolutions_against_numpy():
    rng = np.random.default_rng(0)
    fine, coarse = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 2, 2, 5))

    def unit(power):
        return power / np.linalg.norm(power, axis=(1, 2), keepdims=True)

    def halved(maps):
        return (maps[:, ::2] + maps[:, 1::2])[:, :, ::2] + (maps[:, ::2] + maps[:, 1::2])[
            :, :, 1::2
        ]

    def found(student, teacher):
        teacher = attention_map(tf.constant(teacher, tf.float32))
        return features(attention, teacher)(tf.constant(student, tf.float32))["attention"]

    small = unit((coarse**2).mean(-1))
    features_averaged = unit(((halved(fine) / 4) ** 2).mean(-1))
    expected = ((features_averaged - small) ** 2).mean((1, 2))
    np.testing.assert_allclose(found(fine, coarse), expected, rtol=1e-5)
    map_averaged = unit(halved((fine**2).mean(-1)))
    expected = ((map_averaged - small) ** 2).mean((1, 2))
    np.testing.assert_allclose(found(coarse, fine), expected, rtol=1e-5)


def test_shapes_that_do_not_fit_are_one_line():
    for layer, shapes, said in (
        (Hint(pairs=PAIR, projector="none"), [(24,), (32,)], "24 and the teacher's 32; type proj"),
        (Hint(pairs=PAIR, projector="linear"), [(8, 8, 3), (4, 4, 3)], "choose layers of the same"),
        (Hint(pairs=PAIR, projector="conv"), [(3, 3, 3), (4, 4, 3)], "'s, or exactly half"),
        (Hint(pairs=PAIR), [(4, 4, 3), (32,)], "choose two maps, or two vectors"),
    ):
        with pytest.raises(ConfigError, match=r"^pair \[s,t\]: ") as refused:
            built(layer, *shapes)
        assert said in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="projector=big must be none, linear, conv, orth"):
        Hint(pairs=PAIR, projector="big")
    with pytest.raises(ConfigError, match="attention needs maps"):
        features(attention, tf.ones([2, 8]))(tf.ones([2, 8]))


def test_contrastive():
    """One step of RepDistiller's CRD: loss, gradients, both banks and both scales."""
    key = "crd/k20_T0.07_m0.5_n100"
    layer = CRD(pairs=PAIR, negatives=20, dimensions=8)
    built(layer, (24,), (32,), np.arange(100) % 4)
    for dense, side in zip(layer.embeddings, "st", strict=True):
        weight = VALUES[f"crd/w/embed_{side}.linear.weight"]
        dense.set_weights([weight.T, VALUES[f"crd/w/embed_{side}.linear.bias"]])
    for number, bank in enumerate(layer.banks, 1):
        bank.assign(VALUES[f"crd/memory_v{number}_before"])
    chosen = tf.constant(VALUES["crd/contrast_index"], tf.int64)
    np.testing.assert_array_equal(chosen[:, 0], VALUES["crd/index"])
    ours = tensor("in/es")
    kernels = [dense.kernel.value for dense in layer.embeddings]
    with tf.GradientTape() as tape:
        tape.watch(ours)
        terms = layer.contrast(ours, tensor("in/et"), chosen)
        total = tf.add_n([tf.reduce_mean(term) for term in terms.values()])
    by_feature, *by_kernel = tape.gradient(total, [ours, *kernels])
    close((float(total), by_feature.numpy()), key, "es")
    for side, found in zip("st", by_kernel, strict=True):
        wanted = VALUES[f"{key}/d_w_embed_{side}.linear.weight"].T
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
    for number, bank in enumerate(layer.banks, 1):
        np.testing.assert_allclose(bank, VALUES[f"crd/memory_v{number}_after"], atol=2e-6)
    before = layer.scales.numpy()
    layer.contrast(ours, tensor("in/et"), chosen)
    np.testing.assert_array_equal(layer.scales, before)  # the first batch sets them
    np.testing.assert_allclose(sorted(before), sorted(VALUES["crd/Z_after"][2:4]), rtol=1e-5)


def test_negatives_are_of_other_classes_and_even():
    labels = np.array([0, 2, 2, 1, 0, 2, 5, 1])
    layer = built(CRD(pairs=PAIR, negatives=4000, dimensions=4), (24,), (32,), labels)
    drawn = layer.draw(tf.constant(labels)).numpy()
    for label, row in zip(labels, drawn, strict=True):
        others = np.flatnonzero(labels != label)
        counts = np.bincount(row, minlength=8)
        assert set(np.flatnonzero(counts)) == set(others)
        expected = 4000 / len(others)
        assert (abs(counts[others] - expected) < 5 * np.sqrt(expected)).all()
    assert (drawn != layer.draw(tf.constant(labels)).numpy()).any()


def test_review_against_a_computation_by_hand():
    """Two stages and a vector: fusing from deep to shallow, and the pyramid of distances."""
    random = np.random.default_rng(0)
    shapes = {"a": ((8, 8, 5), (8, 8, 6)), "b": ((4, 4, 7), (4, 4, 9)), "c": ((11,), (10,))}
    pairs = [[name, name] for name in shapes]
    layer = ReviewKD(pairs=pairs, width=3)
    keras.utils.set_random_seed(0)
    layer.build(*({k: v[n] for k, v in shapes.items()} for n in (0, 1)), np.zeros(4))
    ours, theirs = (
        {k: random.normal(size=(4, *v[n])).astype(np.float32) for k, v in shapes.items()}
        for n in (0, 1)
    )
    found = layer.call(None, {"features": ours}, {"features": theirs})["review"].numpy()

    def normed(x):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / np.sqrt(variance + 1e-5)

    def narrow(x, block):
        return normed(x @ np.asarray(block[0].kernel)[0, 0])

    def widen(x, block):
        kernel, (_, h, w, _) = np.asarray(block[0].kernel), x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)]
        return normed(np.sum(taps, axis=0))

    def pyramid(a, b):
        total, weight, share = ((a - b) ** 2).mean((1, 2, 3)), 1.0, 1.0
        for level in (4, 2, 1):
            if level < a.shape[1]:
                share /= 2
                n = a.shape[1] // level
                pool = [x.reshape(4, level, n, level, n, -1).mean((2, 4)) for x in (a, b)]
                total = total + share * ((pool[0] - pool[1]) ** 2).mean((1, 2, 3))
                weight += share
        return total / weight

    expected, fused = 0.0, None
    for number, name in enumerate("cba"):
        own, wanted = ours[name], theirs[name]
        if name == "c":
            own, wanted = own[:, None, None], wanted[:, None, None]
        x = narrow(own, layer.narrow[number])
        if fused is not None:
            above = fused.repeat(x.shape[1] // fused.shape[1], 1)
            above = above.repeat(x.shape[2] // fused.shape[2], 2)
            kernel, bias = (np.asarray(w) for w in layer.mix[number - 1].get_weights())
            gates = 1 / (1 + np.exp(-(np.concatenate([x, above], -1) @ kernel[0, 0] + bias)))
            x = x * gates[..., :1] + above * gates[..., 1:]
        fused = x
        expected = expected + pyramid(widen(x, layer.widen[number]), wanted)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ConfigError, match="pairs must go from fine to coarse"):
        wrong = ReviewKD(pairs=pairs[::-1])
        wrong.build(*({k: v[n] for k, v in shapes.items()} for n in (0, 1)), np.zeros(4))


def test_averages_of_parts_that_overlap_where_they_must():
    """6 numbers in 4 parts: 0-1, 1-2, 3-4, 4-5, as PyTorch's adaptive pooling."""
    line = tf.reshape(tf.constant([1.0, 2, 4, 8, 16, 32]), [1, 6, 1, 1])
    np.testing.assert_allclose(averaged(line, 4, 1)[0, :, 0, 0], [1.5, 3, 12, 24])
    square = tf.random.stateless_normal([2, 8, 4, 3], [1, 2])
    expected = square.numpy().reshape(2, 4, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(averaged(square, 4, 2), expected, rtol=1e-5, atol=1e-6)


# --- extremes ---

EXTREME = tf.constant([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e4, 1e4, 1e4]])
OTHER = tf.constant([[-1e4, 1e4, 5.0], [1.0, 1.0, 1.0], [1e4, 1e4, -1e4]])
BARE = {
    "dkd": (dkd, {"temperature": 4.0}),
    "dist": (dist, {"temperature": 1.0}),
    "nkd": (nkd, {"temperature": 1.0}),
    "standardised": (losses.hinton, {"temperature": 2.0, "standardise": True, **HINTON}),
}


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("labels", [None, [0, -1, 2]])
def test_logits_of_any_size_have_finite_values_and_gradients(name, labels):
    loss, keys = BARE[name]
    labels = None if labels is None else tf.constant(labels, tf.int64)
    made = lambda z: loss(labels, {"logits": z}, {"logits": OTHER}, **keys)  # noqa: E731
    if name == "standardised" and labels is None:
        made = lambda z: loss(None, {"logits": z}, {"logits": OTHER}, **keys)  # noqa: E731
    value, gradient = value_and_gradient(made, EXTREME)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_two_classes_and_a_teacher_equal_to_the_student():
    two = tf.constant([[3.0, -1.0], [0.5, 0.25]])
    labels = tf.constant([0, 1], tf.int64)
    other = {"logits": tf.constant([[1.0, 2.0], [0.0, -3.0]])}
    found = dkd(labels, {"logits": two}, other, temperature=2.0)
    np.testing.assert_allclose(found["nontarget"], 0, atol=1e-6)
    whole = losses.hinton(labels, {"logits": two}, other, temperature=2.0, **HINTON)["soft"]
    np.testing.assert_allclose(found["target"], whole, rtol=1e-5)  # of two classes it is KD
    same = {"logits": ZS}
    for loss in (dkd, dist):
        for term in loss(Y, same, same, temperature=2.0).values():
            np.testing.assert_allclose(term, 0, atol=1e-5)


def test_classes_of_mixed_and_unlabelled_images():
    """DKD and NKD take the largest share, and the teacher's decision where there is no label."""
    shares = 0.7 * tf.one_hot(Y, 10) + 0.3 * tf.one_hot((Y + 1) % 10, 10)
    decision = tf.argmax(ZT, axis=-1)
    for loss in (dkd, nkd):
        call = lambda labels: loss(labels, {"logits": ZS}, {"logits": ZT}, temperature=3.0)  # noqa: B023, E731
        for given, equal in ((shares, Y), (None, decision), (0 * Y - 1, decision)):
            for name, value in call(given).items():
                np.testing.assert_allclose(value, call(equal)[name], rtol=1e-6)


@pytest.mark.parametrize("loss", [similarity, relational, pkt])
def test_relations_of_one_image_and_of_equal_images_are_finite(loss):
    for ours in (tf.ones([1, 5]), tf.ones([4, 5]), tf.zeros([4, 5])):
        theirs = tf.constant(np.random.default_rng(0).normal(size=(len(ours), 7)), tf.float32)
        value, gradient = value_and_gradient(features(loss, theirs), ours)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        if len(ours) == 1:
            assert value == pytest.approx(0, abs=1e-6)
