"""Attacks on losses whose best patches are known in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from mat.attack import fit_universal_patches, i_fgsm, random_search
from mat.robustness.universal import UNTARGETED, UniversalAttacks, capped_cross_entropy

DIRECTION = tf.constant(np.sign(np.random.default_rng(0).normal(size=(2, 2, 3, 3))), tf.float32)


def linear_loss(patches):
    return tf.reduce_sum(patches * DIRECTION, axis=[1, 2, 3])


@pytest.mark.parametrize("targeted", [False, True])
def test_steps_follow_the_sign_of_the_gradient_within_the_pixel_range(targeted):
    patches, sign = tf.fill([2, 2, 3, 3], 0.5), -1.0 if targeted else 1.0
    refined = i_fgsm(linear_loss, patches, step_sizes=tf.constant([0.01, 0.4]), n_iterations=3, targeted=targeted)
    moved = np.array([0.03, 0.5]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(refined, 0.5 + sign * moved * DIRECTION.numpy(), atol=1e-6)


def test_zero_gradients_and_zero_iterations_move_nothing():
    patches = tf.random.stateless_uniform([2, 2, 3, 3], [0, 1])
    still = i_fgsm(lambda x: 0.0 * linear_loss(x), patches, step_sizes=tf.constant([0.1, 0.1]), n_iterations=3, targeted=True)
    np.testing.assert_array_equal(still, patches)
    np.testing.assert_array_equal(i_fgsm(linear_loss, patches, step_sizes=tf.zeros(2), n_iterations=0, targeted=True), patches)


def test_more_iterations_lower_a_targeted_loss():
    optimum, start = (tf.random.stateless_uniform([2, 2, 3, 3], [0, seed]) for seed in (2, 3))

    def loss_fn(patches):
        return tf.reduce_sum(tf.abs(patches - optimum), axis=[1, 2, 3])

    losses = [loss_fn(i_fgsm(loss_fn, start, step_sizes=tf.constant([0.01, 0.02]), n_iterations=n, targeted=True)) for n in (0, 5, 10)]
    assert np.all(np.diff(losses, axis=0) < 0)


# Universal patches.


def test_each_patch_follows_its_own_steps_and_sees_every_iteration():
    steps = np.array([[0.1, -0.01], [0.05, 0.0], [0.0, -0.02]], np.float32)
    seen = tf.constant([1.0, 2.0, 4.0])

    def loss_fn(patches, iteration):
        return seen[iteration] * linear_loss(patches)

    start = tf.fill([2, 2, 3, 3], 0.5)
    patches, losses = fit_universal_patches(loss_fn, start, steps=steps)
    np.testing.assert_allclose(patches, 0.5 + steps.sum(axis=0).reshape(2, 1, 1, 1) * DIRECTION.numpy(), atol=1e-6)
    np.testing.assert_allclose(losses[0], linear_loss(start), rtol=1e-6)
    moved = 0.5 + steps[:2].sum(axis=0).reshape(2, 1, 1, 1) * DIRECTION.numpy()
    np.testing.assert_allclose(losses[2], 4 * linear_loss(moved), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_on_a_linear_model_the_universal_patch_is_the_analytic_optimum(jit_compile):
    """Two classes, all images of class 0, a patch as large as the image: each pixel goes to 0 or 1, as the sign of its weight says."""
    weights = np.random.default_rng(3).normal(scale=0.1, size=(8 * 8 * 3, 2)).astype(np.float32) * [0, 1]

    def model(images, training):
        return tf.reshape(images, [-1, 8 * 8 * 3]) @ tf.constant(weights, tf.float32)

    rng = np.random.default_rng(4)
    attacks = UniversalAttacks(model, rng.random((20, 8, 8, 3), np.float32), np.zeros(20, int), jit_compile=jit_compile)
    optimum = (weights[:, 1] > 0).reshape(8, 8, 3)
    starts = rng.random((3, 8, 8, 3), np.float32)
    indices, offsets = rng.integers(0, 20, (15, 3, 4), np.int32), np.zeros((15, 3, 4, 2), np.int32)
    targets = np.array([UNTARGETED, 1, 0])  # away from class 0 and to class 1 are the same; to class 0 is the opposite
    patches, losses = attacks.fit(starts, targets, np.full((15, 3), 0.11, np.float32), indices, offsets)
    for patch, expected in zip(patches, [optimum, optimum, ~optimum], strict=True):
        np.testing.assert_array_equal(patch, expected)
    assert losses[-1][0] > losses[0][0]
    assert losses[-1][1] < losses[0][1]


def test_random_search_keeps_what_helps_and_reaches_the_optimum_of_single_pixels():
    rng = np.random.default_rng(0)
    n_iterations, directions = 1500, np.array([1.0, -1.0], np.float32)
    positions = rng.integers(0, [2, 3], size=(n_iterations, 2, 2))
    squares = np.concatenate([positions, np.ones((n_iterations, 2, 1), int)], axis=-1).astype(np.int32)
    colors = rng.integers(0, 2, (n_iterations, 2, 3)).astype(np.float32)
    start = tf.fill([2, 2, 3, 3], 0.5)
    patches, losses = random_search(linear_loss, start, directions=directions, squares=squares, colors=colors)
    optimum = directions.reshape(2, 1, 1, 1) * DIRECTION.numpy() > 0
    np.testing.assert_array_equal(patches, optimum)
    assert np.all(np.diff(losses, axis=0) * directions >= 0)
    np.testing.assert_allclose(losses[-1], linear_loss(tf.cast(optimum, tf.float32)), rtol=1e-6)


def test_random_search_paints_nothing_but_its_square():
    squares, colors = np.array([[[1, 0, 2], [0, 1, 0]]], np.int32), np.ones((1, 2, 3), np.float32)
    start = np.zeros((2, 4, 4, 3), np.float32)
    patches, _ = random_search(lambda x: tf.reduce_sum(x, axis=[1, 2, 3]), start, directions=np.ones(2), squares=squares, colors=colors)
    expected = start.copy()
    expected[0, 1:3, 0:2] = 1
    np.testing.assert_array_equal(patches, expected)


def test_misclassified_images_weigh_little_in_untargeted_losses():
    losses = tf.constant([0.0, 1.0, np.log(4), np.log(4) + 10])
    np.testing.assert_allclose(capped_cross_entropy(losses, 4), [0, 1, np.log(4), np.log(4) + 0.1], rtol=1e-6)


def test_predictions_and_gradients_are_of_each_image():
    def model(images, training):
        """Class 1 where the image is bright; a bright image saturates, so that its gradient vanishes."""
        bright = tf.reduce_mean(images, axis=[1, 2, 3])
        return tf.stack([tf.zeros_like(bright), tf.where(bright > 0.5, 100.0 * tf.ones_like(bright), bright - 0.5)], axis=1)

    images = np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1, 1, 1) * np.ones((7, 8, 8, 3), np.float32)
    attacks = UniversalAttacks(model, images, np.zeros(7, int), jit_compile=False)
    patch, offsets = np.full((2, 2, 3), 0.5, np.float32), np.zeros((7, 2), np.int32)
    for images_at_once in (3, 7, 100):
        predictions = attacks.predict(patch, images, offsets, images_at_once=images_at_once)
        np.testing.assert_array_equal(predictions, [0, 0, 0, 0, 1, 1, 1])
        gradients = attacks.patch_gradients(patch, images, np.ones(7, int), offsets, images_at_once=images_at_once)
        np.testing.assert_array_equal(gradients == 0, [False, False, False, False, True, True, True])
        brightness = (images.mean(axis=(1, 2, 3)) * 60 + 0.5 * 4) / 64  # under the patch
        expected = (1 - 1 / (1 + np.exp(0.5 - brightness))) * 4 / 64  # the patch's share of the mean, times the loss's slope
        np.testing.assert_allclose(gradients[:4], expected[:4], rtol=1e-5)
        np.testing.assert_array_equal(attacks.predict_clean(images, images_at_once=images_at_once), [0, 0, 0, 0, 1, 1, 1])
