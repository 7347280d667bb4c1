"""The compiled training step: Algorithm 1 of arXiv:2101.11453 for one batch.

Shapes: `B` images a batch, `F` trials an image, `P` meta-patches, images `H` x `W`, patches `h` x `w`. Tensors are float32 unless
said otherwise; labels [B, n_classes] are one-hot or smoothed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mat.attack import i_fgsm
from mat.models.kernels import add_regularizers, convolution_kernels, dense_gradients
from mat.models.prepared import prepared_once
from mat.patch import PatchBank, apply_patches, draw_trials, select_patches
from mat.seeds import fold_in, stream_seed


class TrainingStep(tf.Module):
    """SELECT, I-FGSM, REPTILE and OPT in one `tf.function`, `train_on_batch(images, labels)`, with the state that they change.

    Args:
        model: images [B, H, W, 3] -> logits [B, n_classes].
        bank: the `PatchBank`, or None for plain training without patches.
        n_trials: F.
        n_iterations: K.
        targeted: whether I-FGSM drives each image to its patch's target class.
        patch_lr: sigma of the Reptile update.
        weight_decay: factor of the sum of squared convolution kernels in the loss (no factor one half).
        seed: the config's, of the trials.
        jit_compile: compile with XLA, as a whole.

    The state is `model`, `bank`, `optimizer` (its `learning_rate` is for the caller to set), `step` (the next step's number),
    `failed_step` (of the first step that was not finite, else -1), and the sums over the steps since `reset_metrics`.
    """

    def __init__(
        self,
        model: keras.Model,
        bank: PatchBank | None,
        *,
        n_trials: int,
        n_iterations: int,
        targeted: bool,
        patch_lr: float,
        weight_decay: float,
        seed: int,
        jit_compile: bool,
    ) -> None:
        super().__init__(name="training_step")
        self.model = model
        self.bank: Any = bank
        self.n_trials = n_trials
        self.n_iterations = n_iterations
        self.targeted = targeted
        self.patch_lr = patch_lr
        self.weight_decay = weight_decay
        self.jit_compile = jit_compile
        self.trial_seed = stream_seed(seed, "trials")
        self.optimizer = Momentum(model.trainable_variables)
        self.decayed_kernels = convolution_kernels(model)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.failed_step = tf.Variable(-1, dtype=tf.int64, trainable=False, name="failed_step")
        self.n_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="n_steps")
        self.loss_sum = tf.Variable(0.0, trainable=False, name="loss_sum")
        self.accuracy_sum = tf.Variable(0.0, trainable=False, name="accuracy_sum")
        self.train_on_batch = tf.function(self._train_on_batch, jit_compile=jit_compile, autograph=False)

    def _train_on_batch(self, images, labels):
        """One step on images [B, H, W, 3] and their labels; returns the batch's mean loss and its accuracy in [0, 1], scalars.

        A step whose loss or gradients are not finite changes no weights and no patches, nor does any later one: `failed_step` is
        its number, -1 before.
        """
        statistics = [tf.identity(variable) for variable in self.model.non_trainable_variables]  # of batch normalization
        refined = indices = None
        with tf.GradientTape() as tape, prepared_once(self.model, xla=self.jit_compile):
            if self.bank is not None:
                with tape.stop_recording():
                    images, refined, indices, _ = self.attack(images, labels)
            logits = self.model(images, training=True)
            loss, accuracy = tf.reduce_mean(cross_entropy(labels, logits)), tf.reduce_mean(tf.cast(is_correct(labels, logits), tf.float32))
            loss = add_regularizers(loss, self.model)
        loss, gradients = self._with_weight_decay(loss, dense_gradients(tape, loss, self.model.trainable_variables))
        self._commit(loss, accuracy, gradients, statistics, refined, indices)
        return loss, accuracy

    def attack(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draw this step's trials, then SELECT and I-FGSM.

        Returns:
            Images with their refined patches [B, H, W, 3], the patches [B, h, w, 3], and their indices int64 [B] and offsets int32 [B, 2].
        """
        trial_indices, trial_offsets = self.draw_trials(images.shape[0], images.shape[1:3])
        indices, offsets = self.select(images, labels, trial_indices, trial_offsets)
        refined = self.refine(images, labels, indices, offsets)
        return apply_patches(images, refined, offsets), refined, indices, offsets

    def draw_trials(self, batch_size: int, image_shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
        """The trials of the step at hand for a batch of images of `image_shape` = (H, W); see `mat.patch.draw_trials`."""
        return draw_trials(
            fold_in(self.trial_seed, self.step),
            n_trials=self.n_trials,
            batch_size=batch_size,
            n_patches=self.bank.patches.shape[0],
            image_shape=image_shape,
            patch_shape=self.bank.patches.shape[1:3],
        )

    def select(
        self, images: tf.Tensor, labels: tf.Tensor, trial_indices: tf.Tensor, trial_offsets: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """SELECT: the trial of the largest loss of the true label, also for targeted attacks. Returns indices [B], offsets [B, 2]."""
        loss_fn = functools.partial(self._patched_loss, images, labels)
        return select_patches(loss_fn, self.bank.patches, trial_indices, trial_offsets)

    def refine(self, images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        """I-FGSM: the selected patches, refined on their images at their fixed offsets, [B, h, w, 3]."""
        if self.targeted:  # targets are never smoothed
            labels = tf.one_hot(tf.gather(self.bank.targets, indices), labels.shape[-1])
        patches, step_sizes = (tf.gather(values, indices) for values in (self.bank.patches, self.bank.step_sizes))
        loss_fn = functools.partial(self._patched_loss, images, labels, offsets=offsets)
        return i_fgsm(loss_fn, patches, step_sizes=step_sizes, n_iterations=self.n_iterations, targeted=self.targeted)

    def _patched_loss(self, images, labels, patches, offsets):
        """The loss [B] of each image with its patch, the model in inference mode."""
        return cross_entropy(labels, self.model(apply_patches(images, patches, offsets), training=False))

    def _with_weight_decay(self, loss, gradients):
        """The loss and its gradients (in the order of `model.trainable_variables`) with those of the L2 term added."""
        if not self.decayed_kernels:
            return loss, gradients
        decayed = {id(kernel) for kernel in self.decayed_kernels}
        # tf.nn.l2_loss is half of the sum of squares, in one pass.
        loss += 2 * self.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in self.decayed_kernels])
        return loss, [
            gradient + 2 * self.weight_decay * variable if id(variable) in decayed else gradient
            for gradient, variable in zip(gradients, self.model.trainable_variables, strict=True)
        ]

    def _commit(self, loss, accuracy, gradients, statistics, refined, indices):
        """REPTILE and the second half of OPT, the SGD step, unless this step or an earlier one was not finite.

        In that case the model's non-trainable variables go back to `statistics`, their values before the step.
        """
        finite = tf.math.is_finite(loss) & tf.math.is_finite(tf.linalg.global_norm(gradients))
        self.failed_step.assign(tf.where(finite | (self.failed_step >= 0), self.failed_step, self.step))

        def update():
            if self.bank is not None:
                self.bank.update(refined, indices, self.patch_lr)
            self.optimizer.apply(gradients)
            self.step.assign_add(1)
            self.n_steps.assign_add(1)
            self.loss_sum.assign_add(loss)
            self.accuracy_sum.assign_add(accuracy)
            return True

        def restore():
            for variable, value in zip(self.model.non_trainable_variables, statistics, strict=True):
                variable.assign(value)
            return False

        tf.cond(self.failed_step < 0, update, restore)

    def metrics(self) -> tuple[float, float]:
        """Mean (loss, accuracy) over the steps since `reset_metrics`; NaN before the first."""
        n_steps = int(self.n_steps) or float("nan")
        return float(self.loss_sum) / n_steps, float(self.accuracy_sum) / n_steps

    def reset_metrics(self) -> None:
        """Start the means of `metrics` afresh."""
        for variable in (self.n_steps, self.loss_sum, self.accuracy_sum):
            variable.assign(tf.zeros_like(variable))


class Momentum(tf.Module):
    """SGD with momentum 0.9: `v <- 0.9 v - learning_rate g; w <- w + v`, in one operation for each weight.

    `learning_rate` is for the caller to set.
    """

    def __init__(self, variables: list[keras.Variable]) -> None:
        super().__init__(name="momentum")
        self.learning_rate = tf.Variable(0.0, trainable=False, name="learning_rate")
        self.velocities = [tf.Variable(tf.zeros(v.shape), trainable=False, name="velocity") for v in variables]
        self._weights = variables

    def apply(self, gradients: list[tf.Tensor]) -> None:
        """One step along gradients in the order of the variables."""
        for variable, velocity, gradient in zip(self._weights, self.velocities, gradients, strict=True):
            weight, accum = variable.value.handle, velocity.handle
            tf.raw_ops.ResourceApplyKerasMomentum(var=weight, accum=accum, lr=self.learning_rate, grad=gradient, momentum=0.9)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy [B] of logits [B, n_classes] against label distributions of the same shape."""
    return tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Whether the largest logit is that of the true class, bool [B]."""
    return tf.argmax(logits, axis=-1) == tf.argmax(labels, axis=-1)
