"""A student that ends in its teacher's classifier: body, projector, pooling, the teacher's head.

It is made of plain Keras layers alone, so that its file loads as any other.
"""

from __future__ import annotations

import math

import keras
from keras import layers

from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.logits import NoSoftmax
from kd_cli.networks.taps import POOLINGS, Graph, Place

_KEPT = (layers.Dense, layers.Flatten, layers.Rescaling)
_IDLE = (layers.Dropout, layers.Identity, NoSoftmax)  # in inference they do nothing
_EPSILON = 1e-5  # of BatchNormalization, as in PyTorch


def with_reused_head(
    student: keras.Model, teacher: keras.Model, factor: int
) -> tuple[keras.Model, dict[str, int]]:
    """The student's body, a projector to the teacher's last map, and the teacher's head, frozen.

    Args:
        student: Images to logits; its layers up to the tap `map` are used, not copied.
        teacher: Its head, all that follows its tap `map`, is copied.
        factor: The projector's two inner convolutions have so many times fewer channels than the
            teacher's map.

    Returns:
        The network, and the parameters of its parts: the fields of `runs.record.Deployed`.

    Raises:
        ConfigError: One of the two has no `map`, the teacher's head is more than global pooling and
            one dense layer, or the two maps' sides don't divide.
    """
    wanted, head = _head(Graph(teacher, "teacher"))
    graph = Graph(student, "student")
    ends = graph.find("map")
    projector = _projector(_known(ends, "student"), wanted, factor)
    copies = [_copy(layer) for layer in head]
    x = ends.outputs
    for layer in (*projector, *copies):
        x = layer(x)
    for layer, copy in zip(head, copies, strict=True):
        copy.set_weights(layer.get_weights())
        copy.trainable = False
    lambdas = [one.path for one in graph.places if isinstance(one.operation, layers.Lambda)]
    if lambdas:  # of other networks the function builds it, and of this one there is none
        raise ConfigError(
            f"the student has a Lambda layer ({lambdas[0]}), whose code kd does not load from the "
            "file of a student with another head; write it as a layer with a class"
        )
    try:
        network = keras.Model(graph.inputs, x, name=student.name)
    except ValueError as error:  # nested models may have layers of one name
        raise ConfigError(
            f"the student's layers can't be taken apart ({first_line(error)}); give each layer of "
            "it a name of its own"
        ) from error
    sizes = {
        "projector": sum(layer.count_params() for layer in projector),
        "head": sum(layer.count_params() for layer in copies),
    }
    body = network.count_params() - sum(sizes.values())
    return network, {"configured": student.count_params(), "body": body, **sizes}


def _head(graph: Graph) -> tuple[tuple[int, int, int], list[layers.Layer]]:
    """The shape of a network's last map, and the layers that follow it and do something."""
    last = graph.find("map")
    shape, before = _known(last, graph.what), graph.places.index(last)
    kept, following = [], graph.places[before + 1 : graph.last + 1]
    for number, place in enumerate(following, start=before):
        layer = place.operation
        linear = getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear"
        pooling = type(layer).__name__ in POOLINGS and not kept
        idle = isinstance(layer, _IDLE) or (type(layer) is layers.Activation and linear)
        plain = type(layer) in _KEPT and kept and linear
        if place.inputs != {number} or not (pooling or idle or plain):
            raise _other_head(place.path)
        if not idle:
            kept.append(layer)
    dense = [layer for layer in kept if type(layer) is layers.Dense]
    if len(dense) != 1:
        raise _other_head(dense[1].name if dense else last.path)
    return shape, kept


def _other_head(path: str) -> ConfigError:
    return ConfigError(
        f"the teacher's head is not global pooling and one dense layer alone (it has {path}), so "
        "a student can't reuse it; choose another loss, or networks such as teacher=resnet20 "
        "student=resnet8"
    )


def _known(place: Place, what: str) -> tuple[int, int, int]:
    if None in place.shape:
        raise ConfigError(
            f"the size of the {what}'s last map is not known, as it takes images of any size; "
            "build it for images of one size"
        )
    return place.shape


def _copy(layer: layers.Layer) -> layers.Layer:
    config = layer.get_config()
    config |= {"name": f"teacher_{layer.name}", "dtype": "float32"}
    return type(layer).from_config(config)


def _projector(
    ours: tuple[int, int, int], theirs: tuple[int, int, int], factor: int
) -> list[layers.Layer]:
    """1x1, 3x3 and 1x1 convolutions, each with BatchNormalization and ReLU.

    A finer map is averaged down to the teacher's first; a coarser one stays, and the loss averages
    the teacher's.
    """
    finer = all(own % other == 0 for own, other in zip(ours[:2], theirs[:2], strict=True))
    coarser = all(other % own == 0 for own, other in zip(ours[:2], theirs[:2], strict=True))
    if not finer and not coarser:
        sides = " and the teacher's ".join("x".join(map(str, s[:2])) for s in (ours, theirs))
        raise ConfigError(
            f"the student's last map is {sides}: one must be a whole multiple of the other; set "
            "student.input.size, or choose another student"
        )
    made: list[layers.Layer] = []
    if finer and ours[:2] != theirs[:2]:
        sizes = (ours[0] // theirs[0], ours[1] // theirs[1])
        made.append(layers.AveragePooling2D(sizes, name="simkd_pool"))
    inner = math.floor(theirs[2] / factor)
    if inner < 1:
        raise ConfigError(
            f"factor={factor} is more than the {theirs[2]} channels of the teacher's last map"
        )
    for number, (width, kernel) in enumerate([(inner, 1), (inner, 3), (theirs[2], 1)], start=1):
        made += [
            layers.Conv2D(
                width, kernel, padding="same", use_bias=False, name=f"simkd_conv{number}"
            ),
            layers.BatchNormalization(epsilon=_EPSILON, momentum=0.9, name=f"simkd_norm{number}"),
            layers.ReLU(name=f"simkd_relu{number}"),
        ]
    return made
