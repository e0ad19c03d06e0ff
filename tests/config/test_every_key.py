"""Every key of every option in conf/ changes what is built; one that can't is refused.

A key that is accepted and does nothing is a fault. Each key of an option is given another value,
and what the option makes is compared: weights after some steps, rates, loss values, pixels, the
network. `PLACES` of the table and names are documented as changing no result.
"""

import copy
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from omegaconf import OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose, conf_dir
from kd_cli.config.instantiate import build
from kd_cli.config.keys import PLACES, walk
from kd_cli.distillation.objective import of_plan
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import run_spec
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.training.optimizers import refuse_idle

register_resolvers()
RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
DRAWN = RNG.random((6, 8)).astype(np.float32)
LOGITS = RNG.normal(0, 2, (2, 6, 4)).astype(np.float32)
LABELS = np.arange(6) % 4


@functools.cache
def composed(command, *choices):
    return compose(command, list(choices))


def typed(command, words):
    """A configuration as typed; composed once for the same options, because that is slow."""
    choices = [w for w in words if _is_group(w)]
    cfg = copy.deepcopy(composed(command, *choices))
    OmegaConf.set_struct(cfg, True)
    for word in words:
        if word not in choices:
            key, _, value = word.partition("=")
            OmegaConf.update(cfg, key.lstrip("+"), yaml.safe_load(value), force_add=key[0] == "+")
    return cfg


@functools.cache
def plan_of(command, *words):
    return check(typed(command, words), words)


def node(place, *words):
    """A node of distill with its values, unchecked."""
    return OmegaConf.to_container(OmegaConf.select(typed("distill", words), place), resolve=True)


def _is_group(word):
    group = word.split("=")[0].split("@")[0]
    return "." not in group and (conf_dir() / group).is_dir()


def options(group):
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def keys(group, option):
    """The plain keys of an option as it is composed."""
    plain = OmegaConf.to_container(composed("distill", f"{group}={option}"))[group]
    if group == "loss":  # an entry
        (plain,) = plain.values()
    return [key for key in plain if not key.startswith("_")]


# --- optimizers ---

# Another value of each key, with what else it needs to count.
OPTIMIZER = {
    "amsgrad": ["optimizer.amsgrad=true"],
    "weight_decay": ["optimizer.weight_decay=0.3"],
    "decoupled": ["optimizer.decoupled=true"],
    "clipnorm": ["optimizer.clipnorm=0.1"],
    "momentum": ["optimizer.momentum=0.5"],
    "nesterov": ["optimizer.nesterov=true"],
    # Keras's own, which the options do not list.
    "beta_1": ["+optimizer.beta_1=0.5"],
    "clipvalue": ["+optimizer.clipvalue=0.01"],
    "global_clipnorm": ["+optimizer.global_clipnorm=0.1"],
    "gradient_accumulation_steps": ["+optimizer.gradient_accumulation_steps=2"],
    "use_ema": ["+optimizer.use_ema=true", "+optimizer.ema_overwrite_frequency=2"],
    "ema_momentum": [
        "+optimizer.use_ema=true", "+optimizer.ema_overwrite_frequency=2",
        "+optimizer.ema_momentum=0.5",
    ],
}  # fmt: skip
START = [RNG.normal(0, 1, (4, 3)).astype(np.float32), RNG.normal(0, 1, 3).astype(np.float32)]
# They shrink, so that amsgrad's maximum counts.
GRADIENTS = [
    [RNG.normal(0, 1 / (1 + n), w.shape).astype(np.float32) for w in START] for n in range(5)
]


def weights_after(option, *words):
    made = node("optimizer", f"optimizer={option}", *words)
    optimizer = build(made, "optimizer", learning_rate=0.1)
    variables = [keras.Variable(value) for value in START]
    optimizer.build(variables)
    for gradients in GRADIENTS:
        optimizer.apply([tf.constant(g) for g in gradients], variables)
    return np.concatenate([np.ravel(variable) for variable in variables])


@pytest.mark.parametrize("option", options("optimizer"))
def test_every_key_of_an_optimizer_changes_the_weights(option):
    before = weights_after(option)
    own = [key for key in OPTIMIZER if OPTIMIZER[key][0][0] == "+"] if option == "adam" else []
    for key in (*keys("optimizer", option), *own):
        words = OPTIMIZER[key]
        after = weights_after(option, *words)
        assert not np.array_equal(before, after), key
        if len(words) > 1 and key == words[-1].split(".")[1].split("=")[0]:
            assert not np.array_equal(weights_after(option, *words[:-1]), after), key


def test_accumulated_gradients_are_those_of_the_larger_batch():
    """Two steps of SGD that accumulate are one with the mean of both gradients."""
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    variable = keras.Variable(START[0])
    optimizer.build([variable])
    for gradients in GRADIENTS[:2]:
        optimizer.apply([tf.constant(gradients[0])], [variable])
    mean = (GRADIENTS[0][0] + GRADIENTS[1][0]) / 2
    np.testing.assert_allclose(variable.numpy(), START[0] - 0.1 * mean, rtol=1e-6)


IDLE_OPTIMIZERS = {
    "use_ema": (["+optimizer.use_ema=true"], "+optimizer.ema_overwrite_frequency=N"),
    "ema_momentum": (["+optimizer.ema_momentum=0.5"], "+optimizer.use_ema=true"),
    "ema_overwrite_frequency": (
        ["+optimizer.ema_overwrite_frequency=5"],
        "+optimizer.use_ema=true",
    ),
    "loss_scale_factor": (["+optimizer.loss_scale_factor=8"], "precision=mixed_float16"),
    "name": (["+optimizer.name=mine"], "names are in no result"),
    "nesterov": (
        ["optimizer=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=true"],
        "optimizer.momentum=0.9",
    ),
    "clipnorm": (["optimizer.clipnorm=0"], "must be above 0"),
    "weight_decay": (["optimizer.weight_decay=-1"], "must be at least 0"),
    "both norms": (
        ["optimizer.clipnorm=1", "+optimizer.global_clipnorm=1"],
        "Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set",
    ),
}


@pytest.mark.parametrize("name", IDLE_OPTIMIZERS)
def test_an_idle_option_of_an_optimizer_is_refused(name):
    words, expected = IDLE_OPTIMIZERS[name]
    made = node("optimizer", *words)
    with pytest.raises(ConfigError, match="optimizer") as refused:
        refuse_idle(build(made, "optimizer", learning_rate=0.1), made)
    assert expected in str(refused.value)


# --- schedules ---

SCHEDULE = {
    "learning_rate": ["schedule.learning_rate=0.5"],
    "floor": ["schedule.floor=0.5"],
    "decay_steps": ["schedule.decay_steps=5"],
    "decay_epochs": ["schedule.decay_epochs=1"],
    "warmup_learning_rate": ["schedule.warmup_learning_rate=0.001"],
    "warmup_steps": ["schedule.warmup_steps=5"],
    "warmup_epochs": ["schedule.warmup_epochs=2"],
    "milestones": ["schedule.milestones=[3]"],
    "factor": ["schedule.factor=0.5"],
}


def rates(option, *words):
    if option == "multistep" and not any("milestones" in word for word in words):
        words += ("schedule.milestones=[2,5]",)
    schedule = build(node("schedule", f"schedule={option}", *words), "schedule")(30, 3)
    return [float(schedule(step)) for step in range(30)]


@pytest.mark.parametrize("option", options("schedule"))
def test_every_key_of_a_schedule_changes_the_rates(option):
    before = rates(option)
    for key in keys("schedule", option):
        assert before != rates(option, *SCHEDULE[key]), key


# --- losses ---

LOSS = {
    "alpha": "alpha=0.7",
    "temperature": "temperature=3",
    "t_squared": "t_squared={}",
    "class_weights": "",
    "weight": "loss.{}.weight=3.5",
    "standardise": "loss.{}.standardise=true",
    "label_smoothing": "loss.{}.label_smoothing=0.3",
    "target": "loss.{}.target=2",
    "nontarget": "loss.{}.nontarget=2",
    "beta": "loss.{}.beta=2",
    "gamma": "loss.{}.gamma=2",
    "student_taps": "loss.{}.student_taps=[token_head,class_head]",
    "pairs": "loss.{}.pairs=[[stage-1,stage-1]]",
    "angle": "loss.{}.angle=2",
    "projector": "loss.{}.projector=linear",
    "normalise": "loss.{}.normalise=layer",
    "negatives": "loss.{}.negatives=9",
    "dimensions": "loss.{}.dimensions=5",
    "nce_temperature": "loss.{}.nce_temperature=0.2",
    "bank_momentum": "loss.{}.bank_momentum=0.9",
    "width": "loss.{}.width=2",
}
OTHER = {("sp", "pairs"): "[[stage-2,stage-2]]", ("hint", "distance"): "cosine"}
SIDES = {"stage-3": (8, 8), "stage-2": (4, 4), "stage-1": (2, 2), "pooled": ()}
HEADS = {"class_head": (4,), "token_head": (4,)}


def features(width, seed):
    random = np.random.default_rng(seed)
    shapes = {tap: (*side, width) for tap, side in SIDES.items()} | (HEADS if seed else {})
    found = {
        tap: tf.constant(random.normal(size=(len(LABELS), *s)), tf.float32)
        for tap, s in shapes.items()
    }
    return shapes, found


def loss(option, *words, **given):
    # (At temperature 1 its square would not count.)
    plain = OmegaConf.to_container(composed("distill", f"loss={option}"))
    hot = ["temperature=2"] if "temperature" in plain else []
    entry = node("loss", f"loss={option}", *hot, *words)
    entry[option].pop("class_weights", None)  # it gets what they come to on the data
    keras.utils.set_random_seed(0)
    made = of_plan(entry, **given)
    (part,) = made.parts
    (ours, student), (theirs, teacher) = features(3, 1), features(4, 0)
    shapes, told = {}, {}
    if part.wanted:
        change = part.wanted.part or tf.identity
        told = {part.wanted.key: {tap: change(teacher[tap]) for tap in part.wanted.taps}}
        shapes = {part.wanted.key: {tap: theirs[tap] for tap in part.wanted.taps}}
    made.build(ours, shapes, 4, LABELS)
    index = tf.range(len(LABELS), dtype=tf.int64)
    student = {"logits": tf.constant(LOGITS[0]), "features": student, "index": index}
    for _ in range(2):  # a bank shows in the second step
        terms = made(tf.constant(LABELS), student, {"logits": tf.constant(LOGITS[1]), **told})
    return np.sum([value.numpy() for value in terms.values()], axis=0)


# (What SimKD's keys change is the student: tests/distillation/test_simkd.py.)
@pytest.mark.parametrize("option", [one for one in options("loss") if one != "simkd"])
def test_every_key_of_a_loss_changes_its_value(option):
    before = loss(option)
    for key in keys("loss", option):
        truth = "false" if option == "hinton" else "true"
        word = LOSS.get(key, f"loss.{{}}.{key}=2").format(
            option if "loss." in LOSS.get(key, "loss.") else truth
        )
        if (option, key) in OTHER:
            word = f"loss.{option}.{key}={OTHER[option, key]}"
        given = {"class_weights": [3.0, 0.5, 1.0, 2.0]} if key == "class_weights" else {}
        assert not np.allclose(before, loss(option, *filter(None, [word]), **given)), key


# --- augmentation ---

AUGMENT = {
    "size": ["augment.size=24"],
    "centre": ["augment.centre=0.5"],
    "padding": ["augment.padding=2"],
    "area": ["augment.area=[0.5,1.0]"],
    "train": ["augment.train=[]"],
    "evaluate": [
        "augment.evaluate=[{_target_: kd_cli.data.central_crop, fraction: 0.5, size: 32}]"
    ],
    "preview": [],  # of the table's places: it draws a picture
}


def pixels(option, *words):
    size = ["augment.size=16"] if option.startswith("crop") else []
    shape = "dataset.image_shape=[32,32,3]"
    augment = node("augment", shape, f"augment={option}", *size, *words)
    made = []
    for part in ("train", "evaluate"):
        images = tf.constant(IMAGES)
        for number, one in enumerate(augment[part]):
            function = build({**one, "_partial_": True}, f"augment.{part}[{number}]")
            draw = lambda count: tf.constant(DRAWN[:, :count])  # noqa: E731
            if function.func.__name__ == "mixup":
                images, _ = function(images, None, draw)
            else:
                images = function(images, draw)
        made.append(images.numpy())
    return made


@pytest.mark.parametrize("option", options("augment"))
def test_every_key_of_an_augmentation_changes_the_pixels(option):
    before = pixels(option)
    for key in keys("augment", option):
        words = AUGMENT[key]
        if key == "preview" or (option == "none" and key in ("train", "size")):
            continue  # none has no node to leave out; its size is refused below
        if option.startswith("flip_crop") and key == "size":
            continue  # it is of the networks, which then do not fit: told when the nodes are tried
        after = pixels(option, *words)
        same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert not same, key


def test_mixup_refuses_a_concentration_that_does_not_count():
    made = {"_target_": "kd_cli.data.mixup", "_partial_": True, "concentration": 0.2}
    mix = build(made, "augment.train[0]")
    with pytest.raises(ConfigError, match="coefficient=beta"):
        mix(tf.constant(IMAGES), None, lambda count: tf.constant(DRAWN[:, :count]))


# --- networks ---

NETWORK = {
    "filters": "[3]", "kernel_size": "2", "strides": "2", "padding": "valid", "activation": "tanh",
    "batch_norm": "true", "pool": "null", "pool_strides": "1", "block_dropout": "0.5",
    "units": "[7]", "units_batch_norm": "true", "dropout": "0.5",
}  # fmt: skip
# Other keys make it count: no pooling has no strides, no dense layer no dropout.
BESIDE = {"pool_strides": ["pool=2"], "units_batch_norm": ["units=[5]"], "dropout": ["units=[5]"]}


def network(option, *words):
    fill = {"mlp": ["units=[5]"], "cnn": ["filters=[4,4]"]}[option]
    words = [f"student.network.{word}" for word in (*fill, *words)]
    made = node("student.network", f"student={option}", *words)
    keras.utils.clear_session(free_memory=False)  # the same names again
    return json.dumps(build(made, "student.network").get_config(), default=str)


@pytest.mark.parametrize(
    ("option", "key"),
    [
        (option, key)
        for option in ("mlp", "cnn")
        for key in OmegaConf.load(conf_dir() / "network" / f"{option}.yaml")
        if key not in ("_target_", "image_shape", "num_classes")  # of the data set
    ],
)
def test_every_key_of_a_network_changes_it(option, key):
    beside = BESIDE.get(key, []) if option == "cnn" else []
    assert network(option, *beside) != network(option, *beside, f"{key}={NETWORK[key]}")


# --- the table's keys ---

APPLICATION = [
    "train-student", "student=application", "student.network.architecture=MobileNet",
    "student.network.weights=imagenet",
]  # fmt: skip
# Another value for each key that is no place, with what it needs, and the command that has it.
TABLE = {
    "epochs": ["epochs=7"],
    "steps": ["steps=7"],
    "batch_size": ["batch_size=7"],
    "learning_rate": ["learning_rate=0.5"],
    "freeze_epochs": [*APPLICATION, "freeze_epochs=7"],
    "fine_tune_factor": [*APPLICATION, "freeze_epochs=7", "fine_tune_factor=0.5"],
    "label_smoothing": ["train-student", "label_smoothing=0.5"],
    "seed": ["seed=7"],
    "init_seed": ["init_seed=7"],
    "data_seed": ["data_seed=7"],
    "augment_seed": ["augment=flip_crop", "augment_seed=7"],
    "early_stopping.patience": ["early_stopping.patience=7"],
    "early_stopping.monitor": ["early_stopping.monitor=nll"],
    "precision": ["precision=mixed_bfloat16"],
    "augment.size": ["augment=inception", "augment.size=4"],
    "alpha": ["alpha=0.7"],
    "temperature": ["temperature=7"],
    "t_squared": ["t_squared=false"],
    "view": ["augment=flip_crop", "view=independent"],
    "cache.views": ["augment=flip_crop", "cache.views=7"],
    "cache.logits": ["cache.logits=float16"],
    "cache.features": [
        "+loss.own={_target_: own.x, pairs: [[pooled, pooled]]}",
        "cache.features=float16",
    ],
    "pseudo.labels": ["self-train", "pseudo.labels=hard"],
    "pseudo.threshold": ["self-train", "pseudo.threshold=0.7"],
    "pseudo.balance": ["self-train", "pseudo.balance=false"],
    "pseudo.per_class": ["self-train", "pseudo.per_class=7"],
    "pseudo.epochs": ["self-train", "pseudo.epochs=7"],
    "dataset.image_shape": ["dataset.image_shape=[9,9,1]"],
    "dataset.num_classes": ["dataset.num_classes=7"],
    "dataset.validation_fraction": ["dataset.validation_fraction=0.3"],
    "dataset.labelled_fraction": ["dataset.labelled_fraction=0.3"],
    "dataset.unlabelled": [
        "dataset=digits",
        "dataset.labelled_fraction=0.3",
        "dataset.unlabelled=use",
    ],
    "dataset.labelled_seed": ["dataset.labelled_fraction=0.3", "dataset.labelled_seed=7"],
    "class_weights": ["class_weights=balanced"],
    "dataset.split_seed": ["dataset.split_seed=7"],
    "dataset.limit": ["dataset.limit=7"],
    "student.input.size": ["student.input.size=4"],
    "student.input.scale": ["student.input.scale=1"],
    "student.input.offset": ["student.input.offset=1"],
    "teacher.input.size": ["teacher.input.size=4"],
    "teacher.input.scale": ["teacher.input.scale=1"],
    "teacher.input.offset": ["teacher.input.offset=1"],
    "teacher.members": ["teacher.members=2"],
    "teacher.combine": ["teacher.members=2", "teacher.combine=confidence"],
    "teacher.precision": ["teacher.precision=mixed_bfloat16"],
}
# Built nodes (tested above), lists of nodes, names, given files (their content counts, in
# tests/runs/test_identity.py), and what finds a teacher.
ELSEWHERE = {
    "schedule", "optimizer", "loss", "augment.train", "augment.evaluate", "augment.preview",
    "dataset.source", "student.network", "teacher.network", "command", "dataset.name",
    "student.name", "teacher.name", "student.checkpoint", "teacher.checkpoint", "teacher.logits",
    "teacher.weights", "teacher.train_if_missing", "cache.features_gib", "what", "teacher.module",
    "module", "format", "calibration", "softmax",
}  # fmt: skip


def leaves():
    rows = [name for name, _ in walk()]
    return [name for name in rows if not any(other.startswith(f"{name}.") for other in rows)]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in leaves()
        if name.split(".")[0] not in (*PLACES, "input")
        and name not in ELSEWHERE
        # (In tests/runs/test_identity.py the teacher's are those of the root.)
        and not name.startswith("teacher.training.")
    ],
)
def test_every_key_of_the_table_that_counts_is_in_the_run_id(name):
    command, *words = TABLE[name] if "=" not in TABLE[name][0] else ["distill", *TABLE[name]]
    assert run_spec(plan_of(command, *words[:-1])) != run_spec(plan_of(command, *words))


# --- keys that another one decides ---

IDLE = {
    "epochs beside steps": (["steps=9", "epochs=3"], "epochs=3 changes nothing: steps=9 decides"),
    "the teacher's epochs": (
        ["teacher.training.steps=9", "teacher.training.epochs=3"],
        "teacher.training.steps=9 decides",
    ),
    "warm-up": (
        ["schedule=warmup_cosine", "schedule.warmup_steps=9", "schedule.warmup_epochs=3"],
        "schedule.warmup_steps=9 decides; type schedule.warmup_steps=null with it",
    ),
    "the teacher's decay": (
        [
            "schedule@teacher.training.schedule=cosine", "teacher.training.schedule.decay_steps=9",
            "teacher.training.schedule.decay_epochs=3",
        ],
        "teacher.training.schedule.decay_steps=9 decides",
    ),
    "seed of no augmentation": (["augment_seed=3"], "there is no augmentation"),
    "size of no augmentation": (["augment.size=8"], "there is no augmentation"),
    "view of no augmentation": (["view=independent"], "there is no augmentation"),
    "key of a data set": (["+dataset.foo=3"], "dataset.foo: nothing uses this key"),
    "misspelt key": (["+dataset.limits=3"], "did you mean 'limit'?"),
    "key of an augmentation": (["augment=crop", "+augment.center=1"], "augment.center"),
    "key of the student": (["+student.units=[3]"], "student.units: nothing uses this key"),
    "key of the teacher's augmentation": (["+teacher.training.augment.size=3"], "no augmentation"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_a_key_that_another_one_decides_is_refused(name):
    words, expected = IDLE[name]
    with pytest.raises(ConfigError) as refused:
        plan_of("distill", *words)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=fashion_mnist_self_training", "dataset.labelled_fraction=0.1"],
        ["dataset=digits_few_labels"],
    ],
)
def test_epochs_that_are_typed_win_over_steps_of_an_option(words):
    command = "self-train" if len(words) > 1 else "distill"
    assert plan_of(command, *words).steps is not None
    plan = plan_of(command, *words, "epochs=3")
    assert plan.epochs == 3 and plan.steps is None
    plan = plan_of("distill", "dataset=digits", "teacher.training.steps=9", "epochs=3")
    assert plan.teacher.training.steps == 9


def test_keys_that_others_refer_to_are_allowed():
    assert plan_of("distill", "+dataset.side=9", "dataset.image_shape=['${dataset.side}',9,1]")
    assert plan_of("distill", "augment=crop", "augment.centre=1", "augment.size=8")
    # A recipe's key may outlive the option that it was for.
    assert plan_of("self-train", "experiment=fashion_mnist_self_training", "augment=none")
