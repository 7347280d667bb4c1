"""I-FGSM on losses whose refined patches are known in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from mat.attack import i_fgsm

DIRECTION = tf.constant(np.sign(np.random.default_rng(0).normal(size=(2, 2, 3, 3))), tf.float32)


def linear_loss(patches):
    return tf.reduce_sum(patches * DIRECTION, axis=[1, 2, 3])


@pytest.mark.parametrize(("targeted", "sign"), [(False, 1.0), (True, -1.0)])
def test_steps_follow_the_sign_of_the_gradient(targeted, sign):
    patches = tf.fill([2, 2, 3, 3], 0.5)
    refined = i_fgsm(linear_loss, patches, step_sizes=tf.constant([0.01, 0.1]), n_iterations=3, targeted=targeted)
    moved = np.array([0.03, 0.3]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(refined, 0.5 + sign * moved * DIRECTION.numpy(), atol=1e-6)


def test_patches_stay_in_the_pixel_range():
    refined = i_fgsm(linear_loss, tf.fill([2, 2, 3, 3], 0.5), step_sizes=tf.constant([0.4, 0.4]), n_iterations=5, targeted=False)
    np.testing.assert_array_equal(refined, DIRECTION.numpy() > 0)


def test_zero_gradients_and_zero_iterations_move_nothing():
    patches = tf.random.stateless_uniform([2, 2, 3, 3], [0, 1])
    still = i_fgsm(lambda x: 0.0 * linear_loss(x), patches, step_sizes=tf.constant([0.1, 0.1]), n_iterations=3, targeted=True)
    np.testing.assert_array_equal(still, patches)
    np.testing.assert_array_equal(i_fgsm(linear_loss, patches, step_sizes=tf.zeros(2), n_iterations=0, targeted=True), patches)


def test_more_iterations_lower_a_targeted_loss():
    optimum = tf.random.stateless_uniform([2, 2, 3, 3], [0, 2])

    def loss_fn(patches):
        return tf.reduce_sum(tf.abs(patches - optimum), axis=[1, 2, 3])

    start = tf.random.stateless_uniform([2, 2, 3, 3], [0, 3])
    losses = [
        loss_fn(i_fgsm(loss_fn, start, step_sizes=tf.constant([0.01, 0.02]), n_iterations=n, targeted=True)).numpy() for n in (0, 5, 10)
    ]
    assert np.all(np.diff(losses, axis=0) < 0)
