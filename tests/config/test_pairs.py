"""The pairs of the CIFAR tables, and a scale for each colour."""

import keras
import numpy as np
import pytest

from kd_cli.config.check import check
from kd_cli.config.compose import compose, conf_dir
from kd_cli.errors import ConfigError
from kd_cli.networks.wrap import with_adapter
from kd_cli.runs.identity import run_spec
from kd_cli.runs.resolvers import register_resolvers

PAIRS = sorted(path.stem for path in (conf_dir() / "pair").glob("*.yaml"))


def plan(*words):
    register_resolvers()
    return check(compose("distill", list(words)), list(words))


def test_a_file_of_the_user_s_wins_over_a_network_s_name(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "resnet20.yaml").write_text(
        "defaults: [/network@network: resnet8, _self_]\nname: mine\n"
    )
    made = compose("distill", ["student=resnet20"], str(tmp_path))
    assert made.student.name == "mine" and made.student.network.depth == 8


def test_a_network_of_the_user_s_is_a_teacher_and_a_student(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "r26.yaml").write_text("defaults: [resnet, _self_]\ndepth: 26\n")
    (tmp_path / "network" / "_part.yaml").write_text("defaults: [resnet, _self_]\n")
    made = compose("distill", ["student=r26", "teacher=r26"], str(tmp_path))
    assert (made.student.name, made.teacher.name) == ("r26", "r26")
    assert made.student.network.depth == made.teacher.network.depth == 26
    with pytest.raises(ConfigError, match="no option '_part' in group 'student'"):
        compose("distill", ["student=_part"], str(tmp_path))


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_of_the_tables(pair):
    """Step 0.05, for MobileNetV2 and the ShuffleNets 0.01; the names say who is who."""
    made = plan("experiment=cifar100_tables", f"pair={pair}", "loss=[ce,at]")
    small = made.student.name in ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
    assert f"{made.teacher.name}_{made.student.name}" == pair
    assert made.learning_rate == (0.01 if small else 0.05)
    training = made.teacher.training
    assert training.learning_rate == 0.05 and training.epochs == made.epochs == 240
    assert list(made.schedule.milestones) == list(training.schedule.milestones) == [150, 180, 210]
    assert made.optimizer.weight_decay == training.optimizer.weight_decay == 5e-4
    assert made.batch_size == training.batch_size == 64


def test_the_recipe_of_the_tables_normalises_each_colour():
    """(x / 255 - mean) / standard deviation, with the numbers that the codes hold."""
    made = plan("experiment=cifar100_tables")
    mean, deviation = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])
    for adapter in (made.student.input, made.teacher.input):
        np.testing.assert_allclose(adapter.scale, 1 / 255 / deviation, rtol=1e-7)
        np.testing.assert_allclose(adapter.offset, -mean / deviation, rtol=1e-7)
    inputs = keras.Input((2, 2, 3))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    images = np.random.default_rng(0).uniform(0, 255, (5, 2, 2, 3)).astype(np.float32)
    model = with_adapter(network, made.student.input, (2, 2, 3), "student")
    expected = ((images / 255 - mean) / deviation).reshape(5, -1)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_a_scale_for_each_channel_counts_in_the_run_id_and_needs_one_for_each():
    words = ["dataset=cifar10", "student.input.scale=[0.1,0.2,0.3]"]
    assert run_spec(plan(*words)) != run_spec(plan("dataset=cifar10", "student.input.scale=0.1"))
    for typed in ("teacher.input.offset", "student.input.scale"):
        for value, expected in (
            ("[0.1,0.2]", r"=\[0.1, 0.2\] must be a number, or a list .* \(the images have 3\)"),
            ("null", "=null: it needs a value"),
            ("[]", r"=\[\] must be a number"),
        ):
            with pytest.raises(ConfigError, match=typed + expected):
                plan("dataset=cifar10", f"{typed}={value}")
    with pytest.raises(ConfigError, match="scale=big must be a number, or a list of one for each"):
        plan("student.input.scale=big")
