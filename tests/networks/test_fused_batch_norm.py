"""The fused BatchNormalization computes what Keras's does, and leaves no trace in the file."""

import keras
import numpy as np
import tensorflow as tf

from kd_cli.networks.fused_batch_norm import fuse_batch_norm


def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 5, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    inner = keras.Sequential([keras.Input((4, 3, 4)), keras.layers.BatchNormalization()])
    return keras.Model(inputs, inner(x))


def step(model: keras.Model, images: np.ndarray) -> tuple:
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        value = tf.reduce_sum(outputs**3)
    return outputs.numpy(), [g.numpy() for g in tape.gradient(value, model.trainable_variables)]


def test_outputs_gradients_and_moving_statistics_equal_keras(tmp_path):
    images = np.random.default_rng(0).normal(2, 3, (7, 6, 5, 3)).astype("float32")
    plain, fused = network(), network()
    fuse_batch_norm(fused)
    assert "call" in vars(fused.layers[2]) and "call" in vars(fused.layers[3].layers[0])
    for _ in range(3):
        expected, expected_gradients = step(plain, images)
        outputs, gradients = step(fused, images)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
        scale = max(np.abs(g).max() for g in expected_gradients)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale)
    # Closed form of the moving variance: biased variance of the layer's input, momentum 0.99.
    for ours, theirs in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    biased = np.var(fused.layers[1](images).numpy(), axis=(0, 1, 2))
    kept = 0.99**3
    np.testing.assert_allclose(
        fused.layers[2].moving_variance.numpy(), kept + (1 - kept) * biased, rtol=1e-4
    )
    np.testing.assert_allclose(fused(images).numpy(), plain(images).numpy(), rtol=1e-4, atol=1e-5)
    fused.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.layers[2]) is keras.layers.BatchNormalization
    np.testing.assert_allclose(loaded(images).numpy(), fused(images).numpy(), rtol=1e-5, atol=1e-6)
