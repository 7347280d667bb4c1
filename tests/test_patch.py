"""The bank: applying, drawing, selecting and updating patches."""

import functools
import zlib

import numpy as np
import pytest
import tensorflow as tf

from mat.patch import (
    PatchBank,
    apply_patches,
    draw_trials,
    initial_step_sizes,
    initial_targets,
    random_patches,
    reptile_update,
    resize_to_patches,
    select_patches,
)
from mat.seeds import draw_integers, stream_seed
from tests.conftest import golden

COMPILE = [lambda function: function, tf.function, functools.partial(tf.function, jit_compile=True)]


@pytest.mark.parametrize("compile_", COMPILE)
def test_apply_patches_equals_the_original(compile_):
    z = golden("patch_application")
    offsets = np.stack([z["row_offset"], z["col_offset"]], axis=-1).astype(np.int32)
    np.testing.assert_array_equal(compile_(apply_patches)(z["images"], z["patches"], offsets), z["patched"])


@pytest.mark.parametrize(("patch_shape", "offset"), [((2, 3), (0, 0)), ((2, 3), (3, 4)), ((5, 7), (0, 0)), ((1, 1), (4, 6))])
def test_apply_patches_reaches_every_position(patch_shape, offset):
    images = np.zeros((1, 5, 7, 3), np.float32)
    patches = np.random.default_rng(0).uniform(0.5, 1, (1, *patch_shape, 3)).astype(np.float32)
    patched = apply_patches(images, patches, [offset]).numpy()
    (row, column), (height, width) = offset, patch_shape
    np.testing.assert_array_equal(patched[:, row : row + height, column : column + width], patches)
    assert np.count_nonzero(patched) == patches.size


@pytest.mark.parametrize("compile_", COMPILE)
def test_apply_patches_has_the_gradients_of_copying(compile_):
    rng = np.random.default_rng(0)
    images, patches = tf.constant(rng.random((2, 5, 5, 3), np.float32)), tf.constant(rng.random((2, 2, 3, 3), np.float32))
    upstream = rng.random((2, 5, 5, 3), np.float32)
    with tf.GradientTape() as tape:
        tape.watch([images, patches])
        total = tf.reduce_sum(compile_(apply_patches)(images, patches, tf.constant([[1, 2], [3, 0]])) * upstream)
    to_images, to_patches = tape.gradient(total, [images, patches])
    np.testing.assert_array_equal(to_patches, [upstream[0, 1:3, 2:5], upstream[1, 3:5, 0:3]])
    upstream[0, 1:3, 2:5] = upstream[1, 3:5, 0:3] = 0
    np.testing.assert_array_equal(to_images, upstream)


def test_trials_cover_bank_and_positions_uniformly_to_both_ends():
    sizes = {"n_trials": 40, "batch_size": 300, "n_patches": 3, "image_shape": (10, 8, 3)}
    indices, offsets = (x.numpy() for x in draw_trials(stream_seed(0, "a"), **sizes, patch_shape=(7, 6, 3)))
    assert indices.shape == (40, 300)
    assert (offsets.shape, offsets.dtype) == ((40, 300, 2), np.int32)
    for values, n_values in ((indices, 3), (offsets[..., 0], 4), (offsets[..., 1], 3)):
        counts = np.bincount(values.ravel(), minlength=n_values)
        assert len(counts) == n_values
        assert abs(counts / values.size - 1 / n_values).max() < 0.02
    assert abs(np.corrcoef([indices.ravel(), offsets[..., 0].ravel(), offsets[..., 1].ravel()]) - np.eye(3)).max() < 0.04
    others, corners = draw_trials(stream_seed(0, "b"), **sizes, patch_shape=(10, 8, 3))  # as large as the image
    assert np.any(others != indices)
    assert not np.any(corners)


def test_seeds_of_streams_are_the_same_on_every_machine():
    np.testing.assert_array_equal(stream_seed(3, "trials"), np.array([3, zlib.crc32(b"trials")]).astype(np.uint32).view(np.int32))
    np.testing.assert_array_equal(draw_integers([4], stream_seed(0, "trials"), 1000, tf.int32), [827, 366, 777, 282])


def test_select_keeps_the_largest_loss_and_the_earlier_trial_on_a_tie():
    bank = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) * np.ones((4, 2, 2, 3), np.float32)
    trial_indices = np.array([[1, 3, 0], [2, 0, 0], [2, 3, 0]])
    trial_offsets = np.arange(18, dtype=np.int32).reshape(3, 3, 2)
    indices, offsets = select_patches(lambda patches, offsets: tf.reduce_max(patches, axis=[1, 2, 3]), bank, trial_indices, trial_offsets)
    np.testing.assert_array_equal(indices, [2, 3, 0])
    np.testing.assert_array_equal(offsets, [trial_offsets[1, 0], trial_offsets[0, 1], trial_offsets[0, 2]])


def test_select_takes_losses_of_any_type():
    """In float32 the two losses would be equal, and the first trial stay."""

    def loss_fn(patches, offsets):
        return 1 + tf.cast(offsets[:, 0], tf.float64) * 1e-12

    indices, _ = select_patches(loss_fn, np.zeros((2, 1, 1, 3), np.float32), np.array([[1], [0]]), np.array([[[0, 0]], [[1, 0]]], np.int32))
    np.testing.assert_array_equal(indices, [0])


def test_select_with_one_trial_evaluates_nothing():
    def fail(*_):
        raise AssertionError("evaluated")

    indices, offsets = select_patches(fail, np.zeros((2, 1, 1, 3), np.float32), np.array([[1, 0]]), np.ones((1, 2, 2), np.int32))
    np.testing.assert_array_equal(indices, [1, 0])
    np.testing.assert_array_equal(offsets, np.ones((2, 2)))


def test_reptile_equals_the_original_in_place_too():
    z = golden("reptile")
    updated = reptile_update(z["meta"], z["refined"], z["indices"], float(z["patch_lr"]))
    np.testing.assert_allclose(updated, z["updated"], atol=1e-6)
    np.testing.assert_array_equal(updated.numpy()[[2, 4]], z["meta"][[2, 4]])
    bank = PatchBank(z["meta"], np.zeros(6), np.zeros(6))
    bank.update(tf.constant(z["refined"]), tf.constant(z["indices"]), float(z["patch_lr"]))
    np.testing.assert_array_equal(bank.patches, updated)


def test_reptile_rate_spans_from_nothing_to_all():
    meta, refined = np.zeros((3, 1, 1, 3), np.float32), np.float32([0.2, 0.4, 0.8]).reshape(3, 1, 1, 1) * np.ones(3, np.float32)
    np.testing.assert_array_equal(reptile_update(meta, refined, [1, 1, 2], 0.0), meta)
    np.testing.assert_allclose(reptile_update(meta, refined, [1, 1, 2], 1.0)[:, 0, 0, 0], [0, 0.3, 0.8], rtol=1e-6)


def test_initial_targets_go_round_robin():
    np.testing.assert_array_equal(initial_targets(7, 3), [0, 1, 2, 0, 1, 2, 0])


def test_initial_step_sizes_and_random_patches_are_uniform():
    sizes = initial_step_sizes(4000, min_step_size=1e-4, max_step_size=0.1, seed=stream_seed(0, "sizes")).numpy()
    patches = random_patches(50, (6, 5, 3), seed=stream_seed(0, "patches")).numpy()
    assert (sizes.dtype, patches.shape) == (np.float32, (50, 6, 5, 3))
    for values, low, high in ((np.log10(sizes), -4, -1), (patches, 0, 1)):
        counts, _ = np.histogram(values, bins=6, range=(low, high))  # all of them, but for rounding
        assert abs(counts / values.size - 1 / 6).max() < 0.02
    assert (sizes.min() >= np.float32(1e-4)) & (sizes.max() <= np.float32(0.1))
    np.testing.assert_allclose(initial_step_sizes(3, min_step_size=0.01, max_step_size=0.01, seed=[0, 1]), [0.01] * 3, rtol=1e-6)


def test_resize_to_patches_equals_the_original():
    z = golden("resize")
    image = z["image_u8"][np.newaxis].astype(np.float32) / 255
    np.testing.assert_allclose(resize_to_patches(image, (24, 24, 3))[0], z["patch24"], atol=1e-4)
