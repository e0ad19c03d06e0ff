"""Which numbers a view is made of, and which tensors the student and the teacher get."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.image import imread
from omegaconf import OmegaConf

from kd_cli.config.inputs import Images
from kd_cli.config.keys import VIEWS
from kd_cli.data.dataset import Dataset, Split
from kd_cli.data.views import Views, preview
from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective
from kd_cli.errors import ConfigError
from kd_cli.networks.predict import predict_rows
from kd_cli.training.step import Engine, Learner

RNG = np.random.default_rng(7)
COUNT = 14
IMAGES = RNG.integers(0, 256, (COUNT, 4, 4, 3)).astype(np.uint8)
# Every example is a class of its own, so that mixed labels tell who was mixed, and how.
LABELS = np.arange(COUNT)
ROWS = np.array([0, 1, 3, 4, 5, 6, 8, 9, 11, 12, 13])
OTHERS = np.array([2, 7, 10])


def dataset(rows=ROWS, images=IMAGES, labels=LABELS):
    names = tuple(str(n) for n in range(COUNT))
    train, test = Split(images, labels, rows), Split(images, LABELS, OTHERS)
    return Dataset("made", Images(images.shape[1:]), names, train, None, test, "f", "s")


# Nodes of a user.


def shift(images, draw, *, scale=1.0):
    """Adds its number to all pixels of an image, so that it can be read off."""
    return tf.cast(images, tf.float32) + scale * draw(1)[:, :, None, None]


def invert(images, draw):
    return 255 - tf.cast(images, tf.float32)


def half(images, draw):
    return images[:, ::2, ::2]


def blank(images, draw, *, value):
    return tf.fill(tf.shape(images), float(value))


def fails(images, draw):
    return tf.reshape(images, [7, -1])


def node(name, **options):
    target = f"kd_cli.data.{name}" if name not in globals() else f"{__name__}.{name}"
    return {"_target_": target, "_partial_": True, **options}


def views(*train, view="consistent", evaluate=(), seed=0, size=None, data=None, compiled=False):
    config = {"train": list(train), "evaluate": list(evaluate), "size": size, "seed": seed}
    return Views(OmegaConf.create(config), view, data or dataset(), compiled, seed)


def pixels(made, rows, images=IMAGES):
    return made.pixels(tf.constant(images[rows]), tf.constant(rows, tf.int64)).numpy()


def numbers(made, rows, view=0):
    made.start(view)
    return (pixels(made, rows) - IMAGES[rows]).mean(axis=(1, 2, 3))


# What the numbers depend on.


def test_the_numbers_of_an_example_do_not_depend_on_its_batch():
    made = views(node("shift"))
    whole = numbers(made, ROWS)
    assert 0 <= whole.min() and whole.max() < 1
    shuffled = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_allclose(
        numbers(made, shuffled), whole[np.searchsorted(ROWS, shuffled)], atol=1e-4
    )
    alone = [numbers(made, ROWS[n : n + 1])[0] for n in range(len(ROWS))]
    np.testing.assert_allclose(alone, whole, atol=1e-4)
    # dataset.limit leaves some rows of the same pool.
    few = views(node("shift"), data=dataset(ROWS[::3]))
    np.testing.assert_allclose(numbers(few, ROWS[::3]), whole[::3], atol=1e-4)
    # Another process, or a view after others.
    numbers(made, ROWS, 5)
    np.testing.assert_array_equal(numbers(made, ROWS), whole)
    np.testing.assert_array_equal(numbers(views(node("shift")), ROWS), whole)


def test_other_seeds_views_examples_nodes_and_streams_have_other_numbers():
    found = {}
    for seed in (0, 1):
        made = views(node("shift"), seed=seed)
        for view in (0, 1, 2):
            found[seed, view] = numbers(made, np.arange(COUNT), view)
    # The second of two nodes, read off by a scale of its own.
    both = views(node("shift", scale=0), node("shift"))
    found["second node"] = numbers(both, np.arange(COUNT))
    values = np.concatenate(list(found.values()))
    # (A number is read off pixels up to 255, to about 1e-5; 98 of them are rarely that near.)
    gaps = np.diff(np.sort(values))
    assert (gaps < 1e-5).sum() <= 1
    first = views(node("shift"), node("shift", scale=0))
    np.testing.assert_allclose(numbers(first, np.arange(COUNT)), found[0, 0], atol=1e-4)


def test_a_seed_that_is_set_later_counts():
    """The points of a sweep share the nodes and set their seed."""
    made = views(node("shift"), seed=3)
    expected = numbers(views(node("shift"), seed=4), ROWS)
    made.seed = 4
    np.testing.assert_array_equal(numbers(made, ROWS), expected)


CROPS = [node("pad_and_crop", padding=1), node("horizontal_flip")]


def test_mixup_does_not_change_the_crops():
    plain, mixing = views(*CROPS), views(*CROPS, node("mixup"))
    for view in (0, 3):
        plain.start(view)
        mixing.start(view)
        expected = pixels(plain, ROWS)
        np.testing.assert_array_equal(pixels(mixing, ROWS), expected)
        batch = [tf.constant(x) for x in (IMAGES[ROWS], ROWS, LABELS[ROWS], 9)]
        student, labels, _ = mixing(*batch)
        shares = np.asarray(labels)[:, LABELS[ROWS]]
        mixed = np.einsum("ij,jhwc->ihwc", shares, expected)
        np.testing.assert_allclose(student, mixed, atol=1e-3)


def test_the_crops_are_those_of_given_numbers():
    """Each image is a window of its padded self, and the views show many of them."""
    made = views(*CROPS)
    places = set()
    for view in range(12):
        made.start(view)
        for image, shown in zip(IMAGES[ROWS], pixels(made, ROWS), strict=True):
            padded = np.pad(image, [(1, 1), (1, 1), (0, 0)])
            fits = [
                (top, left, sign)
                for top in range(3)
                for left in range(3)
                for sign in (1, -1)
                if np.array_equal(padded[top : top + 4, left : left + 4][:, ::sign], shown)
            ]
            assert len(fits) == 1
            places |= set(fits)
    assert len(places) == 18


EVERY = [
    node("resize", size=7),
    node("random_crop", size=6),
    node("pad_and_crop", padding=2, mode="reflect"),
    node("inception_crop", size=4, area=[0.2, 1.0]),
    node("horizontal_flip"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view", "coefficient"), [("independent", "uniform"), ("consistent", "beta")]
)
def test_compiled_and_not_compiled_agree(view, coefficient):
    mixup = node("mixup", coefficient=coefficient, per_example=True, partner="permutation")
    answers = []
    batch = [tf.constant(x) for x in (IMAGES[ROWS], ROWS, LABELS[ROWS], 5)]
    for compiled in (True, False):
        made = views(*EVERY, mixup, view=view, size=4, compiled=compiled)
        made.start(2)
        answers.append([np.asarray(x) for x in (*made(*batch), pixels(made, ROWS))])
    for one, other in zip(*answers, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=5e-3)


def outside_xla(images, draw):
    """A user's node of an operation that XLA does not know."""
    negative = tf.numpy_function(lambda values: 255 - values, [images], images.dtype)
    return tf.ensure_shape(negative, images.shape)


def is_compiled(made):
    numbers = [tf.zeros([2, made._tables[0, n].shape[1]]) for n in range(len(made.nodes))]
    try:
        made._apply.experimental_get_compiler_ir(
            tf.constant(IMAGES[:2]), numbers, tf.constant([0, 1], tf.int64), []
        )
    except ValueError as error:
        assert "jit_compile" in str(error)
        return False
    return True


def test_only_nodes_of_kd_alone_are_compiled():
    flip = node("horizontal_flip")
    assert is_compiled(views(flip, compiled=True))
    assert not is_compiled(views(flip))
    made = views(flip, node("outside_xla"), compiled=True)
    assert not is_compiled(made)
    made.start(0)
    shown = pixels(made, ROWS)
    whole = IMAGES[ROWS].astype(np.float32)
    assert all(np.isin(255 - image, seen).all() for image, seen in zip(whole, shown, strict=True))


# What the networks get: through an engine's steps.


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor


class Recorder:
    """A loss that keeps what reaches it; the networks' logits are their own pixels."""

    def __init__(self):
        self.steps = []
        inputs = keras.Input(IMAGES.shape[1:])
        self.model = keras.Model(inputs, Scale()(keras.layers.Flatten()(inputs)))

    def keep(self, labels, student, teacher):
        shape = (-1, *IMAGES.shape[1:])
        self.steps.append((np.array(labels), student.reshape(shape).copy(), teacher.copy()))
        return np.float32(0)

    def loss(self, labels, student, teacher):
        labels = tf.zeros([0]) if labels is None else labels
        logits = student["logits"]
        zero = tf.numpy_function(self.keep, [labels, logits, teacher["logits"]], tf.float32)
        return {"none": zero + 0 * tf.reduce_sum(logits, axis=1)}

    def run(self, epochs, made, data=None, batch_size=4, **more):
        """The batches of some epochs: their rows, and (labels, student, teacher) of each step."""
        data = data or dataset()
        optimizer = keras.optimizers.SGD(1.0)
        labelled = data.train.labelled
        learner = Learner(
            self.model, optimizer, Objective.of(self.loss), lambda step: 0.0, labelled > 0
        )
        if "stored" not in more:
            more["teacher"] = lambda images: {"logits": images}
        engine = Engine([learner], data.train, batch_size, 0, views=made, **more)
        self.steps.clear()  # the learner has tried the loss
        found = []
        for epoch in epochs:
            engine.start_epoch(epoch)
            rows = np.asarray(engine.source.order)
            first = (epoch - 1) * engine.steps_per_epoch
            engine.run(first, 0, engine.steps_per_epoch)
            for number, step in enumerate(self.steps):
                found.append((rows[number * batch_size :][:batch_size], *step))
            assert len(self.steps) == engine.steps_per_epoch
            self.steps.clear()
        self.learner = learner
        return found


def read(shown, expected):
    """The number that was added to all pixels of each image."""
    added = shown - expected
    found = added.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(
        added, np.broadcast_to(found[:, None, None, None], added.shape), atol=1e-3
    )
    return found


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_what_the_student_and_the_teacher_get(view, mixup):
    nodes = [node("shift"), *([node("mixup")] if mixup else [])]
    made = views(*nodes, view=view, evaluate=[node("invert")], compiled=True)
    alone = views(node("shift"), evaluate=[node("invert")])
    students, teachers, shares = [], [], []
    for epoch in (1, 2):
        own = dict(zip(range(COUNT), numbers(alone, np.arange(COUNT), epoch - 1), strict=True))
        for rows, labels, student, teacher in Recorder().run([epoch], made):
            stored = IMAGES[rows].astype(np.float64)
            if mixup:
                assert labels.shape == (len(rows), COUNT)
                m = labels[0, rows[0]] if len(rows) > 1 else 1.0
                # The shares of the examples of the batch: m of its own, the rest of the next one.
                expected = m * np.eye(len(rows)) + (1 - m) * np.roll(np.eye(len(rows)), 1, 1)
                np.testing.assert_allclose(labels[:, rows], expected, atol=1e-6)
                np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
                share = labels[:, rows].astype(np.float64)
                shares.append(m)
            else:
                np.testing.assert_array_equal(labels, LABELS[rows])
                share = np.eye(len(rows))

            def together(values, share=share):
                return np.einsum("ij,j...->i...", share, values)

            found = read(student, together(stored))
            np.testing.assert_allclose(found, together([own[row] for row in rows]), atol=1e-3)
            students += found.tolist()
            if view == "consistent":
                np.testing.assert_array_equal(teacher, student)
            elif view == "fixed_teacher":  # as in evaluation, mixed by the same coefficient
                np.testing.assert_allclose(teacher, together(255 - stored), atol=1e-3)
            else:
                teachers += read(teacher, together(stored)).tolist()
    if view == "independent":
        assert min(teachers) >= -1e-3 and max(teachers) < 1
        assert np.abs(np.subtract(students, teachers)).min() > 1e-5
        assert abs(np.corrcoef(students, teachers)[0, 1]) < 0.8
    # (The last batch of an epoch has 3 images.)
    assert len(set(np.round(shares, 6))) == len(shares) == (6 if mixup else 0)


@pytest.mark.parametrize("budget", [float("inf"), 0])
def test_epochs_use_the_views_in_turn_with_the_logits_of_each(budget):
    made, alone = views(*CROPS), views(*CROPS)
    tables = [RNG.normal(size=(len(ROWS), 5)).astype(np.float32) for _ in range(3)]
    recorder = Recorder()
    shown = recorder.run([1, 2, 3, 4, 6], made, stored={"logits": tables}, repeats=3, budget=budget)
    epochs = np.repeat([1, 2, 3, 4, 6], 3)
    for epoch, (rows, _, student, teacher) in zip(epochs, shown, strict=True):
        alone.start((epoch - 1) % 3)
        np.testing.assert_array_equal(student, pixels(alone, rows))
        expected = tables[(epoch - 1) % 3][np.searchsorted(ROWS, rows)]
        np.testing.assert_array_equal(teacher, expected)


def test_without_kept_views_every_epoch_has_a_new_one():
    made, alone = views(*CROPS), views(*CROPS)
    epochs = [1, 2, 3, 7]
    shown = Recorder().run(epochs, made, batch_size=20)
    for epoch, (rows, _, student, _) in zip(epochs, shown, strict=True):
        alone.start(epoch - 1)
        np.testing.assert_array_equal(student, pixels(alone, rows))
    ordered = [student[np.argsort(rows)] for rows, _, student, _ in shown]
    assert not any(np.array_equal(a, b) for n, a in enumerate(ordered) for b in ordered[n + 1 :])


def coefficient(made, view, step):
    made.start(view)
    batch = [tf.constant(x) for x in (IMAGES[ROWS], ROWS, LABELS[ROWS], step)]
    return float(made(*batch)[1][0, ROWS[0]])


def test_the_mix_is_a_function_of_seed_epoch_and_step():
    made = views(*CROPS, node("mixup"))
    found = {
        (view, step): coefficient(made, view, step) for view in (0, 1) for step in (0, 1, 2, 9)
    }
    assert len(set(found.values())) == 8
    assert coefficient(made, 1, 2) == found[1, 2]
    other = views(*CROPS, node("mixup"), seed=1)
    assert coefficient(other, 1, 2) not in found.values()
    made.seed = 1
    assert coefficient(made, 1, 2) == coefficient(other, 1, 2)


def test_the_mix_has_numbers_of_its_own():
    """Not those of the first node, in any of the first steps or of the teacher's crops."""
    made = views(node("shift"), node("mixup"), view="independent")
    made.start(0)
    tables = np.concatenate([table.numpy().ravel() for table in made._tables.values()])
    for step in range(4):
        assert np.abs(tables - coefficient(made, 0, step)).min() > 1e-7


def test_images_without_labels_are_mixed_too():
    data = dataset(labels=np.full(COUNT, -1))
    made = views(node("shift"), node("mixup"), data=data)
    recorder = Recorder()
    steps = recorder.run([1], made, data)
    assert [labels.size for _, labels, _, _ in steps] == [0, 0, 0]
    assert recorder.learner.means(len(ROWS)).keys() == {"loss"}
    rows, _, student, teacher = steps[0]
    np.testing.assert_array_equal(student, teacher)
    # m is found by least squares between each image and the next.
    stored = IMAGES[rows].astype(np.float64)
    own, following = stored.reshape(4, -1), np.roll(stored, -1, 0).reshape(4, -1)
    constant = np.ones_like(own[0])
    for shown, a, b in zip(student.reshape(4, -1), own, following, strict=True):
        (m, _), rest, *_ = np.linalg.lstsq(np.stack([a - b, constant], 1), shown - b, rcond=None)
        assert 0 <= m <= 1 and rest < 1e-4


def test_the_accuracy_of_mixed_batches_counts_the_larger_share():
    recorder = Recorder()
    # The network's answer is its own pixels, 48 of them: those of a class mark it.
    images = np.zeros((COUNT, 4, 4, 3), np.uint8)
    images.reshape(COUNT, -1)[np.arange(COUNT), LABELS] = 200
    data = dataset(images=images)
    made = views(node("mixup", per_example=True), data=data)
    steps = recorder.run([1], made, data)
    assert recorder.learner.means(len(ROWS))["accuracy"] == 1
    main = [np.argmax(labels, 1) == LABELS[rows] for rows, labels, _, _ in steps]
    assert 0 < np.concatenate(main).mean() < 1  # sometimes the partner's share is larger


def test_one_step_on_mixed_images_equals_numpy():
    made = views(*CROPS, node("mixup", per_example=True))
    keras.utils.set_random_seed(4)
    inputs = keras.Input(IMAGES.shape[1:])
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(COUNT)(x))
    kernel, bias = model.get_weights()
    optimizer = keras.optimizers.SGD(1.0)
    objective = Objective.of(cross_entropy, label_smoothing=0.1)
    one = Learner(model, optimizer, objective, lambda step: 0.5)
    engine = Engine([one], dataset().train, len(ROWS), 0, views=made)
    engine.start_epoch(3)
    rows = engine.source.order.numpy()
    engine.run(2, 0, 1)

    made.start(2)
    step = tf.constant(2, tf.int64)
    shown, labels, _ = made(tf.constant(IMAGES[rows]), rows, tf.constant(LABELS[rows]), step)
    x = np.asarray(shown, np.float64).reshape(len(rows), -1) / 255
    logits = x @ kernel + bias
    log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = 0.9 * np.asarray(labels, np.float64) + 0.1 / COUNT
    means = one.means(len(rows))
    assert means["loss"] == pytest.approx(-(target * log_q).sum(axis=1).mean(), rel=1e-5)
    right = logits.argmax(axis=1) == np.asarray(labels).argmax(axis=1)
    assert means["accuracy"] == pytest.approx(right.mean())
    expected = bias - 0.5 * (np.exp(log_q) - target).mean(axis=0)
    np.testing.assert_allclose(model.get_weights()[1], expected, rtol=1e-4, atol=1e-6)


def test_evaluation_sees_its_own_nodes_and_no_others():
    made = views(*CROPS, evaluate=[node("invert"), node("resize", size=4)])
    made.start(3)
    found = predict_rows(lambda images: tf.reshape(images, [-1, 48]), dataset().test, made.evaluate)
    np.testing.assert_allclose(found, 255.0 - IMAGES[OTHERS].reshape(3, -1), atol=1e-3)


# Mistakes.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(train=[node("mixup"), node("horizontal_flip")]), "batch-wise nodes (mixup) must"),
        (dict(train=[], evaluate=[node("horizontal_flip")]), "augment.evaluate holds a random"),
        (dict(train=[node("half")]), "augment.train gives images of shape [2, 2, 3], the networks"),
        (dict(train=[], evaluate=[node("half")]), "augment.evaluate gives images of shape"),
        (dict(train=[node("half")], size=3), "are built for [3, 3, 3]: set augment.size"),
        (dict(train=[node("resize", size=8)]), "set augment.size, or the size of the last node"),
        (dict(train=[node("fails")]), "augment.train[0]: "),
        (dict(train=[node("invert"), node("pad_and_crop", padding=9, mode="reflect")]), "train[1]"),
        (dict(train=[node("pad_and_crop", padding=-1)]), "augment.train[0]: "),
        (dict(train=[node("horizontal_flip", chance=1)]), "takes no 'chance'"),
        (dict(train=[node("no_such")]), "augment.train[0]: kd_cli.data.no_such failed"),
        (dict(train=[], evaluate=[node("mixup")]), "augment.evaluate"),
    ],
)
def test_mistakes_are_one_line(options, expected):
    with pytest.raises(ConfigError) as caught:
        views(*options.pop("train"), **options)
    message = str(caught.value)
    assert expected in message and "\n" not in message, message


def test_a_size_of_its_own():
    made = views(node("half"), evaluate=[node("half")], size=2)
    assert made.shape == (2, 2, 3)
    made.start(0)
    np.testing.assert_array_equal(pixels(made, ROWS), IMAGES[ROWS][:, ::2, ::2])


# The grid.


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_the_preview_shows_what_was_stored_and_what_the_networks_get(tmp_path, view):
    images = (
        np.zeros((COUNT, 4, 4, 3), np.uint8) + np.arange(0, 140, 10, np.uint8)[:, None, None, None]
    )
    data = dataset(images=images)
    made = views(
        node("blank", value=200), view=view, evaluate=[node("blank", value=150)], data=data
    )
    preview(made, data.train, tmp_path / "augment.png")
    shown = imread(tmp_path / "augment.png")
    # 11 images, every second one; stored, and in each of 3 epochs what one or both networks get.
    rows, columns = 6, 4 if view == "consistent" else 7
    assert shown.shape[:2] == (150 * rows, 150 * columns)
    middles = shown[75::150, 75::150, :3].mean(axis=-1) * 255
    np.testing.assert_allclose(middles[:, 0], images[ROWS[::2], 0, 0, 0], atol=1.5)
    after = {"consistent": [200] * 3, "independent": [200] * 6, "fixed_teacher": [200, 150] * 3}
    np.testing.assert_allclose(middles[:, 1:], [after[view]] * rows, atol=1.5)
