"""The compiled training step: Algorithm 1 of arXiv:2101.11453 for one batch.

Shapes: `B` images a batch, `F` trials an image, `P` meta-patches, images `H` x `W`, patches `h` x `w`. Tensors are float32 unless
said otherwise; labels [B, n_classes] are one-hot or smoothed.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from mat.attack import i_fgsm
from mat.distribution.replicas import (
    add_to_copy,
    assign_copy,
    at_own_place,
    mean_over_replicas,
    n_replicas,
    own_share,
    replica_number,
    sum_over_replicas,
)
from mat.distribution.strategy import next_batch, run_everywhere
from mat.models.kernels import convolution_kernels, dense_gradients, regularization
from mat.models.prepared import prepared_once
from mat.models.twin import Twin
from mat.patch import PatchBank, apply_patches, draw_trials, select_patches
from mat.seeds import fold_in, stream_seed


class TrainingStep(tf.Module):
    """SELECT, I-FGSM, REPTILE and OPT in one call, `train_on_batch(images, labels)`, with the state that they change.

    Args:
        model: images [B, H, W, 3] -> logits [B, n_classes].
        bank: the `PatchBank`, or None for plain training without patches.
        n_trials: F.
        n_iterations: K.
        targeted: whether I-FGSM drives each image to its patch's target class.
        patch_lr: sigma of the Reptile update.
        weight_decay: factor of the sum of squared convolution kernels in the loss (no factor one half).
        seed: the config's, of the trials.
        jit_compile: compile with XLA: the work on a replica's images, and the updates.
        batch_size: images of a batch, of all replicas together; None where their shares fill it evenly.
        twin: the model in the precision of SELECT and I-FGSM, which need only an order and signs; None for the model itself.

    The step runs on all replicas of the strategy in whose scope it is made (`mat.distribution`), one on a single device. The state is
    `model`, `bank`, `optimizer` (its `learning_rate` is for the caller to set), `step` (the next step's number), `failed_step` (of the
    first step that was not finite, else -1), and the sums over the steps since `reset_metrics`.
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
        batch_size: int | None = None,
        twin: Twin | None = None,
    ) -> None:
        super().__init__(name="training_step")
        self.strategy = tf.distribute.get_strategy()
        self.model = model
        self.bank: Any = bank
        self.n_trials = n_trials
        self.n_iterations = n_iterations
        self.targeted = targeted
        self.patch_lr = patch_lr
        self.weight_decay = weight_decay
        self.jit_compile = jit_compile
        self.batch_size = batch_size
        self.twin = twin
        self.trial_seed = stream_seed(seed, "trials")
        self.optimizer = Momentum(model.trainable_variables)
        self.decayed_kernels = convolution_kernels(model)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.failed_step = tf.Variable(-1, dtype=tf.int64, trainable=False, name="failed_step")
        self.n_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="n_steps")
        self.loss_sum = tf.Variable(0.0, trainable=False, name="loss_sum")
        self.accuracy_sum = tf.Variable(0.0, trainable=False, name="accuracy_sum")
        self._compiled_compute = tf.function(self._compute, jit_compile=jit_compile, autograph=False)
        self._compiled_commit = tf.function(self._commit, jit_compile=jit_compile, autograph=False)
        self.train_on_batch = tf.function(self._train_on_batch, autograph=False)
        self._train_in_one_call = tf.function(self._train_on_batches, autograph=False)

    def train_on_batches(self, shares: Iterator[Any], n_steps: int) -> tuple[Any, Any]:
        """Steps on the next batches in one call; returns their losses and accuracies, `n_steps` scalars each.

        `shares` is an iterator of a data set that gives each replica of this worker its share of a batch, one after the other.
        """
        if n_steps == 1:
            loss, accuracy = self.train_on_batch(*next_batch(self.strategy, shares))
            return [loss], [accuracy]
        return self._train_in_one_call(shares, tf.constant(n_steps))

    def _train_on_batches(self, shares, n_steps):
        """As `train_on_batches`; the number of steps is a tensor, so that an epoch's last call needs no function of its own."""
        results = tuple(tf.TensorArray(tf.float32, n_steps, element_shape=[]) for _ in range(2))

        def train(i, results):
            loss, accuracy = self._train_on_batch(*next_batch(self.strategy, shares))
            return i + 1, (results[0].write(i, loss), results[1].write(i, accuracy))

        _, results = tf.while_loop(lambda i, _: i < n_steps, train, (0, results), parallel_iterations=1)
        return results[0].stack(), results[1].stack()

    def _train_on_batch(self, images, labels):
        """One step on images [B, H, W, 3] and their labels; returns the batch's mean loss and its accuracy in [0, 1], scalars.

        A step whose loss or gradients are not finite changes no weights and no patches, nor does any later one: `failed_step` is
        its number, -1 before.
        """
        return run_everywhere(self.strategy, self._train_on_replica, images, labels)

    def _train_on_replica(self, images, labels):
        """A replica's part of the step: its share of the sums, and then, by the sums over all replicas, the same updates as the others."""
        *sums, attacked, statistics = self._compiled_compute(images, labels)
        attacked = [at_own_place(tf.cast(share, tf.float32)) for share in attacked]  # indices too: one type is one collective
        (loss, accuracy, gradients), attacked = sum_over_replicas((sums, attacked))
        attacked = [whole[: self._batch_size(images)] for whole in attacked]  # without what fills up the last shares
        if means := {i: value for i, value in statistics.items() if value.dtype.is_floating}:  # else counters, the same on all replicas
            statistics |= mean_over_replicas(means)
        return self._compiled_commit(loss, accuracy, gradients, attacked, statistics)

    def _batch_size(self, images):
        """B, by the images of a share."""
        return self.batch_size or images.shape[0] * n_replicas()

    def _compute(self, images, labels):
        """SELECT, I-FGSM and the first half of OPT on a replica's share of a batch, which needs nothing of other replicas.

        Returns:
            The share's part of the batch's mean loss and accuracy, and of the gradients; refined patches [share, h, w, 3] and their
            indices [share], nothing in plain training; new values of the model's non-trainable variables, by their numbers.
        """
        batch_size, share = self._batch_size(images), images.shape[0]
        counted = replica_number() * share + tf.range(share) < batch_size  # the others fill up the last shares
        attacked = ()
        with tf.GradientTape() as tape, prepared_once(self.model, xla=self.jit_compile):
            if self.bank is not None:
                with tape.stop_recording(), prepared_once(self.twin, xla=self.jit_compile):
                    images, *attacked, _ = self.attack(images, labels)
            with keras.StatelessScope() as scope:  # new statistics of batch normalization are results, like the gradients
                logits = self.model(images, training=True)
            loss = tf.reduce_sum(tf.where(counted, cross_entropy(labels, logits), 0.0)) / batch_size
            loss += regularization(self.model) / n_replicas()
        accuracy = tf.reduce_sum(tf.cast(counted & is_correct(labels, logits), tf.float32)) / batch_size
        gradients = dense_gradients(tape, loss, self.model.trainable_variables)
        values = [scope.get_current_value(variable) for variable in self.model.non_trainable_variables]
        return loss, accuracy, gradients, attacked, {i: value for i, value in enumerate(values) if value is not None}

    @property
    def attacked_model(self) -> keras.Model | Twin:
        """What SELECT and I-FGSM run on."""
        return self.twin or self.model

    def attack(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draw this step's trials, then SELECT and I-FGSM.

        Returns:
            Images with their refined patches [B, H, W, 3], the patches [B, h, w, 3], and their indices int64 [B] and offsets int32 [B, 2].
        """
        trial_indices, trial_offsets = self.draw_trials(images.shape[0], images.shape[1:3])
        indices, offsets = self.select(images, labels, trial_indices, trial_offsets)
        refined = self.refine(images, labels, indices, offsets)
        return apply_patches(images, refined, offsets), refined, indices, offsets

    def draw_trials(self, share: int, image_shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
        """The trials of the step at hand for a replica's share of the batch, of images of `image_shape` = (H, W).

        They are drawn for the whole batch, see `mat.patch.draw_trials`, so that an image's trials do not depend on who gets it.
        """
        total = share * n_replicas()
        batch_size = self.batch_size or total
        indices, offsets = draw_trials(
            fold_in(self.trial_seed, self.step),
            n_trials=self.n_trials,
            batch_size=batch_size,
            n_patches=self.bank.patches.shape[0],
            image_shape=image_shape,
            patch_shape=self.bank.patches.shape[1:3],
        )
        filling = [[0, 0], [0, total - batch_size]]  # of shares that are not whole
        return own_share(tf.pad(indices, filling), axis=1), own_share(tf.pad(offsets, [*filling, [0, 0]]), axis=1)

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
        return cross_entropy(labels, self.attacked_model(apply_patches(images, patches, offsets), training=False))

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

    def _commit(self, loss, accuracy, gradients, attacked, statistics):
        """REPTILE and the second half of OPT, the SGD step, unless this step or an earlier one was not finite.

        Every replica does this to its own copies of the variables, by arguments that are the same on all of them. Returns the batch's
        mean loss with its L2 term, and its accuracy.
        """
        loss, gradients = self._with_weight_decay(loss, gradients)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(tf.linalg.global_norm(gradients))
        failed_step = tf.where(finite | (self.failed_step >= 0), self.failed_step, self.step)
        assign_copy(self.failed_step, failed_step)

        def update():
            if self.bank is not None:
                refined, indices = attacked
                self.bank.update(refined, tf.cast(indices, tf.int64), self.patch_lr)
            self.optimizer.apply(gradients)
            for i, value in statistics.items():
                assign_copy(self.model.non_trainable_variables[i].value, value)
            for variable, value in ((self.step, 1), (self.n_steps, 1), (self.loss_sum, loss), (self.accuracy_sum, accuracy)):
                add_to_copy(variable, value)
            return True

        tf.cond(failed_step < 0, update, lambda: False)
        return loss, accuracy

    def metrics(self) -> tuple[float, float]:
        """Mean (loss, accuracy) over the steps since `reset_metrics`; NaN before the first."""
        n_steps = int(self.n_steps.numpy()) or float("nan")
        return float(self.loss_sum.numpy()) / n_steps, float(self.accuracy_sum.numpy()) / n_steps

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
