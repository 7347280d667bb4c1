"""Attacks on a model by patches. An attack gets one closure, the loss of the patches; it knows no model, data or config."""

import tensorflow as tf


def i_fgsm(loss_fn, patches, *, step_sizes, n_iterations, targeted):
    """I-FGSM^K: `patches <- clip(patches -/+ step_size * sign(gradient), 0, 1)`, K times (Algorithm 1 of arXiv:2101.11453).

    Args:
        loss_fn: patches [B, h, w, 3] -> losses [B], each of its own patch alone.
        patches: float32 [B, h, w, 3] in [0, 1].
        step_sizes: float32 [B], in units of the pixel range.
        n_iterations: K; 0 returns the patches as they are.
        targeted: True descends, on the loss of the target class; False ascends, on the loss of the true class.

    Returns:
        The refined patches, float32 [B, h, w, 3] in [0, 1].
    """
    patches = tf.convert_to_tensor(patches)
    direction = -1.0 if targeted else 1.0
    steps = direction * tf.reshape(tf.cast(step_sizes, patches.dtype), [-1, 1, 1, 1])

    def refine(iteration, patches):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(patches)
            loss = loss_fn(patches)
        gradient = tape.gradient(loss, patches)
        return iteration + 1, tf.clip_by_value(patches + steps * tf.sign(gradient), 0.0, 1.0)

    _, patches = tf.while_loop(lambda iteration, _: iteration < n_iterations, refine, (0, patches), maximum_iterations=n_iterations)
    return patches
