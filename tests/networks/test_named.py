"""The networks by name, as teacher and as student: parameters as counted in the authors' code."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from omegaconf import OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.instantiate import build
from kd_cli.runs.resolvers import register_resolvers

register_resolvers()
# Counted in PyTorch in the code of RepDistiller, as `sum(p.numel())`, at 10 and 100 classes, with
# the statistics of BatchNormalization. (ResNet-9: in its author's code; the ViTs: by hand.)
TABLE = {
    "resnet8": (78_042, 83_892, 672),
    "resnet14": (175_258, 181_108, 1_120),
    "resnet20": (272_474, 278_324, 1_568),
    "resnet32": (466_906, 472_756, 2_464),
    "resnet44": (661_338, 667_188, 3_360),
    "resnet56": (855_770, 861_620, 4_256),
    "resnet110": (1_730_714, 1_736_564, 8_288),
    "resnet8x4": (1_210_410, 1_233_540, 2_752),
    "resnet32x4": (7_410_730, 7_433_860, 9_920),
    "wrn_16_1": (175_066, 180_916, 928),
    "wrn_16_2": (691_674, 703_284, 1_824),
    "wrn_40_1": (563_930, 569_780, 2_720),
    "wrn_40_2": (2_243_546, 2_255_156, 5_408),
    "vgg8": (3_918_858, 3_965_028, 2_944),
    "vgg13": (9_416_010, 9_462_180, 5_888),
    "mobilenet_v2": (697_546, 812_836, 18_368),
    "shufflenet_v1": (862_768, 949_258, 23_736),
    "shufflenet_v2": (1_263_278, 1_355_528, 16_180),
    "resnet18": (11_173_962, 11_220_132, 9_600),
    "resnet50": (23_520_842, 23_705_252, 53_120),
    "resnet9": (6_573_120, 6_619_200, 4_480),
    "vit_small": (1_207_444, 1_230_664, 0),
    "deit_tiny": (5_365_076, 5_399_816, 0),
}
# The others take seconds to build.
QUICK = {"resnet8", "resnet14", "resnet8x4", "wrn_16_1", "vgg8", "resnet18", "resnet9", "vit_small"}


def node(role: str, name: str, dataset: str) -> dict:
    command = {"student": "train-student", "teacher": "train-teacher"}[role]
    words = [f"{role}={name}", f"dataset={dataset}"]
    plan = check(compose(command, words), words)
    assert plan[role].name == name
    return OmegaConf.to_container(plan[role].network)


def counts(model: keras.Model) -> list[int]:
    """Of the trainable weights and of the others."""
    return [
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    ]


def of_heads(model: keras.Model, classes: int) -> int:
    """The weights of the layers that have an output for each class."""
    heads = [x for x in model.layers if isinstance(x, keras.layers.Dense) and x.units == classes]
    return sum(x.count_params() for x in heads)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in TABLE],
)
def test_parameters(name: str) -> None:
    """Built for 10 classes; for 100 ten heads count in place of one, where building takes long."""
    ten, hundred, moving = TABLE[name]
    nodes = []
    for dataset in ("cifar10", "cifar100"):
        nodes.append(node("student", name, dataset))
        assert node("teacher", name, dataset) == nodes[-1]
    assert nodes[1] == {**nodes[0], "num_classes": 100} and nodes[0]["num_classes"] == 10
    model = build(nodes[0], "network")
    assert counts(model) == [ten, moving]
    head = of_heads(model, 10)
    assert head > 0 and ten + 9 * head == hundred
    keras.utils.clear_session(free_memory=False)
    if name in QUICK:
        assert counts(build(nodes[1], "network")) == [hundred, moving]
        keras.utils.clear_session(free_memory=False)
