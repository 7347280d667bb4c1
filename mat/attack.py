"""Attacks on a model by patches. An attack gets one closure, the loss of the patches; it knows no model, no data and no config.

Shapes: `B` images a batch, `R` universal patches fitted side by side (restarts), `T` iterations, patches `h` x `w`. All tensors are
float32 unless said otherwise; patches and colors are in [0, 1].
"""

from collections.abc import Callable

import tensorflow as tf


def i_fgsm(
    loss_fn: Callable[[tf.Tensor], tf.Tensor], patches: tf.Tensor, *, step_sizes: tf.Tensor, n_iterations: int, targeted: bool
) -> tf.Tensor:
    """I-FGSM^K: `patches <- clip(patches -/+ step_size * sign(gradient), 0, 1)`, K times (Algorithm 1 of arXiv:2101.11453).

    Args:
        loss_fn: patches [B, h, w, 3] -> losses [B], each of its own patch alone.
        patches: [B, h, w, 3].
        step_sizes: [B], in units of the pixel range.
        n_iterations: K; 0 returns the patches as they are.
        targeted: True descends, on the loss of the target class; False ascends, on the loss of the true class.

    Returns:
        The refined patches, [B, h, w, 3].
    """
    patches = tf.convert_to_tensor(patches)
    steps = (-1.0 if targeted else 1.0) * tf.cast(step_sizes, patches.dtype)

    def refine(iteration, patches):
        _, patches = _signed_step(loss_fn, patches, steps)
        return iteration + 1, patches

    _, patches = tf.while_loop(lambda iteration, _: iteration < n_iterations, refine, (0, patches), maximum_iterations=n_iterations)
    return patches


def fit_universal_patches(
    loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], patches: tf.Tensor, *, steps: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """White-box universal patch attack: I-FGSM whose images and positions change with every iteration, so that one patch fits them all.

    Args:
        loss_fn: (patches [R, h, w, 3], iteration, an int32 scalar in 0..T-1) -> losses [R]; the loss of a patch is its mean over the
            images and positions of that iteration.
        patches: [R, h, w, 3], the starts.
        steps: [T, R], the signed step of every iteration in units of the pixel range: above 0 ascends, for untargeted attacks; below 0
            descends, on the loss to a target class.

    Returns:
        The fitted patches [R, h, w, 3], and the losses before each iteration [T, R].
    """
    patches, steps = tf.convert_to_tensor(patches), tf.convert_to_tensor(steps)
    n_iterations = steps.shape[0]
    losses = tf.TensorArray(tf.float32, n_iterations, element_shape=steps.shape[1:])

    def fit(iteration, patches, losses):
        loss, patches = _signed_step(lambda patches: loss_fn(patches, iteration), patches, steps[iteration])
        return iteration + 1, patches, losses.write(iteration, loss)

    state = (0, patches, losses)
    _, patches, losses = tf.while_loop(lambda iteration, *_: iteration < n_iterations, fit, state, maximum_iterations=n_iterations)
    return patches, losses.stack()


def _signed_step(loss_fn, patches, steps):
    """The losses [B], and the patches after a step of `steps` [B] times the sign of the gradient."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(patches)
        loss = loss_fn(patches)
    gradient = tape.gradient(loss, patches)
    return loss, tf.clip_by_value(patches + tf.reshape(steps, [-1, 1, 1, 1]) * tf.sign(gradient), 0.0, 1.0)


def random_search(
    loss_fn: Callable[[tf.Tensor], tf.Tensor], patches: tf.Tensor, *, directions: tf.Tensor, squares: tf.Tensor, colors: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient-free universal patch attack: random search over square pieces, by queries of the loss alone.

    Each iteration paints one square of each patch and keeps it where the loss did not get worse for the attacker.

    Args:
        loss_fn: patches [R, h, w, 3] -> losses [R], of the same images and positions in every call.
        patches: [R, h, w, 3], the starts.
        directions: [R], 1 raises the loss, -1 lowers it.
        squares: int32 [T, R, 3], (row, column, side) of the square that each iteration tries, pixels.
        colors: [T, R, 3], its color.

    Returns:
        The patches found [R, h, w, 3], and the losses after each iteration [T, R].

    Reference:
        The piecewise proposals of Square Attack (arXiv:1912.00049), for universal patches as in Sparse-RS (arXiv:2006.12834).
    """
    patches, squares, colors = tf.convert_to_tensor(patches), tf.convert_to_tensor(squares), tf.convert_to_tensor(colors)
    n_iterations, n_restarts = squares.shape[:2]
    rows, columns = tf.range(patches.shape[1])[tf.newaxis, :, tf.newaxis], tf.range(patches.shape[2])[tf.newaxis, tf.newaxis]  # [1, h, w]
    losses = tf.TensorArray(tf.float32, n_iterations, element_shape=[n_restarts])

    def search(iteration, patches, best, losses):
        row, column, side = (squares[iteration, :, i, tf.newaxis, tf.newaxis] for i in range(3))
        inside = (rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side)  # [R, h, w]
        tried = tf.where(inside[..., tf.newaxis], colors[iteration, :, tf.newaxis, tf.newaxis], patches)
        loss = loss_fn(tried)
        keep = directions * loss >= directions * best
        best = tf.where(keep, loss, best)
        patches = tf.where(keep[:, tf.newaxis, tf.newaxis, tf.newaxis], tried, patches)
        return iteration + 1, patches, best, losses.write(iteration, best)

    state = (0, patches, loss_fn(patches), losses)
    _, patches, _, losses = tf.while_loop(lambda iteration, *_: iteration < n_iterations, search, state, maximum_iterations=n_iterations)
    return patches, losses.stack()
