"""What a run says of itself before and after training."""

import shutil

import tensorflow as tf

from mat import __version__
from mat.devices import bfloat16_is_fast, device_name
from mat.files import existing_ancestor
from mat.results import LOG, PATCHES, PATCHES_PICTURE
from mat.terminal import duration, interval_text, print_facts


def print_plan(trainer):
    """Print what a `Trainer` will do."""
    config, optimizer = trainer.config, trainer.config.optimizer
    n_train, n_validation = len(trainer.train_records.labels), len(trainer.validation_records.labels)
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
        "data": f"{config.data_dir}: {n_train:,} training and {n_validation:,} validation images "
        f"of {config.image_size}x{config.image_size}, {config.n_classes} classes",
        "network": f"ResNet-{config.depth}, {config.n_stacks} stacks, width {config.width}, {config.normalization} normalization, "
        f"{trainer.model.count_params():,} parameters, {config.precision}, XLA {'on' if trainer.jit_compile else 'off'}",
        "weights": f"from {config.initial_weights}" if config.initial_weights else f"initialized from seed {config.seed}",
        "patches": patches if trainer.bank else "none: plain training",
        "steps": f"{config.n_epochs} epochs x {trainer.steps_per_epoch} steps of {config.batch_size} images = {n_steps:,} steps{left}",
        "results": f"{trainer.results.path}: {_space(trainer)}",
    }
    if config.precision == "mixed_bfloat16" and bfloat16_is_fast() is False:
        plan["precision"] = "mixed_bfloat16 will not help: this device does not compute in bfloat16 by itself; float32 is as fast"
    print_facts(f"MAT {__version__}, TensorFlow {tf.__version__}", plan)


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
        robust = f"{interval_text(report['headline']['robust'])}, the worst of {report['grid_summary']['n_patches']} universal patches"
    summary = {
        "clean validation accuracy": f"{accuracies[-1]:.1%} after the last epoch, best {accuracies[best]:.1%} after epoch "
        f"{first_epoch + best + 1}",
        "robust validation accuracy": robust,
        "time": duration(seconds),
        "results": f"{trainer.results.path}: {', '.join(files)}",
        "curves": f"tensorboard --logdir {trainer.results.path}",
    }
    print_facts("Done", summary)
