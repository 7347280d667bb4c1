"""What a run prints before and after training: its plan and its summary."""

import pathlib
import shlex
import shutil

import tensorflow as tf

from mat import __version__
from mat.cli.console import print_facts
from mat.cli.devices import bfloat16_is_fast, device_name, precision_overrides, tensorfloat32_is_fast, use_xla
from mat.cli.files import existing_ancestor
from mat.cli.progress import duration
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.data.splits import describe
from mat.results.run_files import BANK_FILE, BANK_PICTURE, LOG_FILE, NETWORK_FILE

MANY_LEFT_OUT = 0.1  # share of the training images that an epoch leaves out, which raises a warning


def print_plan(
    config: PatchTrainingConfig,
    splits: tuple[Records, Records],
    *,
    n_parameters: int,
    steps_per_epoch: int,
    n_steps_done: int,
    n_bytes: int,
    extensions: str = "",
    devices: str = "",
) -> None:
    """Print what a run will do.

    Args:
        config: the run's config.
        splits: training and validation records.
        n_parameters: of the network.
        steps_per_epoch: steps of one epoch.
        n_steps_done: steps of the run that were made before.
        n_bytes: about how much will be written.
        extensions: how the run was extended, in words.
        devices: how many devices share the run, in words; empty for one alone.
    """
    optimizer, (height, width, _) = config.optimizer, config.patch_shape
    n_images, n_steps = len(splits[0].labels), config.n_epochs * steps_per_epoch
    n_left_out = n_images - steps_per_epoch * config.batch_size
    targeted = "targeted" if optimizer.targeted_attack else "untargeted"
    patches = (
        f"{config.n_patches:,} of {height}x{width}, started from {config.patch_initialization}; "
        f"{config.n_patch_trials} trials and {optimizer.n_iterations} {targeted} I-FGSM iterations a step"
    )
    left = f"; {n_steps - n_steps_done:,} are left" if n_steps_done else ""
    free = shutil.disk_usage(existing_ancestor(config.result_dir)).free
    space = f"about {n_bytes / 1e6:,.0f} MB to write, {free / 1e6:,.0f} MB free"
    plan = {
        "device": device_name() + (f"; {devices}" if devices else ""),
        **describe(splits, config.data_dir, image_size=config.image_size, n_classes=config.n_classes),
        "network": f"{_network(config)}, {n_parameters:,} parameters, {config.precision}, XLA "
        f"{'on' if use_xla(config.jit_compile) else 'off'}",
        "weights": _weights(config),
        "patches": patches if config.n_patches else "none: plain training",
        "steps": f"{config.n_epochs} epochs x {steps_per_epoch} steps of {config.batch_size} images = {n_steps:,} steps{left}",
        "results": f"{config.result_dir}: {'' if n_bytes < free else 'WARNING: '}{space}",
    }
    if extensions:
        plan["extended"] = extensions
    if n_left_out > MANY_LEFT_OUT * n_images:
        plan["batches"] = f"WARNING: batch_size: {config.batch_size} leaves {n_left_out:,} images out of each epoch"
    if told := _precision_warnings(config.precision):
        plan["precision"] = told
    print_facts(f"MAT {__version__}, TensorFlow {tf.__version__}", plan)


def _network(config: PatchTrainingConfig) -> str:
    """What the network is."""
    if not config.own_network:
        return f"ResNet-{config.depth}, {config.n_stacks} stacks, width {config.width}, {config.normalization} normalization"
    outputs = "logits" if config.logits else "probabilities"
    return f"{config.network}, images in {config.input_range} to {outputs} (depth, width, n_stacks, normalization do not apply)"


def _weights(config: PatchTrainingConfig) -> str:
    """Where the first weights come from."""
    if config.initial_weights:
        return f"from {config.initial_weights}"
    if not config.own_network or config.fresh_weights:
        return f"initialized from seed {config.seed}"
    return f"as {config.network} {'has' if config.network.endswith('.keras') else 'makes'} them"


def _precision_warnings(precision: str) -> str:
    """What makes a precision slower, or another, than it looks like; empty where nothing does."""
    slow = {"mixed_bfloat16": ("bfloat16", bfloat16_is_fast), "tensorfloat32": ("TensorFloat-32", tensorfloat32_is_fast)}
    told = []
    if precision in slow and slow[precision][1]() is False:
        told.append(f"{precision} will not help: this device does not compute in {slow[precision][0]} by itself; float32 is as fast")
    if overrides := precision_overrides(precision):
        told.append(f"WARNING: the environment changes it: {overrides}")
    return "; ".join(told)


def print_summary(
    config: PatchTrainingConfig, accuracies: list[float], *, weights: pathlib.Path, robust: str | None, seconds: float
) -> None:
    """Print how a run went and what it left.

    Args:
        config: the run's config.
        accuracies: clean validation accuracy after each epoch.
        weights: the last weights file.
        robust: the robust accuracy in words, None where it was not measured.
        seconds: how long this process trained.
    """
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    files = [
        LOG_FILE,
        weights.name,
        *((NETWORK_FILE,) if (config.result_dir / NETWORK_FILE).exists() else ()),
        *((BANK_FILE, BANK_PICTURE) if config.n_patches else ()),
    ]
    summary = {
        "clean validation accuracy": f"{accuracies[-1]:.1%} after the last epoch, best {accuracies[best]:.1%} after epoch {best + 1}",
        "robust validation accuracy": robust or "not measured (robust_evaluation: none)",
        "time": duration(seconds),
        "results": f"{config.result_dir}: {', '.join(files)}",
        "curves": f"tensorboard --logdir {shlex.quote(str(config.result_dir))}",
    }
    print_facts("Done", summary)
