"""The options of the groups: equal keys, shared networks, a user's own short YAML, debug=smoke."""

import inspect
import pkgutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kd_cli.commands.help import options, page
from kd_cli.config.compose import compose, conf_dir
from kd_cli.config.instantiate import build
from kd_cli.config.overrides import place_of
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import run_spec
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import assert_refused, only_run, plan_of

register_resolvers()


def plan(*words, command="distill", config_dir=None):
    return plan_of(command, *words, *([f"--config-dir={config_dir}"] if config_dir else []))


def names(group):
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


# --- networks ---


def keys_of(target):
    return set(inspect.signature(pkgutil.resolve_name(target)).parameters)


@pytest.mark.parametrize("name", ["cnn", "mlp", "bit_resnet"])
def test_a_network_option_has_every_key_of_its_function(name):
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "network" / f"{name}.yaml"))
    assert {key for key in node if key != "_target_"} == keys_of(node["_target_"])
    defaults = inspect.signature(pkgutil.resolve_name(node["_target_"])).parameters
    for key, value in node.items():
        default = defaults[key].default if key in defaults else inspect.Parameter.empty
        if default is not inspect.Parameter.empty:
            assert value == (default if default is not None or key != "units" else []), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "option"), [(role, name) for role in ("teacher", "student") for name in options(role)]
)
def test_options_of_one_function_have_the_same_keys(role, option):
    node = OmegaConf.to_container(compose("distill", [f"{role}={option}"]))[role]
    of_teacher = (
        {
            *("weights", "logits", "module", "train_if_missing", "precision", "training"),
            *("members", "combine"),
        }
        if role == "teacher"
        else set()
    )
    assert set(node) == {"name", "checkpoint", "input", "network"} | of_teacher
    assert node["name"] == option and set(node["input"]) == {"size", "scale", "offset"}
    network, target = set(node["network"]) - {"_target_"}, node["network"]["_target_"]
    # (Keras's own functions take a few that make no sense here, such as include_top.)
    assert network == keys_of(target) if target.startswith("kd_cli.") else network < keys_of(target)


@pytest.mark.parametrize("option", ["cnn", "cnn_small", "cifar10_cnn", "mnist_cnn"])
def test_a_key_of_the_function_can_be_typed_for_every_option(option):
    assert plan(f"student={option}", "student.network.kernel_size=5").student.network == {
        **plan(f"student={option}").student.network,
        "kernel_size": 5,
    }


def test_each_role_has_its_own_input_size():
    words = ("teacher=mlp", "student=mlp", "student.input.size=16", "teacher.input.size=4")
    made = plan(*words)
    assert list(made.student.network.image_shape) == [16, 16, 1]
    assert list(made.teacher.network.image_shape) == [4, 4, 1]


def test_another_network_in_a_student():
    made = plan("network@student.network=cnn", "student.network.filters=[4]")
    assert made.student.network["_target_"] == "kd_cli.networks.cnn"
    assert list(made.student.network.units) == [16]  # the student's own key stays
    assert made.teacher == plan().teacher


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("network@student.network=cnn", "student.network"),
        ("+loss@second=hard", "second"),
        ("a/b@c:d=e", "c"),
        ("~student.network.pool", "student.network.pool"),
        ("hydra/launcher=joint", "hydra.launcher"),
    ],
)
def test_the_place_that_an_override_changes(override, place):
    assert place_of(override) == place


# --- datasets and optimizers ---


@pytest.mark.slow
@pytest.mark.parametrize("option", names("dataset"))
def test_every_dataset_has_the_common_keys(option):
    for command in ("distill", "evaluate"):
        words = [f"dataset={option}", *(["what=x"] if command == "evaluate" else [])]
        node = OmegaConf.to_container(compose(command, words))["dataset"]
        common = {"name", "image_shape", "num_classes", "validation_fraction", "source"}
        common |= {"length", "vocabulary"}  # of texts; null for images
        more = {"labelled_fraction", "labelled_seed", "unlabelled", "split_seed", "limit"}
        assert common | more == set(node) - {"path", "unlabelled_path"}


def test_optimizers_share_their_common_keys():
    nodes = [OmegaConf.load(conf_dir() / "optimizer" / f"{n}.yaml") for n in names("optimizer")]
    assert all({"weight_decay", "clipnorm"} <= set(node) for node in nodes)


# --- a user's own YAML ---

MODULE = """
import keras
import numpy as np
from kd_cli.data import Arrays

def data():
    labels = np.arange(64) % 4
    images = np.zeros((64, 6, 6, 1), np.uint8) + (40 * labels).astype(np.uint8)[:, None, None, None]
    return Arrays((images, labels), (images, labels))

def net(image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(inputs)))

def loss(labels, student, teacher):
    return {"hard": keras.losses.sparse_categorical_crossentropy(
        labels, student["logits"], from_logits=True)}

def schedule(total_steps, steps_per_epoch):
    return lambda step: 0.01

def rising(total_steps, steps_per_epoch, *, peak):
    return lambda step: peak
"""
NET = """network:
  _target_: own_module.net
  image_shape: ${dataset.image_shape}
  num_classes: ${dataset.num_classes}
"""
CNN = """defaults: [/network@network: cnn, _self_]
name: narrow
network: {filters: [4]}
"""
OWN = {
    "teacher/own": f"name: own\n{NET}",
    "teacher/narrow": CNN,
    "student/own": f"name: own\n{NET}",
    "student/_narrow": CNN,
    "student/narrow": "defaults: [_narrow, _self_]\nname: narrow\n",
    "student/nameless": NET,
    "student/empty": "name: empty\n",
    # As it was written before 0.5: absolute, and with all keys.
    "student/old": """name: old
checkpoint: null
input: {size: null, scale: 0.00392156862745098, offset: 0.0}
network:
  _target_: kd_cli.networks.mlp
  image_shape: ${kd.input_shape:${dataset.image_shape},${student.input.size}}
  num_classes: ${dataset.num_classes}
  units: [5]
""",
    "dataset/own": "name: own\nimage_shape: [6, 6, 1]\nnum_classes: 4\n"
    "source: {_target_: own_module.data}\n",
    "dataset/shapeless": "name: own\nnum_classes: 4\nsource: {_target_: own_module.data}\n",
    "loss/own": "own: {_target_: own_module.loss}\n",
    "loss/nothing": "nothing: {weight: 3}\n",
    "schedule/own": "_target_: own_module.schedule\n",
    "schedule/rising": "_target_: own_module.rising\n",
    "optimizer/own": "_target_: keras.optimizers.RMSprop\n",
    "augment/own": "train: [{_target_: kd_cli.data.horizontal_flip}]\n",
    "experiment/own": "# @package _global_\ndefaults:\n  - override /student: narrow\nepochs: 1\n",
    "experiment/headless": "epochs: 1\n",
    "experiment/headless_too": "defaults:\n  - override /student: narrow\nepochs: 1\n",
    "debug/headless": "epochs: 1\n",
}


@pytest.fixture
def own(work) -> str:
    """A --config-dir with the shortest options that a user could write, and its module."""
    for name, text in OWN.items():
        path = work / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (work / "own" / "own_module.py").write_text(MODULE)
    return "own"


ALL_OWN = tuple(
    f"{group}=own"
    for group in ("dataset", "teacher", "student", "loss", "schedule", "optimizer", "augment")
)


def test_a_run_of_nothing_but_short_options(kd, work, own):
    words = ("--config-dir", own, *ALL_OWN, "epochs=2", "teacher.training.epochs=1")
    done = kd("distill", *words)
    assert done.code == 0, done.err
    _, teacher = only_run(work / "outputs" / "teachers")
    run, student = only_run(work / "outputs" / "distill")
    assert (teacher["network"], student["network"]) == ("own", "own")
    assert "own_module.loss" in student["loss"]
    assert student["config"]["dataset"]["validation_fraction"] == 0.1
    # A teacher that is not given by its directory is no part of the id as one.
    assert "teacher_dir" not in student["config"]
    again = kd("distill", *words)
    assert again.code == 0 and "is finished" in again.err


def test_short_options_take_the_defaults(own):
    made = plan(*ALL_OWN, config_dir=own)
    short, full = plan(*ALL_OWN[:1], config_dir=own).teacher, made.teacher
    own_keys = ("name", "network", "training")
    assert {k: v for k, v in full.items() if k not in own_keys} == {
        k: v for k, v in short.items() if k not in own_keys
    }
    assert made.loss.own["_partial_"] and made.schedule["_partial_"]
    assert made.augment.train[0]["_partial_"]
    typed = ("teacher.precision=mixed_bfloat16", "student.input.size=3", "dataset.limit=9")
    assert plan(*ALL_OWN, *typed, config_dir=own).dataset.limit == 9


def test_a_network_file_of_ours_in_options_of_the_user(own):
    made = plan("student=narrow", "teacher=narrow", "student.input.size=16", config_dir=own)
    assert list(made.student.network.filters) == list(made.teacher.network.filters) == [4]
    assert list(made.student.network.image_shape) == [16, 16, 1]
    assert list(made.teacher.network.image_shape) == [8, 8, 1]
    assert plan("experiment=own", config_dir=own).student.name == "narrow"


def test_an_option_as_it_was_written_before(own):
    made = plan("student=old", "student.input.size=4", config_dir=own)
    assert list(made.student.network.image_shape) == [4, 4, 1]
    new = plan("student=mlp", "student.network.units=[5]", "student.input.size=4")
    old_spec, new_spec = run_spec(made), run_spec(new)
    defaults = {"activation": "relu", "dropout": 0.0}
    old_spec["student"]["network"] |= defaults
    assert old_spec == new_spec


MISTAKES = {
    "nameless": (["student=nameless"], ["student.name is missing"]),
    "no network": (["student=empty"], ["student.network must name its function"]),
    "no shape": (["dataset=shapeless"], ["dataset.image_shape"]),
    "no function": (
        ["loss=nothing"],
        ["loss.nothing must name its function: loss.nothing._target_=..."],
    ),
    "helper": (["student=_narrow"], ["no option '_narrow' in group 'student'", "to extend"]),
    "headless experiment": (["experiment=headless"], ["'# @package _global_'", "experiment="]),
    "headless choice": (["experiment=headless_too"], ["'# @package _global_'", "headless_too"]),
    "headless debug": (["debug=headless"], ["'# @package _global_'", "debug=headless"]),
    "argument": (
        ["schedule=rising", "dataset=own", "student=own", "teacher=own"],
        ["own_module.rising needs 'peak'", "+schedule.peak=..."],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_an_option_is_one_line(kd, work, own, name):
    words, expected = MISTAKES[name]
    done = kd("distill", "--config-dir", own, *words)
    assert done.code == 2
    for text in expected:
        assert text in done.error
    assert [path.name for path in work.iterdir()] == ["own"]


def test_helpers_are_not_listed(kd, work, own, monkeypatch):
    done = kd("distill", "--config-dir", own, "student=nope")
    assert "narrow" in done.error and "_narrow" not in done.error
    monkeypatch.setattr("kd_cli.commands.help.conf_dir", lambda: Path(own))
    assert "narrow" in page() and "_narrow" not in page()


# --- functions and their arguments ---


def of_two(first, second, *, third=3, fourth):
    return first, second, third, fourth


TARGET = "tests.config.test_options.of_two"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"first": 1, "fourth": 4}, f"what: {TARGET} needs 'second'; type \\+what.second="),
        ({"_partial_": True}, f"what: {TARGET} needs 'fourth'"),
        ({"first": 1, "second": 2, "fourth": 4, "fifth": 5}, "takes no 'fifth'; .* ~what.fifth"),
        ({"first": 1, "second": 2, "third": 4, "fourth": 4}, "what.third: kd gives .* itself"),
    ],
)
def test_arguments_are_compared_with_the_signature(node, message):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": TARGET, **node}, "what", third=0)


def test_arguments_that_fit():
    assert build({"_target_": TARGET, "first": 1, "second": 2, "fourth": 4}, "x") == (1, 2, 3, 4)
    partial = build({"_target_": TARGET, "_partial_": True, "fourth": 4}, "x")
    assert partial(1, 2) == (1, 2, 3, 4)
    assert build({"_target_": TARGET, "_args_": [1, 2], "fourth": 4}, "x") == (1, 2, 3, 4)
    assert build({"_target_": "builtins.max", "_args_": [1, 2]}, "x") == 2  # has no signature


# --- debug=smoke ---


@pytest.mark.slow
@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_recipe_has_a_smoke_run(experiment, work):
    for name in ("a", "b"):
        (work / "images" / name).mkdir(parents=True)
        (work / "images" / name / "1.png").touch()
    words = ["debug=smoke", f"experiment={experiment}"]
    if "flowers12" in experiment:
        words.append("dataset.path=images")
    for command in ("train-teacher", "self-train" if "self" in experiment else "distill"):
        made = plan(*words, command=command)
        assert (made.epochs, made.steps, made.dataset.limit) == (1, None, 256)
        assert not made.schedule.get("warmup_epochs") and not made.schedule.get("warmup_steps")
    if made.command == "self-train":
        assert made.rounds == 1 and made.pseudo.epochs is None


@pytest.mark.slow
def test_a_smoke_run_keeps_what_is_typed():
    words = ("debug=smoke", "schedule=warmup_cosine", "epochs=3", "dataset.limit=50")
    made = plan(*words, "schedule.warmup_epochs=2")
    assert (made.epochs, made.dataset.limit, made.schedule.warmup_epochs) == (3, 50, 2)
    assert plan(*words).schedule.warmup_epochs == 0
    assert "debug" not in plan("schedule=warmup_cosine")


@pytest.mark.slow
def test_a_smoke_run_trains_both_networks_for_an_epoch(kd, work, small):
    words = [w for w in small if "epochs" not in w]
    done = kd("distill", *words, "debug=smoke", "schedule=warmup_cosine")
    assert done.code == 0, done.err
    assert not (work / "outputs" / "teachers").exists()
    for folder in ("teachers", "distill"):
        _, record = only_run(work / "outputs" / "debug" / folder)
        assert record["epochs_done"] == 1


def test_evaluate_has_no_use_for_debug(kd, work):
    assert_refused(kd, work, ["evaluate", "x", "debug=smoke"], "does not use debug")
