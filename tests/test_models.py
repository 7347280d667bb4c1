"""The network and its layers, against the original's."""

import contextlib
import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.models import create_model, load_weights, save_weights
from mat.models.convolutional import StandardizedConv2D, standardize
from mat.models.groupnormalization import StripNormalization
from mat.models.kernels import forward_flops
from mat.models.pooling import SMALLEST_POOL, last_feature_map, pool_size
from mat.models.prepared import PreparedLayer, prepared_once
from tests.conftest import GOLDEN, SMALL, golden

NORMALIZATIONS = ["strip", "group", "batch", "layer", "none"]
COMPILE = [lambda function: function, tf.function, functools.partial(tf.function, jit_compile=True)]


@pytest.mark.parametrize("case", range(4))
def test_strip_normalization_equals_the_original(case):
    z = golden("layers")
    x, gamma, beta, y = (z[f"gn{case}_{name}"] for name in ("x", "gamma", "beta", "y"))
    layer = StripNormalization()
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    np.testing.assert_allclose(layer(x), y, atol=1e-5)


def gradients_of(function, *inputs):
    """Gradients of a weighted sum of a function's results, so that no two elements get the same one."""
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        results = function(*inputs)
        loss = tf.reduce_sum(results * tf.reshape(tf.sin(tf.range(tf.size(results), dtype=tf.float32)), results.shape))
    return tape.gradient(loss, inputs)


@pytest.mark.parametrize("size", [8, 9, 40])  # with 9, strips end within pixels; with 40, sums are those of five blocks of five rows
@pytest.mark.parametrize(("shortcut_and_relu", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")])
@pytest.mark.parametrize("compile_", COMPILE)
def test_strip_normalization_and_its_gradients_equal_the_formula(size, shortcut_and_relu, dtype, compile_):
    """So they do with a shortcut and the ReLU, as parts of the layer."""
    shape, rng = (2, size, size, 16), np.random.default_rng(0)
    x, shortcut = (np.float32(tf.cast(rng.normal(1.0, 2.0, size=shape), dtype)) for _ in range(2))
    gamma, beta = rng.normal(size=(2, 16)).astype(np.float32)
    shortcuts = [shortcut] if shortcut_and_relu else []

    def formula(x, gamma, beta, *shortcuts):
        strips = tf.reshape(x, [2, 8, -1, 2])
        mean, variance = tf.nn.moments(strips, axes=[2, 3], keepdims=True)
        normalized = (strips - mean) / tf.sqrt(variance + 1e-5)
        outputs = tf.reshape(normalized * tf.reshape(gamma, [8, 1, 2]) + tf.reshape(beta, [8, 1, 2]), x.shape)
        return tf.nn.relu(outputs + shortcuts[0]) if shortcut_and_relu else outputs

    layer = StripNormalization(relu=shortcut_and_relu, dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
    layer.build(shape)
    layer.xla = compile_ is COMPILE[-1]

    def normalize(x, gamma, beta, *shortcuts):
        layer.gamma, layer.beta = gamma, beta
        return tf.cast(layer(x, *shortcuts), tf.float32)

    inputs = [x, gamma, beta, *shortcuts]
    exact = dtype == "float32"
    tolerance = {"atol": 1e-5, "rtol": 1e-6} if exact else {"atol": 1e-5, "rtol": 2**-8}
    np.testing.assert_allclose(compile_(normalize)(*inputs), formula(*inputs), **tolerance)
    tolerance = {"atol": 2e-5, "rtol": 1e-5} if exact else {"atol": 0.1, "rtol": 0.01}
    ours, expected = (compile_(gradients_of)(function, *inputs) for function in (normalize, formula))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("xla", [True, False])
def test_strip_normalization_of_values_far_from_zero(xla):
    """The variance from sums of squares loses digits, but not what matters, and a constant strip gives its offset."""
    layer = StripNormalization()
    layer.xla = xla
    x = np.random.default_rng(0).normal(30.0, 1.0, size=(1, 16, 16, 8)).astype(np.float32)
    expected = (x.reshape(8, -1) - x.reshape(8, -1).mean(1, keepdims=True)) / x.reshape(8, -1).std(1, keepdims=True)
    np.testing.assert_allclose(tf.reshape(layer(x), [8, -1]), expected, atol=2e-3)
    np.testing.assert_allclose(layer(np.full((1, 16, 16, 8), 7.0, np.float32)), 0.0, atol=2e-2)


@pytest.mark.parametrize("case", range(3))
def test_convolutions_equal_the_original(case):
    z = golden("layers")
    x, kernel, bias, strides, standardized, y = (
        z[f"conv{case}_{name}"] for name in ("x", "kernel", "bias", "strides", "standardized", "y")
    )
    size, _, _, filters = kernel.shape
    make = StandardizedConv2D if standardized else keras.layers.Conv2D
    arguments = {} if standardized else {"padding": "same"}
    layer = make(filters, size, strides=int(strides[0] if np.ndim(strides) else strides), **arguments)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    np.testing.assert_allclose(layer(x), y, atol=1e-5)
    assert tuple(layer.compute_output_shape(x.shape)) == y.shape


def test_standardized_kernels_ignore_scale_and_shift():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    standard = standardize(kernel).numpy()
    np.testing.assert_allclose(standard.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(axis=(0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(standardize(3 * kernel + 2), standard, atol=1e-4)


def test_gradients_of_standardized_kernels_equal_those_of_the_formula():
    kernel = np.random.default_rng(0).normal(0.1, 0.3, size=(3, 3, 4, 8)).astype(np.float32)
    kernel[..., 0] = 0.5  # a filter of no variance

    def formula(kernel):
        centered = kernel - tf.reduce_mean(kernel, [0, 1, 2])
        return centered / (tf.sqrt(tf.reduce_mean(tf.square(centered), [0, 1, 2]) + 1e-30) + 1e-5)

    (ours,), (expected,) = gradients_of(standardize, kernel), gradients_of(formula, kernel)
    np.testing.assert_allclose(ours[..., 1:], expected[..., 1:], atol=1e-4)
    assert np.all(np.isfinite(ours))


@pytest.mark.parametrize("compile_", [lambda function: function, tf.function])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_gradients_of_biases_are_summed_in_float32(precision, compile_):
    layer = StandardizedConv2D(4, 3, dtype=precision)
    images = tf.ones([4, 32, 32, 3])
    layer(images)

    def gradient():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.cast(layer(images), tf.float32))
        return tape.gradient(total, layer.bias.value)

    np.testing.assert_allclose(compile_(gradient)(), np.full(4, 4 * 32 * 32), rtol=1e-2)


def test_weights_prepared_once_give_the_same_results_and_gradients(golden_model):
    images = golden("forward")["images"][:2]

    def results(context):
        with tf.GradientTape() as tape, context:
            logits = golden_model(images)
            loss = tf.reduce_sum(logits**2)
        return [logits, *tape.gradient(loss, golden_model.trainable_variables)]

    for one, other in zip(results(contextlib.nullcontext()), results(prepared_once(golden_model, xla=True)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    layers = [layer for layer in golden_model.layers if isinstance(layer, PreparedLayer)]
    with prepared_once(golden_model, xla=False):
        assert all(layer.prepared() is layer.prepared() for layer in layers)
    assert len(layers) == 34
    assert all(layer.prepared() is not layer.prepared() and layer.xla for layer in layers)


@pytest.mark.parametrize(
    "layer",
    [
        StandardizedConv2D(4, 3, strides=2, kernel_initializer="ones", name="c"),
        StripNormalization(2, 1e-3, relu=True, dtype="mixed_bfloat16"),
    ],
)
def test_layers_are_made_again_from_their_config(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StandardizedConv2D(0, 3), "Received: 0, 3, 1"),
        (lambda: StripNormalization(0), "groups=0"),
        (lambda: StripNormalization().build((None, 8, 8, 12)), "channels=12, groups=8"),
        (lambda: StripNormalization().build((None, None, 8, 16)), "height and width must be known"),
        (lambda: pool_size(7), "at least 8x8. Received: 7x7"),
    ],
)
def test_layers_refuse_what_they_cannot_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_strip_normalization_refuses_images_of_another_size():
    layer = StripNormalization()
    layer(np.zeros((1, 8, 8, 16), np.float32))
    with pytest.raises(ValueError, match="16, 16, 16"):
        layer(np.zeros((1, 16, 16, 16), np.float32))  # of the same length in all, so that it could be mistaken for four images


def test_logits_equal_the_original(golden_model):
    z = golden("forward")
    logits = golden_model(z["images"])
    np.testing.assert_allclose(logits, z["logits"], atol=1e-4)
    np.testing.assert_allclose(tf.nn.softmax(logits), z["softmax"], atol=1e-5)


def test_published_network_has_the_published_size():
    model = create_model(PatchTrainingConfig())
    assert model.count_params() == 11_274_440
    assert sum(bool(layer.weights) for layer in model.layers) == 38
    assert round(forward_flops(model) / 1e9, 1) == 4.4


def test_equal_shapes_start_from_different_values_and_seeds_repeat():
    def kernels(seed):
        model = create_model(PatchTrainingConfig(**SMALL, seed=seed))
        return {layer.name: layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")}

    one, same, other = kernels(0), kernels(0), kernels(1)
    assert np.any(one["conv2d_1"] != one["conv2d_2"])
    for name, kernel in one.items():
        np.testing.assert_array_equal(kernel, same[name])
        assert np.any(kernel != other[name])
        if kernel.size > 1000:  # He-normal
            assert abs(kernel.std() / np.sqrt(2 / np.prod(kernel.shape[:-1])) - 1) < 0.1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_choice_gives_finite_logits_and_its_weights_come_back(tmp_path, normalization, precision):
    keys = SMALL | {"normalization": normalization, "precision": precision}
    model, other = (create_model(PatchTrainingConfig(**keys, seed=seed)) for seed in (0, 1))
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    logits = model(images)
    assert (logits.dtype, logits.shape) == (tf.float32, (3, 5))
    assert np.all(np.isfinite(logits))
    assert np.any(np.abs(logits - other(images)) > 1e-3)
    save_weights(model, tmp_path / "original.h5")
    model.save_weights(tmp_path / "keras_3.weights.h5")
    for name in ("original.h5", "keras_3.weights.h5"):
        other = create_model(PatchTrainingConfig(**keys, seed=1))
        load_weights(other, tmp_path / name)
        np.testing.assert_array_equal(other(images), logits)


def test_weights_of_one_normalization_are_refused_for_every_other(tmp_path):
    models = {name: create_model(PatchTrainingConfig(**SMALL, normalization=name)) for name in NORMALIZATIONS}
    for name, model in models.items():
        save_weights(model, tmp_path / f"{name}.h5")
        model.save_weights(tmp_path / f"{name}.weights.h5")
    for (file, (name, model)), ending in itertools.product(itertools.product(NORMALIZATIONS, models.items()), (".h5", ".weights.h5")):
        if file == name:
            load_weights(model, tmp_path / f"{file}{ending}")
            continue
        with pytest.raises(UserError, match="not of this network.*normalization"):
            load_weights(model, tmp_path / f"{file}{ending}")


def test_pooled_cells_cover_the_feature_map():
    for feature_map in range(SMALLEST_POOL, 230):
        size = pool_size(feature_map)
        assert size >= SMALLEST_POOL
        assert feature_map % size == 0
        if feature_map % SMALLEST_POOL == 0:
            assert size == SMALLEST_POOL  # as the original does


@pytest.mark.parametrize(("image_size", "n_stacks"), [(64, 4), (72, 4), (96, 4), (112, 4), (120, 4), (160, 4), (176, 5), (40, 2), (32, 1)])
def test_every_pixel_has_an_influence_of_the_same_order(image_size, n_stacks):
    keys = SMALL | {"image_size": image_size, "n_stacks": n_stacks, "normalization": "none"}
    model = create_model(PatchTrainingConfig(**keys))
    images = tf.constant(np.random.default_rng(0).random((4, image_size, image_size, 3), np.float32))
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = model(images) @ tf.constant([[1.0], [-2.0], [3.0], [-4.0], [5.0]])
    influence = np.abs(tape.gradient(logits, images)).mean(axis=(0, 3))  # [H, W]
    assert np.all(influence > 0)
    half = image_size // 2
    quarters = [influence[rows, columns].mean() for rows in np.s_[:half, half:] for columns in np.s_[:half, half:]]
    assert max(quarters) < 2 * min(quarters)


def test_image_sizes_are_refused_where_the_last_feature_map_is_too_small():
    for image_size, n_stacks in itertools.product(range(32, 225, 8), range(1, 6)):
        keys = SMALL | {"image_size": image_size, "n_stacks": n_stacks}
        if last_feature_map(image_size, n_stacks) >= SMALLEST_POOL:
            PatchTrainingConfig(**keys)
            continue
        with pytest.raises(UserError, match=r"too small for n_stacks: \d.*Set n_stacks: \d or a larger image_size"):
            PatchTrainingConfig(**keys)


def test_bfloat16_follows_float32(golden_model):
    z = golden("forward")
    model = create_model(PatchTrainingConfig(width=1, precision="mixed_bfloat16"))
    load_weights(model, GOLDEN / "original_w1.h5")
    logits = model(z["images"]).numpy()
    assert 0 < np.abs(logits - z["logits"]).max() < 0.5
    np.testing.assert_array_equal(logits.argmax(-1), z["logits"].argmax(-1))
