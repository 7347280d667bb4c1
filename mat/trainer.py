"""The training loop: what a run is made of, its epochs, validation and stopping."""

import dataclasses
import math
import time

import tensorflow as tf

from mat import __version__
from mat.data.splits import read_splits
from mat.data.tiny_imagenet import initial_images, train_dataset, validation_dataset
from mat.devices import bfloat16_is_fast, device_name, use_xla
from mat.errors import NonFiniteLossError, StoppedError, UserError
from mat.evaluator import evaluate
from mat.models import create_model, load_weights
from mat.models.prepared import compile_with
from mat.models.weights import git_blob
from mat.patch import PatchBank, initial_step_sizes, initial_targets, random_patches, resize_to_patches
from mat.report_directory import beside, read_report
from mat.results import CONFIG, LOG, PATCHES, PATCHES_PICTURE, ResultDirectory
from mat.seeds import stream_seed
from mat.signals import noted_signals, raised_signals
from mat.step import TrainingStep, is_correct
from mat.terminal import TrainingProgress, console, duration, interval_text, print_facts


class Trainer:
    """A training run: `Trainer(config).fit()`.

    The constructor finds, reads and checks all that the run needs and writes nothing, but for the demo's data set where it is missing.

    Args:
        config: a `PatchTrainingConfig`.
        resume: continue after the last complete epoch of the run in the result directory, or start afresh where there is none.

    Raises:
        UserError: the data, the weights or the result directory cannot be used, or do not fit the config.
    """

    def __init__(self, config, *, resume=False):
        self.config = config
        self.report = None
        self.results = ResultDirectory(config, resume=resume)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.model = create_model(config)
        if config.initial_weights is not None:
            load_weights(self.model, config.initial_weights)
        self.train_records, self.validation_records = read_splits(config.dataset, config.data_dir, n_classes=config.n_classes)
        self.validation_batches = validation_dataset(
            self.validation_records, batch_size=config.batch_size, n_classes=config.n_classes, image_size=config.image_size, cached=True
        )
        self.steps_per_epoch = len(self.train_records.labels) // config.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.train_records.path}: {len(self.train_records.labels)} training images do not fill one batch of batch_size: "
                f"{config.batch_size}. Set a smaller batch_size"
            )
        self.jit_compile = use_xla(config.jit_compile)
        self.bank = sample_patches(config, self.train_records) if config.n_patches else None
        self.step = create_step(config, self.model, self.bank)
        self._count_correct = compile_with(self.model, self._count_correct_in_batch, jit_compile=self.jit_compile)
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")  # the next epoch to train
        self.state = tf.train.Checkpoint(step=self.step, epoch=self.epoch)
        if resume:
            self._restore()

    def _restore(self):
        """Take over the state of the newest checkpoint in the result directory."""
        if self.results.checkpoint is None:
            console.print(f"{self.results.path}: no checkpoint to resume from; starting afresh")
            return
        try:
            status = self.state.restore(self.results.checkpoint)
            status.expect_partial()  # what does not fit is told below, not in warnings at the end
            status.assert_consumed()
        except (AssertionError, ValueError):  # other variables, or of other shapes
            raise UserError(
                f"{self.results.checkpoint}: was written by another version of this program. Start afresh under another unique_name, or go "
                "on from its weights with initial_weights"
            ) from None
        console.print(f"{self.results.path}: resuming after epoch {int(self.epoch)} of {self.config.n_epochs}")

    def fit(self):
        """Train, validate and save for the epochs that are left, then evaluate robustness as `robust_evaluation` says.

        The report of the evaluation is `self.report` afterwards, None without one.

        Returns:
            Clean validation accuracy after each of these epochs, a list of floats in [0, 1].

        Raises:
            NonFiniteLossError: the loss or a gradient became NaN or infinite; weights and patches stay those of the step before.
            StoppedError: SIGINT or SIGTERM came; the step in hand was completed.
            UserError: the result directory cannot be written.
        """
        first_epoch, accuracies = int(self.epoch), []
        started = time.monotonic()
        try:
            if first_epoch < self.config.n_epochs:
                self._print_plan()
                accuracies = self._train(first_epoch)
            else:
                console.print(f"{self.results.path}: this run is finished; nothing is left to train")
            seconds = time.monotonic() - started
            self._evaluate()
        except OSError as error:
            raise UserError(f"{error.filename or self.results.path}: cannot be written: {error.strerror or error}") from None
        if accuracies:
            self._print_summary(accuracies, seconds)
        return accuracies

    def _train(self, first_epoch):
        """Train from an epoch on; returns the clean validation accuracy after each."""
        accuracies = []
        self.results.create(self.state)
        self.results.restart_log(first_epoch)
        progress = TrainingProgress(
            n_epochs=self.config.n_epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.batch_size,
            first_epoch=first_epoch,
        )
        with noted_signals() as stop, progress:
            for epoch in range(first_epoch, self.config.n_epochs):
                self._train_epoch(epoch, progress, stop)
                accuracies.append(self._finish_epoch(epoch, progress))
        return accuracies

    def _evaluate(self):
        """Measure the robust accuracy of the trained model and log it, if that is wanted and not yet done."""
        config, last_epoch = self.config, self.config.n_epochs - 1
        if config.robust_evaluation == "none":
            return
        quick = config.robust_evaluation == "quick"
        if quick:
            config = dataclasses.replace(config, evaluation=config.evaluation.quick())
        weights = self.results.weights_path(last_epoch)
        if not weights.exists():
            self.results.save_weights(self.model, last_epoch)
        directory = beside(weights, quick=quick)
        self.report = read_report(directory, git_blob(weights))
        if self.report is None:
            with raised_signals(f"Stopped in the evaluation of robustness; the training is saved. {self._continue_with()}"):
                self.report = evaluate(
                    config,
                    self.model,
                    (self.train_records, self.validation_records),
                    directory,
                    weights=weights,
                    bank=self.results.path / PATCHES if self.bank is not None and "bank" in config.evaluation.starts else None,
                    resume=True,
                )
        self.results.log_robust_accuracy(last_epoch, self.report["headline"]["robust"]["accuracy"])

    def _train_epoch(self, epoch, progress, stop):
        """One pass over the training images."""
        config = self.config
        self.step.optimizer.learning_rate.assign(learning_rate(epoch, n_epochs=config.n_epochs, initial_lr=config.initial_lr))
        self.step.reset_metrics()
        batches = train_dataset(
            self.train_records,
            batch_size=config.batch_size,
            n_classes=config.n_classes,
            image_size=config.image_size,
            label_smoothing=config.label_smoothing,
            seed=config.seed,
            epoch=epoch,
        )
        for done, (images, labels) in enumerate(batches, start=epoch * self.steps_per_epoch + 1):
            self.step.train_on_batch(images, labels)
            if progress.due(done):
                self._check_finite()
                progress.update(done, *self.step.metrics())
            if stop.received:
                raise StoppedError(self._stopped_message(epoch, done - epoch * self.steps_per_epoch), stop.received)
        self._check_finite()

    def _finish_epoch(self, epoch, progress):
        """Validate, log and save; returns the clean validation accuracy."""
        loss, accuracy = self.step.metrics()
        validation_accuracy = self.validate()
        self.results.save_weights(self.model, epoch)
        if self.bank is not None:
            self.results.save_patches(self.bank, epoch)
        self.results.log_epoch(
            epoch,
            loss=loss,
            accuracy=accuracy,
            validation_accuracy=validation_accuracy,
            learning_rate=float(self.step.optimizer.learning_rate),
            images_per_second=progress.images_per_second,
        )
        self.epoch.assign(epoch + 1)
        self.results.save_checkpoint(epoch)
        progress.end_epoch(epoch, loss=loss, accuracy=accuracy, validation_accuracy=validation_accuracy)
        return validation_accuracy

    def validate(self):
        """Clean accuracy on all validation images, a float in [0, 1]."""
        batch_size = self.config.batch_size
        n_correct = sum(int(self._count_correct(*_padded(images, labels, batch_size))) for images, labels in self.validation_batches)
        return n_correct / len(self.validation_records.labels)

    def _count_correct_in_batch(self, images, labels, n_images):
        """How many of the first `n_images` images of a batch are classified correctly."""
        correct = is_correct(labels, self.model(images, training=False))
        return tf.math.count_nonzero(correct & (tf.range(images.shape[0]) < n_images))

    def _check_finite(self):
        """Stop the run if a step was not finite."""
        step = int(self.step.failed_step)
        if step < 0:
            return
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        config = self.config
        raise NonFiniteLossError(
            f"the loss or its gradient became NaN or infinite at step {step + 1} (epoch {epoch + 1}, step {step_in_epoch + 1}), which was "
            f"not made. Try a lower initial_lr (now {config.initial_lr}), a larger batch_size (now {config.batch_size}), "
            f"normalization: strip (now {config.normalization}) or precision: float32 (now {config.precision})"
        )

    def _stopped_message(self, epoch, step):
        """Where a run stopped and how it goes on."""
        done = f"epoch {epoch} is saved" if epoch else "no epoch was complete"
        return f"Stopped after epoch {epoch + 1}, step {step} of {self.steps_per_epoch}; {done}. {self._continue_with()}"

    def _continue_with(self):
        return f"Continue with: python mat/train.py {self.results.path / CONFIG} --resume"

    def _print_plan(self):
        """What the run will do."""
        config, optimizer = self.config, self.config.optimizer
        n_train, n_validation = len(self.train_records.labels), len(self.validation_records.labels)
        n_epochs = config.n_epochs - int(self.epoch)
        n_steps = n_epochs * self.steps_per_epoch
        height, width, _ = config.patch_shape
        targeted = "targeted" if optimizer.targeted_attack else "untargeted"
        patches = (
            f"{config.n_patches:,} of {height}x{width}, started from {config.patch_initialization}; "
            f"{config.n_patch_trials} trials and {optimizer.n_iterations} {targeted} I-FGSM iterations a step"
        )
        plan = {
            "device": device_name(),
            "data": f"{config.data_dir}: {n_train:,} training and {n_validation:,} validation images "
            f"of {config.image_size}x{config.image_size}, {config.n_classes} classes",
            "network": f"ResNet-{config.depth}, {config.n_stacks} stacks, width {config.width}, {config.normalization} normalization, "
            f"{self.model.count_params():,} parameters, {config.precision}, XLA {'on' if self.jit_compile else 'off'}",
            "weights": f"from {config.initial_weights}" if config.initial_weights else f"initialized from seed {config.seed}",
            "patches": patches if self.bank else "none: plain training",
            "steps": f"{n_epochs} epochs x {self.steps_per_epoch} steps of {config.batch_size} images = {n_steps:,} steps",
            "results": str(self.results.path),
        }
        if config.precision == "mixed_bfloat16" and bfloat16_is_fast() is False:
            plan["precision"] = "mixed_bfloat16 will not help: this device does not compute in bfloat16 by itself; float32 is as fast"
        print_facts(f"MAT {__version__}, TensorFlow {tf.__version__}", plan)

    def _print_summary(self, accuracies, seconds):
        """How the run went and what it left."""
        first_epoch = self.config.n_epochs - len(accuracies)
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        weights = self.results.weights_path(self.config.n_epochs - 1).name
        files = [LOG, weights, *((PATCHES, PATCHES_PICTURE) if self.bank else ())]
        accuracy = f"{accuracies[-1]:.1%} after the last epoch, best {accuracies[best]:.1%} after epoch {first_epoch + best + 1}"
        robust = "not measured (robust_evaluation: none)"
        if self.report is not None:
            headline = self.report["headline"]["robust"]
            robust = f"{interval_text(headline)}, the worst of {self.report['grid_summary']['n_patches']} universal patches"
        summary = {
            "clean validation accuracy": accuracy,
            "robust validation accuracy": robust,
            "time": duration(seconds),
            "results": f"{self.results.path}: {', '.join(files)}",
            "curves": f"tensorboard --logdir {self.results.path}",
        }
        print_facts("Done", summary)


def sample_patches(config, train_records):
    """INIT of Algorithm 1: P tuples of meta-patch, target class and step size.

    Args:
        config: a `PatchTrainingConfig`.
        train_records: the training `Records`, whose images start the patches where `patch_initialization` is `data`.

    Returns:
        PatchBank.

    Raises:
        UserError: a target class has no training image to start from.
    """
    targets = initial_targets(config.n_patches, config.n_classes)
    if config.patch_initialization == "random":
        patches = random_patches(config.n_patches, config.patch_shape, seed=stream_seed(config.seed, "bank/patches"))
    else:
        targeted = config.optimizer.targeted_attack
        images = initial_images(train_records, targets.numpy(), targeted=targeted, image_size=config.image_size, seed=config.seed)
        patches = tf.concat([resize_to_patches(batch, config.patch_shape) for batch in images.batch(1000)], axis=0)
    step_sizes = initial_step_sizes(
        config.n_patches,
        min_step_size=config.optimizer.min_step_size,
        max_step_size=config.optimizer.max_step_size,
        seed=stream_seed(config.seed, "bank/step_sizes"),
    )
    return PatchBank(patches, targets, step_sizes)


def create_step(config, model, bank):
    """The `TrainingStep` that a `PatchTrainingConfig` describes, of a model and a `PatchBank`, or None for plain training."""
    return TrainingStep(
        model,
        bank,
        n_trials=config.n_patch_trials,
        n_iterations=config.optimizer.n_iterations,
        targeted=config.optimizer.targeted_attack,
        patch_lr=config.patch_lr,
        weight_decay=config.weight_decay,
        seed=config.seed,
        jit_compile=use_xla(config.jit_compile),
    )


def learning_rate(epoch, *, n_epochs, initial_lr):
    """Cosine schedule of the learning rate, from `initial_lr` in epoch 0 towards 0 at `n_epochs`."""
    return initial_lr / 2 * (1 + math.cos(math.pi * epoch / n_epochs))


def _padded(images, labels, batch_size):
    """A batch filled up to `batch_size`, so that every batch has one shape and is compiled once, and how many images it has."""
    n_images = images.shape[0]
    missing = batch_size - n_images
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]), tf.pad(labels, [[0, missing], [0, 0]]), tf.constant(n_images)
