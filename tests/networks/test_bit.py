"""BiT ResNets against NumPy, the published parameter counts, and files in the published layout."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from omegaconf import OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.data.dataset import load_dataset
from kd_cli.distillation import teacher as teachers
from kd_cli.distillation import teacher_tables
from kd_cli.errors import ConfigError
from kd_cli.networks import bit
from kd_cli.networks.keras_file import load_keras
from kd_cli.networks.simple import mlp
from kd_cli.networks.wrap import build_network, dead_layers, with_adapter, with_precision
from kd_cli.runs import identity
from kd_cli.runs.identity import run_id, run_spec, teacher_dir
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from tests.conftest import assert_refused, only_run

IDENTITY = OmegaConf.create({"size": None, "scale": 1.0, "offset": 0.0})
GENERATOR = np.random.default_rng(3)


def network(classes: int = 4, side: int = 6, depth: int = 50) -> keras.Model:
    return bit.bit_resnet([side, side, 1], classes, depth=depth, width=1)


def random_weights(model: keras.Model) -> keras.Model:
    """`model` with a head that is not zero and norms that are not one and zero."""
    for layer in model.layers:
        for weight in layer.weights if not isinstance(layer, bit.StdConv2D) else []:
            weight.assign(GENERATOR.normal(0.5, 0.2, weight.shape))
    return model


def published(model: keras.Model, blocks=(3, 4, 6, 3)) -> dict[str, np.ndarray]:
    """The weights of a `bit_resnet` under the names of BiT's files, walked by hand."""
    get = model.get_layer
    files = {
        "resnet/root_block/standardized_conv2d/kernel": get("root_block.standardized_conv2d").kernel
    }
    for block, units in enumerate(blocks, start=1):
        for unit in range(1, units + 1):
            ours, theirs = f"block{block}.unit{unit:02d}", f"resnet/block{block}/unit{unit:02d}"
            for part in "abc":
                norm = get(f"{ours}.{part}.group_norm")
                files[f"{theirs}/{part}/group_norm/gamma"] = norm.gamma
                files[f"{theirs}/{part}/group_norm/beta"] = norm.beta
                kernel = get(f"{ours}.{part}.standardized_conv2d").kernel
                files[f"{theirs}/{part}/standardized_conv2d/kernel"] = kernel
            if unit == 1:
                proj = get(f"{ours}.a.proj.standardized_conv2d").kernel
                files[f"{theirs}/a/proj/standardized_conv2d/kernel"] = proj
    files["resnet/group_norm/gamma"] = get("group_norm").gamma
    files["resnet/group_norm/beta"] = get("group_norm").beta
    files = {key: np.asarray(value) for key, value in files.items()}
    head = get("head.conv2d")
    files["resnet/head/conv2d/kernel"] = np.asarray(head.kernel)[None, None]
    files["resnet/head/conv2d/bias"] = np.asarray(head.bias)
    return files


@pytest.fixture(scope="module")
def source() -> keras.Model:
    return random_weights(network())


@pytest.fixture(scope="module")
def arrays(source) -> dict[str, np.ndarray]:
    return published(source)


@pytest.fixture(scope="module")
def built() -> keras.Model:
    return network()


@pytest.fixture
def target(built) -> keras.Model:
    """A network to read a file into: all its weights are 0."""
    for weight in built.weights:
        weight.assign(np.zeros(weight.shape))
    return built


@pytest.fixture(scope="module")
def of_flowers() -> keras.Model:
    return bit.bit_resnet([128, 128, 3], 102, depth=50, width=1)


def behind_adapter(model: keras.Model) -> keras.Model:
    return with_adapter(model, IDENTITY, (6, 6, 1), "teacher")


def load(target: keras.Model, path: Path, new_head: bool = False) -> None:
    bit.load_published(behind_adapter(target), path, "teacher.weights", new_head)


# RECIPES.md, section flowers102_function_matching.
BLOCKS_50X1 = {
    "root_block": 9_408,
    "block1": 214_912,
    "block2": 1_218_048,
    "block3": 7_095_296,
    "block4": 14_958_592,
    "group_norm": 4_096,
    "head": 208_998,
}


@pytest.mark.slow
def test_parameters_of_50x1_block_by_block(of_flowers):
    model = of_flowers
    counts = dict.fromkeys(BLOCKS_50X1, 0)
    for layer in model.layers:
        if layer.weights:
            counts[layer.name.split(".")[0]] += layer.count_params()
    assert counts == BLOCKS_50X1
    assert model.count_params() == 23_709_350 == sum(BLOCKS_50X1.values())
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == 23_709_350
    assert model.output_shape == (None, 102)
    head = model.layers[-1]
    assert not np.any(head.kernel) and head.activation.__name__ == "linear"


@pytest.mark.slow
def test_parameters_of_101x3():
    # Without values: 1.5 GB.
    with keras.StatelessScope(initialize_variables=False):
        model = bit.bit_resnet([128, 128, 3], 102, depth=101, width=3)
    keras.utils.clear_session(free_memory=False)  # they wait there for their values
    head = model.layers[-1].count_params()
    assert head == 626_790
    assert model.count_params() - head == 381_789_888
    assert model.count_params() == 382_416_678


@pytest.mark.slow
def test_sides_and_strides(of_flowers):
    model = of_flowers
    sides = [model.get_layer(f"block{block}.unit03.add").output.shape[1] for block in (1, 2, 3, 4)]
    assert sides == [32, 16, 8, 4]
    for block in (2, 3, 4):
        assert model.get_layer(f"block{block}.unit01.b.standardized_conv2d").strides == (2, 2)
        assert model.get_layer(f"block{block}.unit01.a.standardized_conv2d").strides == (1, 1)
    assert model.get_layer("root_block.standardized_conv2d").output.shape[1:] == (64, 64, 64)


def standardised(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.astype(np.float64)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return (kernel - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-10)


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Zeros of half the kernel's size around the image on every side."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), *((size // 2, size // 2),) * 2, (0, 0)))
    count = (x.shape[1] - size) // stride + 1
    rows = [
        [
            np.tensordot(
                x[:, r * stride : r * stride + size, c * stride : c * stride + size], kernel, 3
            )
            for c in range(count)
        ]
        for r in range(count)
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def normalised(x: np.ndarray, layer: layers.Layer) -> np.ndarray:
    """Group norm with 32 groups, then ReLU."""
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = groups.var(axis=(1, 2, 4), keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return np.maximum(x * np.asarray(layer.gamma) + np.asarray(layer.beta), 0)


def in_numpy(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The logits of a 50x1 network, from its weights alone."""
    get = model.get_layer

    def conv(x, name, stride=1):
        kernel = np.asarray(get(f"{name}standardized_conv2d").kernel)
        return convolved(x, standardised(kernel), stride)

    x = np.pad(conv(x, "root_block.", 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    count = (x.shape[1] - 3) // 2 + 1
    x = np.array(
        [[x[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((1, 2)) for c in range(count)]
         for r in range(count)]
    ).transpose(2, 0, 1, 3)  # fmt: skip
    for block, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(1, units + 1):
            name = f"block{block}.unit{unit:02d}."
            stride = 2 if block > 1 and unit == 1 else 1
            before = normalised(x, get(f"{name}a.group_norm"))
            shortcut = conv(before, f"{name}a.proj.", stride) if unit == 1 else x
            x = conv(before, f"{name}a.")
            x = conv(normalised(x, get(f"{name}b.group_norm")), f"{name}b.", stride)
            x = conv(normalised(x, get(f"{name}c.group_norm")), f"{name}c.") + shortcut
    x = normalised(x, get("group_norm")).mean((1, 2))
    return x @ np.asarray(get("head.conv2d").kernel) + np.asarray(get("head.conv2d").bias)


@pytest.mark.slow
def test_logits_are_those_of_numpy():
    model = random_weights(network(3, side=22))
    images = GENERATOR.uniform(0, 1, (2, 22, 22, 1)).astype(np.float32)
    expected = in_numpy(model, images)
    assert expected.std() > 0.01
    np.testing.assert_allclose(model(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_standardised_convolution_is_that_of_numpy(stride):
    layer = bit.StdConv2D(5, 3, strides=stride, padding="valid", use_bias=False)
    x = GENERATOR.normal(size=(2, 7, 7, 4)).astype(np.float32)
    layer.build(x.shape)
    layer.kernel.assign(GENERATOR.normal(2, 3, layer.kernel.shape))
    expected = convolved(x, standardised(np.asarray(layer.kernel)), stride)
    inside = slice(1, -1) if stride == 1 else slice(None)
    outputs = np.asarray(layer(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))
    np.testing.assert_allclose(outputs[:, inside], expected[:, inside], atol=1e-4)
    # The scale and mean of a kernel do not count.
    layer.kernel.assign(7 * layer.kernel + 1)
    again = np.asarray(layer(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))
    np.testing.assert_allclose(again, outputs, atol=1e-3)


def test_kernels_are_standardised_in_float32_under_a_mixed_policy():
    layer = bit.StdConv2D(2, 1, use_bias=False, dtype="mixed_bfloat16")
    layer.build((1, 1, 1, 512))
    # In bfloat16 these differ by less than a unit in the last place.
    layer.kernel.assign(1 + 1e-4 * GENERATOR.normal(size=(1, 1, 512, 2)))
    one = np.zeros((1, 1, 1, 512), np.float32)
    one[..., 0] = 1
    outputs = layer(one)
    assert outputs.dtype == "bfloat16"
    expected = standardised(np.asarray(layer.kernel))[0, 0, 0]
    np.testing.assert_allclose(np.asarray(outputs, np.float32)[0, 0, 0], expected, rtol=0.02)


@pytest.mark.slow
def test_a_mixed_network_has_float32_logits(source):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("block1.unit01.a.standardized_conv2d").compute_dtype == "bfloat16"
    changed = with_precision(behind_adapter(source), "mixed_bfloat16")
    assert changed.output.dtype == "float32"
    conv = changed.layers[-1].get_layer("block1.unit01.a.standardized_conv2d")
    assert conv.compute_dtype == "bfloat16"


@pytest.mark.parametrize(("depth", "width"), [(34, 1), (50, 0), (50, 1.5)])
def test_another_depth_or_width_is_refused(depth, width):
    with pytest.raises(ConfigError, match=r"depth=34 must be 50 or 101|width=.* whole number"):
        bit.bit_resnet([6, 6, 1], 4, depth=depth, width=width)


@pytest.mark.slow
def test_a_dead_layer_is_found():
    model = behind_adapter(network())
    norm = model.layers[-1].get_layer("block2.unit03.c.group_norm")
    images = GENERATOR.uniform(0, 255, (3, 6, 6, 1)).astype(np.float32)
    before = dead_layers(model, images)
    norm.gamma.assign(np.zeros(norm.gamma.shape))
    norm.beta.assign(np.full(norm.beta.shape, -1))
    assert dead_layers(model, images) == {**before, "block2.unit03.c.relu": 128}


@pytest.mark.slow
def test_a_saved_network_is_loaded_as_kd_loads(source, tmp_path):
    behind_adapter(source).save(tmp_path / "model.keras")
    model = load_keras(tmp_path / "model.keras", "teacher.checkpoint")
    images = GENERATOR.uniform(0, 1, (2, 6, 6, 1)).astype(np.float32)
    np.testing.assert_array_equal(model(images), source(images))


@pytest.mark.slow
@pytest.mark.parametrize("numbered", [False, True])
def test_published_weights_give_the_logits_of_their_network(
    source, target, arrays, tmp_path, numbered
):
    if numbered:  # as in some of the published files
        arrays = {
            key.replace("c/standardized_conv2d/", "c/standardized_conv2d_2/"): value
            for key, value in arrays.items()
        }
    np.savez(tmp_path / "bit.npz", **arrays)
    load(target, tmp_path / "bit.npz")
    images = GENERATOR.uniform(0, 1, (2, 6, 6, 1)).astype(np.float32)
    np.testing.assert_array_equal(target(images), source(images))


@pytest.mark.slow
def test_a_head_of_other_classes_keeps_its_values_in_a_warm_start(source, arrays, tmp_path, caplog):
    np.savez(tmp_path / "bit.npz", **arrays)
    model = random_weights(network(7))
    head = model.get_layer("head.conv2d").get_weights()
    with caplog.at_level(logging.INFO, logger="kd"):
        load(model, tmp_path / "bit.npz", new_head=True)
    assert "its last layer is for other classes" in caplog.text
    for now, then in zip(model.get_layer("head.conv2d").get_weights(), head, strict=True):
        np.testing.assert_array_equal(now, then)
    for now, theirs in zip(model.get_weights()[:-2], source.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(now, theirs)


PROJ = "resnet/block3/unit01/a/proj/standardized_conv2d/kernel"
MISTAKES = {
    "missing": ({PROJ: None}, ["bit.npz lacks " + PROJ, "teacher.network.depth"]),
    "no head": (
        {"resnet/head/conv2d/bias": None},
        ["lacks resnet/head/conv2d/bias", "kd train-teacher teacher.weights="],
    ),
    "shape": (
        {PROJ: np.zeros((1, 1, 3, 3), np.float32)},
        [PROJ, "float32 of shape [1, 1, 3, 3]", "needs float32 of shape [1, 1, 512, 1024]"],
    ),
    "type": ({"resnet/group_norm/beta": np.arange(2048)}, ["beta is int64", "needs float32"]),
    "objects": (
        {"resnet/group_norm/beta": np.array([{}] * 2048, object)},
        ["can't be read", "Python objects"],
    ),
    "classes": (
        {
            "resnet/head/conv2d/kernel": np.zeros((1, 1, 2048, 21843), np.float32),
            "resnet/head/conv2d/bias": np.zeros(21843, np.float32),
        },
        ["[2048, 21843]", "[2048, 4]", "kd train-teacher teacher.weights="],
    ),
    "depth": (
        {"resnet/block3/unit07/a/group_norm/beta": np.zeros(1024, np.float32)},
        ["holds resnet/block3/unit07/a/group_norm/beta", "teacher.network.depth"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_of_another_network_is_one_line(target, arrays, tmp_path, name):
    changes, expected = MISTAKES[name]
    changed = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(tmp_path / "bit.npz", **changed)
    with pytest.raises(ConfigError) as caught:
        load(target, tmp_path / "bit.npz")
    for text in ["teacher.weights=", *expected]:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut short"])
def test_what_is_no_npz_is_one_line(target, tmp_path, content):
    path = tmp_path / "bit.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"teacher.weights=.*bit.npz can't be read: .*BiT"):
        load(target, path)


@pytest.mark.slow
def test_an_npy_is_one_line(target, tmp_path):
    np.save(tmp_path / "bit.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"bit.npy can't be read: .*expected a .npz file"):
        load(target, tmp_path / "bit.npy")


@pytest.mark.slow
def test_another_network_than_bit_takes_no_published_weights(tmp_path):
    other = mlp([6, 6, 1], 4, units=[3])
    with pytest.raises(ConfigError, match="is for BiT networks.*type teacher=bit_resnet101x3"):
        load(other, tmp_path / "bit.npz")


def resnet50v2_parameters(classes: int) -> int:
    """ResNet50V2 of keras.applications, by hand: biases beside the norms, as it has them."""
    total = 7 * 7 * 3 * 64 + 64
    inputs = 64
    for filters, units in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        for unit in range(units):
            total += 4 * inputs  # the norm before
            total += inputs * filters + 4 * filters + 9 * filters**2 + 4 * filters
            total += filters * 4 * filters + 4 * filters
            if unit == 0:
                total += inputs * 4 * filters + 4 * filters
            inputs = 4 * filters
    return total + 4 * inputs + inputs * classes + classes


def plan(command: str, *overrides: str):
    register_resolvers()
    return check(compose(command, list(overrides)), overrides)


FLOWERS = ("dataset.image_shape=[128,128,3]", "dataset.num_classes=102")


@pytest.mark.slow
def test_resnet50v2_as_a_student():
    cfg = plan("train-student", "student=resnet50v2", *FLOWERS)
    model = build_network(cfg.student, (128, 128, 3), 102, "float32", "student")
    assert model.count_params() == resnet50v2_parameters(102) == 23_773_798
    assert model.output_shape == (None, 102)
    assert model.layers[-1].layers[-1].activation.__name__ == "linear"
    adapter = keras.Model(model.input, model.layers[-2].output)
    ends = adapter(np.array([0, 255], np.float32).reshape(2, 1, 1, 1) * np.ones((1, 128, 128, 3)))
    np.testing.assert_allclose(np.asarray(ends)[:, 0, 0, 0], [-1, 1], atol=1e-6)


@pytest.mark.slow
def test_bit_resnet50x1_as_a_student():
    cfg = plan("train-student", "student=bit_resnet50x1", *FLOWERS)
    model = build_network(cfg.student, (128, 128, 3), 102, "float32", "student")
    assert model.count_params() == 23_709_350
    assert model.layers[-1].name == "bit_resnet"


@pytest.mark.slow
def test_identity_of_a_run_with_published_weights(work):
    for name in ("a", "b"):
        (work / f"{name}.npz").write_bytes(name.encode())
    bare = plan("distill", "teacher=bit_resnet101x3")
    given = plan("distill", "teacher=bit_resnet101x3", "teacher.weights=a.npz")
    other = plan("distill", "teacher=bit_resnet101x3", "teacher.weights=b.npz")
    assert len({run_id(p) for p in (bare, given, other)}) == 3
    # The weights do not tell the network, as a checkpoint does; they count by their content.
    assert run_spec(given)["teacher"]["network"]["depth"] == 101
    assert run_spec(given)["teacher"]["weights"] == hashlib.sha256(b"a").hexdigest()
    before = run_id(given)
    (work / "elsewhere").mkdir()
    (work / "a.npz").rename(work / "elsewhere" / "c.npz")
    moved = plan("distill", "teacher=bit_resnet101x3", "teacher.weights=elsewhere/c.npz")
    assert run_id(moved) == before
    # A teacher that was fine-tuned from them is another one.
    tuned = plan("train-teacher", "teacher=bit_resnet101x3", "teacher.weights=b.npz")
    assert teacher_dir(tuned) != teacher_dir(bare)
    assert "weights" not in str(run_spec(plan("distill"))["teacher"])
    assert identity.run_dir(tuned) == teacher_dir(tuned)


BIT = ("teacher=bit_resnet101x3", "teacher.network.depth=50", "teacher.network.width=1")
SHORT = ("steps=2", "dataset.limit=40")


@pytest.fixture
def short(monkeypatch) -> keras.Model:
    """A network of one unit per block, which from now on is what depth=50 builds."""
    monkeypatch.setitem(bit._UNITS, 50, (1, 1, 1, 1))
    return random_weights(network())


@pytest.fixture
def weights(short, work) -> Path:
    np.savez(work / "BiT-test.npz", **published(short, (1, 1, 1, 1)))
    return work / "BiT-test.npz"


@pytest.mark.slow
def test_published_weights_give_a_ready_teacher(npz, short, weights):
    words = ("dataset=npz", f"dataset.path={npz}", *BIT, f"teacher.weights={weights}")
    cfg = plan("distill", *words)
    dataset = load_dataset(cfg.dataset)
    teacher = teachers.find(cfg, dataset, Session())
    images = GENERATOR.integers(0, 256, (2, 6, 6, 1)).astype(np.float32)
    np.testing.assert_allclose(teacher.model(images), short(images / 255), atol=1e-4)
    assert (teacher.name, teacher.training, teacher.precision) == ("BiT-test", "", "float32")
    # What was built in between does not change its name in the cache.
    mlp([6, 6, 1], 4, units=[3])
    plain = {"augment": {"train": [], "evaluate": []}, "view": None, "part": "test"}
    origin = {"teacher": json.loads(json.dumps(teacher.origin)), **plain}
    again, _, _, hashes = teacher_tables.of_origin(origin, dataset, Session())
    assert again is not teacher and again.network_sha256 == teacher.network_sha256
    assert hashes["weights"] == teacher.weights_sha256


@pytest.mark.slow
def test_a_ready_teacher_computes_in_its_own_precision(npz, weights):
    words = ("dataset=npz", f"dataset.path={npz}", *BIT, f"teacher.weights={weights}")
    found = {}
    for precision in ("null", "mixed_bfloat16"):
        cfg = plan("distill", *words, f"teacher.precision={precision}")
        teacher = teachers.find(cfg, load_dataset(cfg.dataset), Session())
        found[teacher.precision] = teacher.network_sha256
    assert set(found) == {"float32", "mixed_bfloat16"} and len(set(found.values())) == 2


@pytest.mark.slow
def test_published_weights_teach_without_training(kd, work, npz, short, weights):
    words = ["distill", "dataset=npz", f"dataset.path={npz}", *BIT, *SHORT]
    words += [f"teacher.weights={weights.name}"]
    done = kd(*words)
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs")
    with np.load(npz) as pool, np.load(run / "predictions.npz") as saved:
        expected = short.predict(pool["x_test"] / 255.0, verbose=0)
        np.testing.assert_allclose(saved["teacher_logits"], expected[:40], atol=1e-3)
    assert record["teacher"]["name"] == "BiT-test" and record["teacher"]["training"] == "unknown"
    assert record["teacher"]["parameters"] == short.count_params()
    assert not (work / "outputs" / "teachers").exists()
    verified = kd("cache", "verify")
    assert verified.code == 0 and verified.out.count("right (") == 3, verified.out
    assert "kept 3" in kd("cache", "prune").out
    # Other bytes under the same name are another teacher.
    with np.load(weights) as archive:
        changed = dict(archive)
    changed["resnet/group_norm/beta"] += 1
    np.savez(weights, **changed)
    assert kd(*words).code == 0
    assert len(list((work / "outputs" / "distill").rglob("metrics.json"))) == 2
    verified = kd("cache", "verify")
    assert verified.code == 1 and verified.out.count("its weights have changed since") == 3


@pytest.mark.slow
def test_published_weights_are_fine_tuned_with_a_new_head(kd, work, npz, short, weights):
    arrays = {**published(short, (1, 1, 1, 1)), "resnet/head/conv2d/bias": np.zeros(9, np.float32)}
    arrays["resnet/head/conv2d/kernel"] = np.zeros((1, 1, 2048, 9), np.float32)
    np.savez(weights, **arrays)
    words = ["dataset=npz", f"dataset.path={npz}", *BIT, *SHORT]
    done = kd("distill", *words, f"teacher.weights={weights}")
    assert done.code == 2 and "kd train-teacher teacher.weights=" in done.error
    tune = ["train-teacher", *words, f"teacher.weights={weights}", "learning_rate=1e-30"]
    done = kd(*tune)
    assert done.code == 0 and "its last layer is for other classes" in done.err
    run, record = only_run(work / "outputs" / "teachers")
    assert set(record["inputs"]) == {"data", "split", "teacher.weights"}
    model = load_keras(run / "model.keras", "teacher.checkpoint")
    beta = model.layers[-1].get_layer("group_norm").beta
    np.testing.assert_allclose(beta, arrays["resnet/group_norm/beta"])
    # A distill run takes it by its directory.
    done = kd("distill", *words, f"teacher_dir={run}")
    assert done.code == 0 and "training it first" not in done.err
    np.savez(weights, **{**arrays, "resnet/group_norm/beta": beta + 1})
    # From other weights it is another teacher.
    assert kd(*tune).code == 0
    assert len(list((work / "outputs" / "teachers").iterdir())) == 2


EARLY = {
    "no file": (["distill", "teacher.weights=no.npz"], ["no.npz is not a file", ".npz"]),
    "both": (
        ["distill", "teacher.weights=a.npz", "teacher.checkpoint=b.keras"],
        ["teacher.weights=a.npz", "leave one"],
    ),
    "student": (["train-student", "teacher.weights=a.npz"], ["does not use teacher.weights"]),
    "training": (["train-teacher", "teacher.weights=no.npz"], ["no.npz is not a file"]),
}


@pytest.mark.parametrize("name", EARLY)
def test_a_mistake_is_one_line(kd, work, name):
    words, expected = EARLY[name]
    assert_refused(kd, work, words, *expected)
