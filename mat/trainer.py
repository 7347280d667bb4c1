"""The training loop: what a run is made of, its epochs, validation, checkpoints and stopping."""

import contextlib
import dataclasses
import math
import time

import tensorflow as tf

from mat.cli.config_keys import differences
from mat.cli.console import console
from mat.cli.devices import configure, memory_limits, tensorfloat32_is_fast, use_xla
from mat.cli.errors import NonFiniteLossError, StoppedError, UserError
from mat.cli.progress import TrainingProgress
from mat.cli.signals import StopRequest, noted_signals, raised_signals
from mat.cli.text import format_value
from mat.config import PatchTrainingConfig
from mat.data.splits import fingerprint, read_splits
from mat.data.tiny_imagenet import initial_images, train_dataset, validation_dataset
from mat.models import create_model, load_weights
from mat.models.pooling import SMALLEST_POOL, last_feature_map
from mat.models.prepared import compile_with
from mat.patch import PatchBank, initial_step_sizes, initial_targets, random_patches, resize_to_patches
from mat.results.checkpoints import RunRecord
from mat.results.run_directory import CONFIG, PATCHES, ResultDirectory
from mat.results.summary import print_plan, print_summary
from mat.robustness.measure import evaluate
from mat.robustness.store import report_path
from mat.seeds import stream_seed
from mat.step import TrainingStep, is_correct


class Trainer:
    """A training run: `Trainer(config).fit()`.

    The constructor finds, reads and checks all that the run needs and writes nothing, but for the demo's data set where it is missing.

    Args:
        config: a `PatchTrainingConfig`.
        resume: continue from the newest usable checkpoint of the run in the result directory, or start afresh where there is none.

    Raises:
        UserError: the data, the weights or the result directory cannot be used, or do not fit the config.
    """

    def __init__(self, config, *, resume=False):
        self.config = config
        self.report = None
        self.results = ResultDirectory(config, resume=resume)
        try:
            earlier = self._earlier_record() if resume else None
        except OSError as error:
            raise self._out_of_reach(error) from None
        configure(precision=config.precision, deterministic=config.deterministic)
        self._stop = StopRequest()
        self._saved_at = None  # when this process last wrote a checkpoint
        with memory_limits(self._less_memory):
            self._build(earlier)

    def _build(self, earlier):
        """Make the network, read the data, and take over the state of a run whose record is `earlier`, if there is one."""
        config = self.config
        self.model = create_model(config)
        if config.initial_weights is not None and earlier is None:
            load_weights(self.model, config.initial_weights)
        self.train_records, self.validation_records = read_splits(
            config.dataset, config.data_dir, n_classes=config.n_classes, max_bad_records=config.bad_records_allowed
        )
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
        self.bank = None
        if config.n_patches and earlier is None:
            self.bank = sample_patches(config, self.train_records)
        elif config.n_patches:
            self.bank = PatchBank.empty(config.n_patches, config.patch_shape)
        self.step = create_step(config, self.model, self.bank)
        self._count_correct = compile_with(self.model, self._count_correct_in_batch, jit_compile=self.jit_compile)
        n_numbers = 2 * self.model.count_params() + (self.bank.patches.shape.num_elements() if self.bank else 0)  # with the momentum
        self.results.checkpoints.n_bytes = 4 * n_numbers
        self.record = RunRecord(config.to_values(), fingerprint((self.train_records, self.validation_records)))
        self.state = tf.train.Checkpoint(step=self.step, record=self.record)
        if earlier is not None:
            try:
                self._restore(earlier)
            except OSError as error:
                raise self._out_of_reach(error) from None

    @property
    def epoch(self):
        """How many epochs are complete: the next one to train, counted from 0."""
        return len(self.record.rows)

    def _earlier_record(self):
        """The record of the run in the result directory, a dict, or None where there is nothing to resume.

        Raises:
            UserError: it is the run of another config, or its checkpoints are damaged or gone.
        """
        record = self.results.checkpoints.read_record()
        if record is None:
            if weights := self.results.leftovers():
                raise UserError(
                    f"{self.results.path}: has the results of a run and no checkpoint to resume from. Remove the directory to start "
                    f"afresh, or go on under another unique_name with initial_weights: {weights}"
                )
            if (path := self.results.path / CONFIG).exists():
                self._check_same(PatchTrainingConfig.from_yaml(path))
            console.print(f"{self.results.path}: no checkpoint to resume from; starting afresh")
            return None
        try:
            saved = PatchTrainingConfig.from_values(record["config"])
        except UserError as error:
            raise UserError(f"{self.results.path}: its run is of another version of this program ({error})") from None
        self._check_same(saved)
        return record

    def _check_same(self, saved):
        """Refuse to go on with another config than the one that is saved."""
        different = differences(saved, self.config)
        if different:
            was = ", ".join(f"{key}: {format_value(value)}" for key, value, _ in different)
            given = ", ".join(f"{key}: {format_value(value)}" for key, _, value in different)
            raise UserError(f"{self.results.path}: this run has {was}, and --resume was given {given}. Resume with the run's own config")

    def _restore(self, earlier):
        """Take over the state of the newest usable checkpoint; `earlier` is the record of the newest that could be read."""
        if earlier["data_sha256"] != self.record.data_sha256:
            raise UserError(
                f"{self.config.data_dir}: not the data that the run in {self.results.path} was begun with. Give data_dir that data, or "
                "train under another unique_name"
            )
        self.results.checkpoints.restore(self.state)
        self._check_version(earlier["versions"]["mat"])
        if earlier["versions"]["tensorflow"] != tf.__version__:
            console.print(
                f"The checkpoint was written with TensorFlow {earlier['versions']['tensorflow']}, this is {tf.__version__}: results may "
                "differ in their last digits from those of an uninterrupted run"
            )
        if self.epoch < self.config.n_epochs:
            console.print(f"{self.results.path}: resuming after {self._position()}")

    def _check_version(self, version):
        """Refuse a run of a version whose network computed something else: 0.1 cropped what it pooled to multiples of 8.

        Its float32 may also have been TensorFloat-32, on GPUs from Ampere on.
        """
        if not version.startswith("0.1."):
            return
        feature_map = last_feature_map(self.config.image_size, self.config.n_stacks)
        if feature_map % SMALLEST_POOL:
            raise UserError(
                f"{self.results.path}: its run is of version {version}, which left out a part of images of image_size: "
                f"{self.config.image_size} with n_stacks: {self.config.n_stacks}. Train anew under another unique_name"
            )
        if self.config.precision == "float32" and tensorfloat32_is_fast() is not False:
            console.print(
                f"The run was begun by version {version}, whose float32 was TensorFloat-32 on this device; from here on it is float32"
            )

    def _position(self):
        """How far the run is, in words."""
        epoch, step = self.epoch, int(self.step.step) - self.epoch * self.steps_per_epoch
        if step == 0:
            return f"epoch {epoch} of {self.config.n_epochs}"
        return f"epoch {epoch + 1} of {self.config.n_epochs}, step {step} of {self.steps_per_epoch}"

    def fit(self):
        """Train, validate and save for the epochs that are left, then evaluate robustness as `robust_evaluation` says.

        The report of the evaluation is `self.report` afterwards, None without one.

        Returns:
            Clean validation accuracy after each of the epochs that ended here, a list of floats in [0, 1].

        Raises:
            NonFiniteLossError: the loss or a gradient became NaN or infinite; weights and patches stay those of the step before, and
                are saved.
            StoppedError: SIGINT, SIGTERM or SIGHUP came; the step in hand was completed and saved.
            UserError: the result directory cannot be written, or another process trains into it.
        """
        first_epoch = self.epoch
        started = time.monotonic()
        try:
            with noted_signals() as self._stop, self.results.opened(self.record.rows):
                if first_epoch < self.config.n_epochs:
                    print_plan(self)
                    with memory_limits(self._less_memory):
                        self._train()
                else:
                    console.print(f"{self.results.path}: this run is finished; nothing is left to train")
                seconds = time.monotonic() - started
                self._evaluate()
                self._stop_if_asked()
        except OSError as error:
            raise self._out_of_reach(error) from None
        accuracies = [row["validation_accuracy"] for row in self.record.rows[first_epoch:]]
        if accuracies:
            print_summary(self, accuracies, seconds)
        return accuracies

    def _train(self):
        """Train the epochs that are left."""
        progress = TrainingProgress(
            n_epochs=self.config.n_epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.batch_size,
            first_step=int(self.step.step),
        )
        self._saved_at = time.monotonic()
        try:
            with progress:
                for epoch in range(self.epoch, self.config.n_epochs):
                    self._train_epoch(epoch, progress)
                    self._finish_epoch(epoch, progress)
        except OSError:
            with contextlib.suppress(OSError):  # it may have been another file or place that failed
                self._save()
            raise

    def _evaluate(self):
        """Measure the robust accuracy of the trained model and log it, if that is wanted and not yet done."""
        self._stop_if_asked()
        config, last_epoch = self.config, self.config.n_epochs - 1
        if config.robust_evaluation == "none":
            return
        quick = config.robust_evaluation == "quick"
        if quick:
            config = dataclasses.replace(config, evaluation=config.evaluation.quick())
        weights = self.results.weights_path(last_epoch)
        if not weights.exists():
            self.results.save_weights(self.model, last_epoch)
        if self.bank is not None and not (self.results.path / PATCHES).exists():
            self.results.save_patches(self.bank, last_epoch)
        with raised_signals(f"Stopped in the evaluation of robustness; the training is saved. {self._continue_with()}"):
            self._stop_if_asked()  # the signal may have come before this block
            self.report = evaluate(
                config,
                self.model,
                (self.train_records, self.validation_records),
                report_path(weights, quick=quick),
                weights=weights,
                bank=self.results.path / PATCHES if self.bank is not None and "bank" in config.evaluation.starts else None,
                resume=True,
                or_next=True,
            )
        accuracy = self.report["headline"]["robust"]["accuracy"]
        self.results.events.write(last_epoch, {"validation/robust_accuracy" + ("" if quick else "_full"): accuracy})
        row = self.record.rows[last_epoch]
        logged = row.get("robust_accuracy")
        if logged is not None and logged < accuracy:
            console.print(f"The log keeps the robust accuracy of {logged:.1%} that an earlier evaluation found")
        elif logged != accuracy:
            row["robust_accuracy"] = accuracy
            self.results.write_log(self.record.rows)
            self._save()

    def _train_epoch(self, epoch, progress):
        """One pass over the training images, or what is left of it."""
        config = self.config
        self.step.optimizer.learning_rate.assign(learning_rate(epoch, n_epochs=config.n_epochs, initial_lr=config.initial_lr))
        first_step = int(self.step.step)
        if first_step == epoch * self.steps_per_epoch:
            self.step.reset_metrics()
        batches = train_dataset(
            self.train_records,
            batch_size=config.batch_size,
            n_classes=config.n_classes,
            image_size=config.image_size,
            label_smoothing=config.label_smoothing,
            seed=config.seed,
            epoch=epoch,
            first_batch=first_step - epoch * self.steps_per_epoch,
        )
        for done, (images, labels) in enumerate(batches, start=first_step + 1):
            self.step.train_on_batch(images, labels)
            if progress.due(done):
                self._check_finite()
                progress.update(done, *self.step.metrics())
            if time.monotonic() - self._saved_at >= 60 * config.checkpoint_every_minutes:
                self._save()
            self._stop_if_asked()
        self._check_finite()

    def _finish_epoch(self, epoch, progress):
        """Validate, log and save. The checkpoint comes last: until it is written, a resumed run does all of this again."""
        loss, accuracy = self.step.metrics()
        row = {"epoch": epoch, "loss": loss, "accuracy": accuracy, "validation_accuracy": self.validate()}
        row["learning_rate"] = float(self.step.optimizer.learning_rate)
        self.results.save_weights(self.model, epoch)
        if self.bank is not None:
            self.results.save_patches(self.bank, epoch)
        self.results.write_events(row, images_per_second=progress.images_per_second)
        self.results.write_log([*self.record.rows, row])
        self.record.rows.append(row)
        self._save()
        progress.end_epoch(epoch, loss=loss, accuracy=accuracy, validation_accuracy=row["validation_accuracy"])

    def _save(self):
        """Write a checkpoint; returns its path prefix."""
        self._check_finite()
        path = self.results.checkpoints.save(self.state)
        self._saved_at = time.monotonic()
        return path

    def _stop_if_asked(self):
        """Save and end the run if a stop signal came."""
        if self._stop.received:
            self._save()
            raise StoppedError(f"Stopped after {self._position()}; all of it is saved. {self._continue_with()}", self._stop.received)

    def validate(self):
        """Clean accuracy on all validation images, a float in [0, 1]."""
        batch_size = self.config.batch_size
        n_correct = 0
        for images, labels in self.validation_batches:
            n_correct += int(self._count_correct(*_padded(images, labels, batch_size)))
            self._stop_if_asked()
        return n_correct / len(self.validation_records.labels)

    def _count_correct_in_batch(self, images, labels, n_images):
        """How many of the first `n_images` images of a batch are classified correctly."""
        correct = is_correct(labels, self.model(images, training=False))
        return tf.math.count_nonzero(correct & (tf.range(images.shape[0]) < n_images))

    def _check_finite(self):
        """Stop the run if a step was not finite, with the state before that step saved."""
        step = int(self.step.failed_step)
        if step < 0:
            return
        self.step.failed_step.assign(-1)  # in the checkpoint that step is still to come
        try:
            saved = f"the state before it is saved as {self._save()}"
        except OSError as error:
            saved = f"the state before it cannot be saved ({error.filename}: {error.strerror})"
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        config = self.config
        raise NonFiniteLossError(
            f"the loss or its gradient became NaN or infinite at step {step + 1} (epoch {epoch + 1}, step {step_in_epoch + 1}), which was "
            f"not made; {saved}. Try a lower initial_lr (now {config.initial_lr}), a larger batch_size (now {config.batch_size}), "
            f"normalization: strip (now {config.normalization}) or precision: float32 (now {config.precision}) under another unique_name"
        )

    def _out_of_reach(self, error):
        """The `UserError` of a file that cannot be read or written, with what is left of the run and how it goes on."""
        path = error.filename or self.results.path
        return UserError(f"{path}: cannot be read or written: {error.strerror or error}. {self._what_is_left()}")

    def _less_memory(self):
        """How to get along with less memory, with what is left of the run."""
        config = self.config
        return (
            f"batch_size: {config.batch_size}, width: {config.width} and n_patches: {config.n_patches} take more than there is. Set a "
            "smaller one under another unique_name, as a run is resumed with its own config only; or free what other programs took. "
            f"{self._what_is_left()}"
        )

    def _what_is_left(self):
        """The newest checkpoint, and how the run goes on from it."""
        try:
            paths = self.results.checkpoints.paths()
        except OSError:
            return f"The checkpoints are out of reach too. When they are back: {self._continue_with()}"
        return f"The newest checkpoint is {paths[0]}. {self._continue_with()}" if paths else "No checkpoint was written yet"

    def _continue_with(self):
        return f"Continue with: {self.results.resume_command}"


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
