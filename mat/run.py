"""The parts of a training run, made from its config: data, model, bank of meta-patches, step (INIT of Algorithm 1 of arXiv:2101.11453)."""

import dataclasses
import json
import pathlib
from typing import Any

import keras
import tensorflow as tf

from mat.cli.console import console
from mat.cli.devices import configure, report_device_errors, use_xla
from mat.cli.errors import NonFiniteLossError, UserError
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.data.splits import fingerprint, read_splits
from mat.data.tiny_imagenet import initial_images, train_dataset
from mat.distribution.strategy import describe_strategy, is_chief, make_strategy, own_replicas
from mat.distribution.workers import check_same, report_lost_workers
from mat.models import create_model, load_weights
from mat.models.kernels import random_states
from mat.models.own_network_checks import check_shareable, check_trainable
from mat.models.prepared import all_layers
from mat.models.twin import Twin
from mat.models.weights import git_blob, weights_sha256
from mat.patch import PatchBank, initial_step_sizes, initial_targets, random_patches, resize_to_patches
from mat.results.checkpoints import RunRecord
from mat.results.resume import read_record, restore
from mat.results.run_directory import FollowerDirectory, ResultDirectory
from mat.results.schedule import describe_extensions, learning_rate
from mat.results.summary import print_plan
from mat.seeds import stream_seed
from mat.step import TrainingStep

_STEPS_LOGGED = 1000  # of a run, unless log_every_steps says otherwise


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a training run."""

    config: PatchTrainingConfig  # what the others were made from
    strategy: tf.distribute.Strategy  # of the replicas that share each batch
    results: ResultDirectory
    train_records: Records
    validation_records: Records
    model: keras.Model
    bank: PatchBank | None  # None for plain training
    step: TrainingStep  # compiled, of `model` and `bank`; with the optimizer and the number of the next step
    record: RunRecord  # with the epochs that are complete
    state: tf.train.Checkpoint  # step and record, as checkpoints hold them

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the training images; the last ones that do not fill a batch are left out."""
        return len(self.train_records.labels) // self.config.batch_size

    @property
    def log_every_steps(self) -> int:
        """Steps from one to the next whose loss and accuracy go to TensorBoard."""
        return self.config.log_every_steps or max(1, round(self.config.n_epochs * self.steps_per_epoch / _STEPS_LOGGED))

    @property
    def is_extended_now(self) -> bool:
        """Whether this process makes the run longer than its newest checkpoint says."""
        return self.record.restored_n_epochs not in (0, self.config.n_epochs)

    @property
    def epoch(self) -> int:
        """How many epochs are complete: the next one to train, counted from 0."""
        return len(self.record.rows)

    @property
    def position(self) -> str:
        """How far the run is, in words."""
        step = int(self.step.step.numpy()) - self.epoch * self.steps_per_epoch
        if step == 0:
            return f"epoch {self.epoch} of {self.config.n_epochs}"
        return f"epoch {self.epoch + 1} of {self.config.n_epochs}, step {step} of {self.steps_per_epoch}"

    @property
    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: weights, momentum and bank."""
        return 4 * (2 * self.model.count_params() + (self.bank.patches.shape.num_elements() if self.bank else 0))

    @property
    def bytes_to_write(self) -> int:
        """About how much the rest of the run writes: weights, and checkpoints, of which the next one is there before one goes."""
        weights = (self.config.n_epochs - self.epoch) * 4 * self.model.count_params()
        return weights + (self.config.checkpoints_to_keep + 1) * self.checkpoint_bytes

    @property
    def extended(self) -> str:
        """How the run was extended, in words; empty where it was not."""
        config = self.config
        return describe_extensions(n_epochs=config.n_epochs, initial_lr=config.initial_lr, extensions=self.record.extensions)

    def print_plan(self) -> None:
        """Print what the run will do."""
        print_plan(
            self.config,
            (self.train_records, self.validation_records),
            n_parameters=self.model.count_params(),
            steps_per_epoch=self.steps_per_epoch,
            n_steps_done=int(self.step.step.numpy()),
            n_bytes=self.bytes_to_write,
            extensions=self.extended,
            devices=self._devices,
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes of a batch, as the functions of `mat.data.tiny_imagenet` take them."""
        return {key: getattr(self.config, key) for key in ("batch_size", "n_classes", "image_size")}

    @property
    def _devices(self) -> str:
        """How many devices share the run, in words; empty where it is one alone."""
        words = describe_strategy(self.strategy)
        if words and any(isinstance(layer, keras.layers.BatchNormalization) for layer in all_layers(self.model)):
            words += ", and batch normalization is over a share: results depend on the number of replicas"
        return words

    def shares(self, epoch: int, first_batch: int = 0) -> tf.data.Dataset:
        """What this worker's replicas get of an epoch's batches, as `train_dataset`; the learning rate is set to the epoch's."""
        config = self.config
        rate = learning_rate(epoch, n_epochs=config.n_epochs, initial_lr=config.initial_lr, extensions=self.record.extensions)
        self.step.optimizer.learning_rate.assign(rate)
        return train_dataset(
            self.train_records,
            **self.sizes,
            label_smoothing=config.label_smoothing,
            seed=config.seed,
            epoch=epoch,
            first_batch=first_batch,
            replicas=own_replicas(self.strategy),
        )


def build_run(
    config: PatchTrainingConfig, *, resume: bool = False, extend: int | None = None, resume_config: pathlib.Path | None = None
) -> TrainingRun:
    """Read and check all that a run needs. Nothing is written, but for the demo's data set where it is missing.

    Args:
        config: the run's config.
        resume: continue from the newest usable checkpoint in the result directory, or start afresh where there is none.
        extend: continue the run in the result directory to so many epochs in total; one that was extended to them already is resumed.
        resume_config: the config file that messages tell the user to resume with; by default that in the result directory.

    Raises:
        UserError: the data, the weights or the result directory cannot be used, or do not fit the config.
    """
    resume = resume or extend is not None
    with report_lost_workers():
        strategy = make_strategy(config.distribution)
    names: dict[str, Any] = {"resume_config": resume_config, "own_network": config.own_network}
    results = (
        ResultDirectory(config.result_dir, resume=resume, checkpoints_to_keep=config.checkpoints_to_keep, **names)
        if is_chief(strategy)
        else FollowerDirectory(config.result_dir, **names)
    )
    earlier = read_record(results, config, extend=extend) if resume else None
    if earlier is not None:
        config = config.replace(n_epochs=extend or earlier["config"]["n_epochs"])
    configure(precision=config.precision, deterministic=config.deterministic)
    with report_device_errors(lambda: memory_advice(config, results)), report_lost_workers(), strategy.scope():
        model = create_model(config)
        check_trainable(model, config.network)
        check_shareable(model, config.network, n_replicas=strategy.num_replicas_in_sync, batch_size=config.batch_size)
        if config.initial_weights is not None and earlier is None:
            load_weights(model, config.initial_weights)
        train_records, validation_records = read_splits(
            config.dataset, config.data_dir, n_classes=config.n_classes, max_bad_records=config.bad_records_allowed
        )
        if len(train_records.labels) < config.batch_size:
            raise UserError(
                f"{train_records.path}: {len(train_records.labels)} training images do not fill one batch of batch_size: "
                f"{config.batch_size}. Set a smaller batch_size"
            )
        bank = None
        if config.n_patches:
            bank = sample_patches(config, train_records) if earlier is None else PatchBank.empty(config.n_patches, config.patch_shape)
        step = create_step(config, model, bank)
        network_file = git_blob(config.network) if config.network.endswith(".keras") else None
        record = RunRecord(config.to_values(), fingerprint((train_records, validation_records)), network_file)
        state = tf.train.Checkpoint(step=step, record=record)
        state.save_counter.numpy()  # makes it, which all workers must at once; to restore it makes it where there is a checkpoint
        if states := random_states(model):  # which TensorFlow does not find in Keras' layers
            state.random_states = states
        if earlier is not None:
            restore(results, config, state, earlier, (train_records, validation_records))
        _check_workers(strategy, config, record, step)
    run = TrainingRun(config, strategy, results, train_records, validation_records, model, bank, step, record, state)
    if run.is_extended_now:
        record.extensions.append([-(-int(step.step.numpy()) // run.steps_per_epoch), record.restored_n_epochs])
    if earlier is not None and run.epoch < config.n_epochs:
        console.print(f"{results.path}: resuming after {run.position}")
    return run


def _check_workers(strategy: tf.distribute.Strategy, config: PatchTrainingConfig, record: RunRecord, step: TrainingStep) -> None:
    """Refuse to train where workers would not train the same: with other configs, data or versions, or from other weights."""
    facts = {
        "unique_name (with several workers it may not use {date} or {id})": config.unique_name,
        "config": json.dumps(config.to_values() | dict.fromkeys(("base_result_dir", "unique_name", "data_dir"))),  # places may be others
        "data": record.data_sha256,
        "network file": str(record.network_git_blob),
        "version": json.dumps(record.versions),
        "checkpoint": f"{int(step.step.numpy())} {json.dumps(record.rows)}",
        "initial weights": weights_sha256(step.model),
    }
    check_same(strategy, facts)


def sample_patches(config: PatchTrainingConfig, train_records: Records) -> PatchBank:
    """INIT of Algorithm 1: P tuples of meta-patch, target class and step size.

    Args:
        config: the run's config.
        train_records: the training images, which start the patches where `patch_initialization` is `data`; else not used.

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


def create_step(config: PatchTrainingConfig, model: keras.Model, bank: PatchBank | None) -> TrainingStep:
    """The compiled training step that a config describes; plain training without a bank."""
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
        batch_size=config.batch_size,
        twin=create_twin(config, model),
    )


def create_twin(config: PatchTrainingConfig, model: keras.Model) -> Twin | None:
    """The model in the config's `attack_precision`; None where that is the model's own, or nothing is attacked."""
    precision = {"bfloat16": "mixed_bfloat16"}.get(config.attack_precision, config.attack_precision)
    if precision in ("same", config.dtype) or not config.n_patches:
        return None
    return Twin(create_model(config.replace(precision=precision, attack_precision="same")), model)


def non_finite_error(run: TrainingRun, failed_step: int, saved: str) -> NonFiniteLossError:
    """The message on a step of a run, counted from 0, that was not finite, with what is `saved` in words."""
    config, (epoch, step) = run.config, divmod(failed_step, run.steps_per_epoch)
    return NonFiniteLossError(
        f"the loss or its gradient became NaN or infinite at step {failed_step + 1} (epoch {epoch + 1}, step {step + 1}), which was "
        f"not made; {saved}. Try a lower initial_lr (now {config.initial_lr}), a larger batch_size (now {config.batch_size}), "
        f"{'' if config.own_network else f'normalization: strip (now {config.normalization}) or '}precision: float32 (now "
        f"{config.precision}) under another unique_name"
    )


def memory_advice(config: PatchTrainingConfig, results: ResultDirectory) -> str:
    """How to get along with less memory, and what is saved."""
    size = f"network: {config.network}" if config.own_network else f"width: {config.width}"
    return (
        f"batch_size: {config.batch_size}, {size} and n_patches: {config.n_patches} take more than there is. Set a smaller "
        "one under another unique_name, as a run is resumed with its own config only; or free what other programs took. "
        f"{results.what_is_saved()}"
    )
