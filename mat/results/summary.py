"""What a run says of itself before and after training."""

import shlex
import shutil

import tensorflow as tf

from mat import __version__
from mat.cli.console import print_facts
from mat.cli.devices import bfloat16_is_fast, device_name, precision_overrides, tensorfloat32_is_fast
from mat.cli.files import existing_ancestor
from mat.cli.progress import duration
from mat.data.splits import describe
from mat.results.run_directory import LOG, PATCHES, PATCHES_PICTURE
from mat.robustness.report import robust_words

MANY_LEFT_OUT = 0.1  # share of the training images that an epoch leaves out, which raises a warning


def print_plan(trainer):
    """Print what a `Trainer` will do."""
    config, optimizer = trainer.config, trainer.config.optimizer
    splits = trainer.train_records, trainer.validation_records
    n_left_out = len(trainer.train_records.labels) - trainer.steps_per_epoch * config.batch_size
    n_steps, n_done = config.n_epochs * trainer.steps_per_epoch, int(trainer.step.step)
    left = f"; {n_steps - n_done:,} are left" if n_done else ""
    height, width, _ = config.patch_shape
    targeted = "targeted" if optimizer.targeted_attack else "untargeted"
    patches = (
        f"{config.n_patches:,} of {height}x{width}, started from {config.patch_initialization}; "
        f"{config.n_patch_trials} trials and {optimizer.n_iterations} {targeted} I-FGSM iterations a step"
    )
    plan = {
        "device": device_name(),
        **describe(splits, config.data_dir, image_size=config.image_size, n_classes=config.n_classes),
        "network": f"ResNet-{config.depth}, {config.n_stacks} stacks, width {config.width}, {config.normalization} normalization, "
        f"{trainer.model.count_params():,} parameters, {config.precision}, XLA {'on' if trainer.jit_compile else 'off'}",
        "weights": f"from {config.initial_weights}" if config.initial_weights else f"initialized from seed {config.seed}",
        "patches": patches if trainer.bank else "none: plain training",
        "steps": f"{config.n_epochs} epochs x {trainer.steps_per_epoch} steps of {config.batch_size} images = {n_steps:,} steps{left}",
        "results": f"{trainer.results.path}: {_space(trainer)}",
    }
    if n_left_out > MANY_LEFT_OUT * len(trainer.train_records.labels):
        plan["batches"] = f"WARNING: batch_size: {config.batch_size} leaves {n_left_out:,} images out of each epoch"
    if told := _precision_doubts(config.precision):
        plan["precision"] = told
    print_facts(f"MAT {__version__}, TensorFlow {tf.__version__}", plan)


def _precision_doubts(precision):
    """What makes a precision slower, or another, than it looks like; empty where nothing does."""
    slow = {
        "mixed_bfloat16": ("bfloat16", bfloat16_is_fast),
        "tensorfloat32": ("TensorFloat-32", tensorfloat32_is_fast),
    }
    told = []
    if precision in slow and slow[precision][1]() is False:
        told.append(f"{precision} will not help: this device does not compute in {slow[precision][0]} by itself; float32 is as fast")
    if overrides := precision_overrides(precision):
        told.append(f"WARNING: the environment changes it: {overrides}")
    return "; ".join(told)


def _space(trainer):
    """How much the run will write, and whether that fits, in words."""
    config = trainer.config
    weights = (config.n_epochs - trainer.epoch) * 4 * trainer.model.count_params()
    checkpoints = (config.checkpoints_to_keep + 1) * trainer.results.checkpoints.n_bytes  # the next one is there before one goes
    needed, free = weights + checkpoints, shutil.disk_usage(existing_ancestor(trainer.results.path)).free
    text = f"about {needed / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free"
    return text if needed < free else f"WARNING: {text}"


def print_summary(trainer, accuracies, seconds):
    """Print how a `Trainer`'s run went and what it left.

    Args:
        trainer: the Trainer, at its end.
        accuracies: clean validation accuracies of the epochs that ended in this process, at least one.
        seconds: how long it trained.
    """
    config, report = trainer.config, trainer.report
    first_epoch = config.n_epochs - len(accuracies)
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    files = [LOG, trainer.results.weights_path(config.n_epochs - 1).name, *((PATCHES, PATCHES_PICTURE) if trainer.bank else ())]
    robust = "not measured (robust_evaluation: none)"
    if report is not None:
        robust = robust_words(report)
    summary = {
        "clean validation accuracy": f"{accuracies[-1]:.1%} after the last epoch, best {accuracies[best]:.1%} after epoch "
        f"{first_epoch + best + 1}",
        "robust validation accuracy": robust,
        "time": duration(seconds),
        "results": f"{trainer.results.path}: {', '.join(files)}",
        "curves": f"tensorboard --logdir {shlex.quote(str(trainer.results.path))}",
    }
    print_facts("Done", summary)
