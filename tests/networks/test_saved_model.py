"""SavedModel directories as teachers: found, asked, refused, and told apart."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kd_cli.errors import ConfigError
from kd_cli.files import file_hash, files_of
from kd_cli.networks.saved_model import load_saved_model
from kd_cli.networks.saved_model_graph import refused
from tests.conftest import only_run

IMAGES = tf.TensorSpec([None, 6, 6, 1], tf.float32)


class Published(tf.Module):
    """Images in 0..1 to logits, as a published classifier."""

    def __init__(self, classes: int = 4, bias: float = 0.5) -> None:
        values = np.random.default_rng(1).normal(size=(36, classes))
        self.kernel = tf.Variable(values, dtype=tf.float32)
        self.bias = tf.Variable(tf.fill([classes], bias))

    def logits(self, images):
        return tf.reshape(images, [-1, 36]) @ self.kernel + self.bias


def write(path: Path, outputs=None, spec=IMAGES, module=None) -> Published:
    """Saves a module whose signature gives `outputs(module, images)`."""
    module = module or Published()
    outputs = outputs or (lambda module, images: module.logits(images))
    serve = tf.function(lambda images: outputs(module, images), input_signature=[spec])
    tf.saved_model.save(module, path, signatures={"serving_default": serve})
    return module


def numbers(count: int = 3) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 1, (count, 6, 6, 1)).astype(np.float32)


SUITABLE = {
    "tensor": lambda module, images: module.logits(images),
    "one output": lambda module, images: {"output_0": module.logits(images)},
    "named": lambda module, images: {
        "logits": module.logits(images),
        "features": tf.reshape(images, [-1, 36]),
    },
    "one of two dimensions": lambda module, images: {
        "scores": module.logits(images),
        "map": images,
    },
}


@pytest.mark.parametrize("name", SUITABLE)
def test_the_logits_are_found(tmp_path, name):
    module = write(tmp_path / "published", SUITABLE[name])
    model = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    assert model.input_shape == (None, 6, 6, 1) and model.output_shape == (None, 4)
    np.testing.assert_allclose(model(numbers()), module.logits(numbers()), rtol=1e-5)
    # Weights that the signature does not use are not the teacher's.
    assert model.count_params() == 36 * 4 + 4
    assert {weight.shape for weight in model.get_weights()} == {(36, 4), (4,)}


def test_the_call_serves_where_there_is_no_signature(tmp_path):
    class Callable(Published):
        @tf.function(input_signature=[IMAGES])
        def __call__(self, images):
            return self.logits(images)

    module = Callable()
    tf.saved_model.save(module, tmp_path / "published")
    model = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    np.testing.assert_allclose(model(numbers()), module.logits(numbers()), rtol=1e-5)


def test_a_call_traced_for_training_too_is_asked_for_inference(tmp_path):
    class Callable(Published):
        @tf.function
        def __call__(self, images, training=False):
            return self.logits(images) + (100.0 if training else 0.0)

    module = Callable()
    for training in (True, False):
        module.__call__.get_concrete_function(IMAGES, training=training)
    tf.saved_model.save(module, tmp_path / "published")
    model = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    np.testing.assert_allclose(model(numbers()), module.logits(numbers()), rtol=1e-5)


UNSUITABLE = {
    "whole numbers": (
        lambda module, images: module.logits(tf.cast(images, tf.float32)),
        tf.TensorSpec([None, 6, 6, 1], tf.uint8),
        "received serving_default: uint8 (None, 6, 6, 1) -> ",
    ),
    "a batch of one": (None, tf.TensorSpec([1, 6, 6, 1]), "float32 (1, 6, 6, 1) -> "),
    "flat": (None, tf.TensorSpec([None, 36]), "float32 (None, 36) -> "),
    "two outputs": (
        lambda module, images: {"a": module.logits(images), "b": module.logits(images)},
        IMAGES,
        "named 'logits' where there are several outputs",
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_signature_that_is_no_classifier_of_images_is_refused(tmp_path, name):
    outputs, spec, expected = UNSUITABLE[name]
    write(tmp_path / "published", outputs, spec)
    with pytest.raises(ConfigError, match="expected a signature from float32 images") as caught:
        load_saved_model(tmp_path / "published", "teacher.checkpoint")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def reads_a_file(module, images):
    content = tf.io.read_file("/etc/hostname")
    return module.logits(images) + tf.cast(tf.strings.length(content), tf.float32)


def writes_a_file(module, images):
    with tf.control_dependencies([tf.io.write_file("written.txt", "harm")]):
        return module.logits(images)


def prints_to_a_file(module, images):
    tf.print("harm", output_stream="file://written.txt")
    return module.logits(images)


def lists_files_in_a_branch(module, images):
    def count():
        return tf.cast(tf.size(tf.io.matching_files("/etc/*")), tf.float32)

    return module.logits(images) + tf.cond(tf.reduce_sum(images) > 0, count, lambda: 0.0)


def lists_files_in_a_loop(module, images):
    def body(n, total):
        return n + 1, total + tf.cast(tf.size(tf.io.matching_files("/etc/*")), tf.float32)

    return module.logits(images) + tf.while_loop(lambda n, total: n < 3, body, [0, 0.0])[1]


def saves_a_checkpoint(module, images):
    tf.raw_ops.SaveV2(
        prefix="written.txt", tensor_names=["a"], shape_and_slices=[""], tensors=[tf.ones([1])]
    )
    return module.logits(images)


def calls_python(module, images):
    return tf.ensure_shape(
        tf.numpy_function(lambda x: x, [module.logits(images)], tf.float32), [None, 4]
    )


def calls_python_eagerly(module, images):
    return tf.ensure_shape(
        tf.py_function(lambda x: x, [module.logits(images)], tf.float32), [None, 4]
    )


@pytest.mark.parametrize(
    ("outputs", "operation"),
    [
        (reads_a_file, "ReadFile"),
        (writes_a_file, "WriteFile"),
        (prints_to_a_file, "StringFormat"),
        (lists_files_in_a_branch, "MatchingFiles"),
        (lists_files_in_a_loop, "MatchingFiles"),
        (saves_a_checkpoint, "SaveV2"),
        (calls_python, "PyFunc"),
        (calls_python_eagerly, "EagerPyFunc"),
    ],
)
def test_a_graph_that_reaches_files_or_python_is_not_executed(work, outputs, operation):
    write(work / "published", outputs)
    with pytest.raises(ConfigError, match=f"holds the operation {operation}, which kd does not"):
        load_saved_model(work / "published", "teacher.checkpoint")
    assert list(work.iterdir()) == [work / "published"]


def test_a_table_that_is_read_from_an_asset_when_it_is_loaded_is_refused(work):
    """Its file is read by an initialiser, whatever the signature computes."""
    module = Published()
    (work / "words.txt").write_text("a\nb\n")
    kinds = (tf.string, tf.lookup.TextFileIndex.WHOLE_LINE)
    numbers = (tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    words = tf.lookup.TextFileInitializer("words.txt", *kinds, *numbers)
    module.table = tf.lookup.StaticHashTable(words, -1)
    write(work / "published", module=module)
    with pytest.raises(
        ConfigError, match="holds the operation (HashTableV2|InitializeTableFromTextFileV2)"
    ):
        load_saved_model(work / "published", "teacher.checkpoint")


def graph_of(path: Path):
    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())


def altered(graph, how: str) -> str:
    """What is refused of a graph that reaches the function that saves its variables."""
    (main,) = graph.meta_graphs
    calls = {
        node.name: node.attr["f"].func.name for node in main.graph_def.node if node.op[:1] == "S"
    }
    saving = calls[main.saver_def.save_tensor_name.split(":")[0]]
    if how == "called":  # by the network
        for function in main.graph_def.library.function:
            if "signature_wrapper" in function.signature.name:
                node = function.node_def.add(name="harm", op="PartitionedCall")
                node.attr["f"].func.name = saving
    elif how == "by its name":
        main.graph_def.node.add(name="harm", op=saving)
    elif how == "loaded":  # as a function that Python can call
        main.object_graph_def.concrete_functions[saving].SetInParent()
    elif how == "restored":  # what TensorFlow 1 runs while it loads
        main.saver_def.restore_op_name = main.saver_def.save_tensor_name.split(":")[0]
    elif how == "not saving":
        main.saver_def.save_tensor_name = ""
    return refused(main)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("", ""),
        ("called", "a call of what saves its variables ('harm')"),
        ("by its name", "a call of what saves its variables ('harm')"),
        ("loaded", "a function that is also what saves its variables"),
        ("restored", "the operation "),
        ("not saving", "the operation "),
    ],
)
def test_what_saves_a_graph_s_variables_is_reached_by_nothing_else(tmp_path, how, expected):
    write(tmp_path / "published")
    found = altered(graph_of(tmp_path / "published"), how)
    assert found.startswith(expected) and bool(found) == bool(expected), found


def test_a_graph_of_tensorflow_1_is_loaded(tmp_path):
    """It restores its variables by operations of its own."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        images = v1.placeholder(tf.float32, [None, 6, 6, 1])
        kernel = v1.get_variable("kernel", [36, 4])
        outputs = tf.matmul(tf.reshape(images, [-1, 36]), kernel)
        session.run(v1.global_variables_initializer())
        expected = session.run(outputs, {images: numbers()})
        builder = v1.saved_model.Builder(str(tmp_path / "published"))
        signature = v1.saved_model.predict_signature_def({"images": images}, {"logits": outputs})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    model = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    np.testing.assert_allclose(model(numbers()), expected, rtol=1e-5)


def attention():
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Dense(8)(keras.layers.Reshape((36, 1))(inputs))
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 4)(x, x))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def recurrent():
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Bidirectional(keras.layers.GRU(4))(keras.layers.Reshape((36, 1))(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def convolutions():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.RandomFlip(),
            keras.layers.RandomRotation(0.1),
            keras.layers.Resizing(8, 8),
            keras.layers.Normalization(mean=0.5, variance=0.1),
            keras.layers.SeparableConv2D(4, 3, activation="silu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2DTranspose(4, 3, activation="relu6"),
            keras.layers.GroupNormalization(2),
            keras.layers.SpatialDropout2D(0.1),
            keras.layers.AveragePooling2D(2),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(4),
        ]
    )


@pytest.mark.parametrize(
    "build", [attention, convolutions, pytest.param(recurrent, marks=pytest.mark.slow)]
)
def test_what_keras_exports_is_allowed(tmp_path, build):
    model = build()
    model.export(tmp_path / "published", verbose=False)
    (graph,) = graph_of(tmp_path / "published").meta_graphs
    assert refused(graph) == ""
    loaded = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    np.testing.assert_allclose(loaded(numbers()), model(numbers()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "ConvNeXtTiny"])
def test_what_keras_applications_export_is_allowed(tmp_path, name):
    build = getattr(keras.applications, name)
    options = {"weights": None, "classes": 4, "classifier_activation": None}
    model = build(input_shape=(32, 32, 3), **options)
    model.export(tmp_path / "published", verbose=False)
    loaded = load_saved_model(tmp_path / "published", "teacher.checkpoint")
    images = np.random.default_rng(2).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_damaged_directory_is_one_line(tmp_path):
    write(tmp_path / "published")
    for path in (tmp_path / "published" / "variables").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="teacher.checkpoint=.* can't be loaded: ") as caught:
        load_saved_model(tmp_path / "published", "teacher.checkpoint")
    assert "\n" not in str(caught.value)
    (tmp_path / "published" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="teacher.checkpoint=.* can't be loaded: ") as caught:
        load_saved_model(tmp_path / "published", "teacher.checkpoint")
    assert "\n" not in str(caught.value)


def test_the_hash_of_a_directory_follows_its_graph_and_variables(tmp_path):
    write(tmp_path / "a")
    first = file_hash(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("not of the network")
    assert file_hash(tmp_path / "a") == first
    write(tmp_path / "b", module=Published(bias=0.6))
    assert file_hash(tmp_path / "b") != first
    data = next((tmp_path / "a" / "variables").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    assert file_hash(tmp_path / "a") != first
    assert files_of(tmp_path) == []


@pytest.mark.slow
def test_a_saved_model_teaches(kd, work, small, npz):
    """Pixels in 0..1 reach it through teacher.input, and the cache knows it."""
    module = write(work / "published")
    words = ["distill", *small[:2], "epochs=1", "teacher.checkpoint=published"]
    done = kd(*words)
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs" / "distill")
    with np.load(npz) as data, np.load(run / "predictions.npz") as saved:
        expected = module.logits((data["x_test"] / 255.0).astype(np.float32))
        np.testing.assert_allclose(saved["teacher_logits"], expected, atol=1e-4)
    assert record["teacher"]["name"] == "published"
    assert record["teacher"]["parameters"] == 36 * 4 + 4
    assert record["teacher"]["precision"] == "float32"
    assert not (work / "outputs" / "teachers").exists()
    assert "is finished" in kd(*words).err
    verified = kd("cache", "verify")
    assert verified.code == 0 and verified.out.count("right (") == 3, verified.out
    assert "kept 3" in kd("cache", "prune").out
    # Another network in the same place.
    write(work / "published", module=Published(bias=3.0))
    assert kd(*words).code == 0
    assert len(list((work / "outputs" / "distill").rglob("metrics.json"))) == 2
    verified = kd("cache", "verify")
    assert verified.code == 1 and verified.out.count("weights have changed since") == 3
    assert kd(*words, "rerun=true", "cache.logits=none").code == 0
    assert "removed 3" in kd("cache", "prune").out


def test_another_graph_over_the_same_variables_is_another_teacher(work):
    from kd_cli.distillation.teacher import Teacher
    from kd_cli.networks.keras_file import weights_hash

    hashes = []
    for factor in (1.0, 2.0):
        write(work / "published", lambda m, images, factor=factor: factor * m.logits(images))
        model = load_saved_model(work / "published", "teacher.checkpoint")
        teacher = Teacher(model, work, {}, "", "", weights_hash(model))
        hashes.append((teacher.weights_sha256, teacher.network_sha256))
    assert hashes[0][0] == hashes[1][0] and hashes[0][1] != hashes[1][1]


MISTAKES = {
    "module": (None, 4, ["teacher.module=nets"], ["computes as it was exported", "leave"]),
    "classes": (None, 5, [], ["5 outputs, the dataset has 4 classes"]),
    "precision": (
        None, 4, ["teacher.precision=mixed_bfloat16"], ["computes as it was exported", "leave"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(kd, work, small, name):
    outputs, classes, words, expected = MISTAKES[name]
    write(work / "published", outputs, module=Published(classes))
    done = kd("distill", *small[:2], "teacher.checkpoint=published", *words)
    assert done.code == 2
    for text in expected:
        assert text in done.error
    assert not (work / "outputs").exists()


def test_a_folder_that_is_no_saved_model_is_one_line(kd, work):
    (work / "folder").mkdir()
    done = kd("distill", "teacher.checkpoint=folder")
    assert (
        done.code == 2
        and "folder is not a file; expected a .keras, .onnx or .tflite file, or" in done.error
    )
