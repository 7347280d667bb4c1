"""Timing of the training step of a config, beside its convolutions alone.

All timings of one function are medians, and what is compared is timed in turns, so that a machine that slows down for a while slows down
both sides. Shapes: `B` images a batch, `F` trials, `K` I-FGSM iterations.
"""

import functools
import math
import resource
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat.cli.devices import configure
from mat.cli.errors import NonFiniteLossError
from mat.cli.progress import ProgressLine
from mat.config import PatchTrainingConfig
from mat.models import create_model
from mat.models.convolutional import StandardizedConv2D
from mat.models.prepared import compile_with
from mat.patch import PatchBank, initial_targets, random_patches
from mat.run import create_step
from mat.seeds import stream_seed
from mat.step import TrainingStep
from mat.tools.stopwatch import Stopwatch


def bare_convolutions(model: keras.Model, batch_size: int, dtype: str) -> list[tuple[dict[str, Any], float, Stopwatch]]:
    """The convolutions of a model as TensorFlow's bare operation, forward, under a Keras dtype policy, in the order of the layers.

    Returns:
        Name and shapes, GFLOP of a batch (multiplications and additions) and stopwatch, one for all convolutions of equal shapes.
    """
    compute_dtype = tf.as_dtype(keras.DTypePolicy(dtype).compute_dtype)

    @functools.cache
    def watch(input_shape, kernel_shape, strides):
        shapes = [batch_size, *input_shape], kernel_shape
        inputs, kernel = (tf.Variable(tf.cast(tf.random.stateless_normal(shape, [0, 0]), compute_dtype)) for shape in shapes)
        return Stopwatch(tf.function(lambda: tf.nn.conv2d(inputs, kernel, strides, "SAME"), autograph=False).get_concrete_function())

    convolutions = []
    for layer in model.layers:
        if isinstance(layer, (StandardizedConv2D, keras.layers.Conv2D)):
            strides = layer.strides if isinstance(layer.strides, int) else layer.strides[0]
            input_shape, kernel_shape = tuple(layer.input.shape[1:]), tuple(layer.kernel.shape)
            gflop = 2e-9 * batch_size * math.prod(layer.output.shape[1:-1]) * math.prod(kernel_shape)
            found = {"name": layer.name, "input": input_shape, "kernel": kernel_shape, "strides": strides}
            convolutions.append((found, gflop, watch(input_shape, kernel_shape, strides)))
    return convolutions


def passes(n_layers: int, n_trials: int, n_iterations: int) -> list[tuple[int, int]]:
    """How many forward passes the work of each of a model's convolutions in a step is worth: in SELECT and I-FGSM, and in OPT.

    Forward F + K and 1, input gradient K and 1 (0 in the first layer, as OPT needs none there), weight gradient 1 in OPT; no forward pass
    for SELECT with F = 1, which evaluates nothing. F = K = 0 in plain training.
    """
    attack = (0 if n_trials == 1 else n_trials) + 2 * n_iterations
    return [(attack, 2 + (i > 0)) for i in range(n_layers)]


def measure_step(config: PatchTrainingConfig, repeats: int, *, breakdown: bool = False, profile: str | None = None) -> dict[str, Any]:
    """Time the step of a config, the plain step of the same network, and each convolution of it alone, in turns.

    Args:
        config: what the step is made from.
        repeats: rounds that the medians are of.
        breakdown: also time the parts of the step.
        profile: a directory for a TensorFlow profile of one step.
    """
    configure(precision=config.precision, deterministic=config.deterministic)
    model, bank, batch = create_model(config), noise_bank(config), noise_batch(config, config.batch_size)
    small = Stopwatch(noise_step(config.replace(batch_size=1), model, bank).train_on_batch, *noise_batch(config, 1))
    small.measure()
    step = noise_step(config, model, bank)
    mat = Stopwatch(step.train_on_batch, *batch)
    memory = peak_memory()  # before more is made that a training run does not hold
    plain_step = noise_step(config, model, None)
    plain = Stopwatch(plain_step.train_on_batch, *batch)
    convolutions = attacked = bare_convolutions(model, config.batch_size, config.dtype)
    if step.twin is not None:
        attacked = bare_convolutions(model, config.batch_size, step.twin.network.dtype_policy.name)
    with ProgressLine(repeats, "measuring the step") as line:
        for done in range(1, repeats + 1):
            for watch in {watch for *_, watch in (*convolutions, *attacked)}:
                watch.measure(n_calls=3)
            mat.measure()
            plain.measure()
            line.show(done, f"{done}/{repeats}")
    if max(int(step.failed_step.numpy()), int(plain_step.failed_step.numpy())) >= 0:
        raise NonFiniteLossError("the loss became NaN or infinite, so that no whole step was timed. Try precision: float32")
    n_passes = passes(len(convolutions), *((config.n_patch_trials, config.optimizer.n_iterations) if config.n_patches else (0, 0)))
    layers = [
        {
            **found,
            "seconds": watch.median,
            "gflops": gflop / watch.median,
            "attack_seconds": attack_watch.median,
            "forward_equivalents": sum(n),
        }
        for (found, gflop, watch), (*_, attack_watch), n in zip(convolutions, attacked, n_passes, strict=True)
    ]
    result = {"repeats": repeats, "convolutions": layers, "all_step_seconds": mat.seconds, "all_plain_step_seconds": plain.seconds}
    result |= {"peak_memory_bytes": memory, "first_step_seconds": small.first_seconds - small.median}
    result |= _rates(config.batch_size, mat.median, plain.median, layers, n_passes)
    if breakdown:
        result["breakdown"] = measure_parts(step, batch, repeats) | {"OPT": plain.median}
    if profile is not None:
        tf.profiler.experimental.start(profile)
        mat.call()
        tf.profiler.experimental.stop()
    return result


def _rates(batch_size, step_seconds, plain_seconds, layers, n_passes):
    """Rates and ratios of the MAT and the plain step, beside the convolutions alone, which an own network has none of."""
    rates = {
        "step_seconds": step_seconds,
        "images_per_second": batch_size / step_seconds,
        "plain_step_seconds": plain_seconds,
        "mat_to_plain_ratio": step_seconds / plain_seconds,
    }
    if not layers:
        return rates
    plain_bound = sum(layer["seconds"] * n for (_, n), layer in zip(n_passes, layers, strict=True))
    bound = plain_bound + sum(layer["attack_seconds"] * n for (n, _), layer in zip(n_passes, layers, strict=True))
    gflop = sum(layer["gflops"] * layer["seconds"] * layer["forward_equivalents"] for layer in layers)
    return rates | {
        "conv_bound_seconds": bound,
        "fraction_of_conv_bound": bound / step_seconds,
        "plain_fraction_of_conv_bound": plain_bound / plain_seconds,
        "step_gflops": gflop / step_seconds,
        "best_conv_gflops": max(layer["gflops"] for layer in layers),
    }


def measure_parts(step: TrainingStep, batch: tuple[tf.Tensor, tf.Tensor], repeats: int) -> dict[str, float]:
    """Seconds of SELECT, I-FGSM and REPTILE of a step, each compiled as a function of its own; none of them in plain training."""
    if step.bank is None:
        return {}
    images, labels = batch
    trial_indices, trial_offsets = step.draw_trials(images.shape[0], images.shape[1:3])
    indices, offsets = trial_indices[0], trial_offsets[0]
    parts: dict[str, tuple] = {
        "SELECT": (step.select, images, labels, trial_indices, trial_offsets),
        "I-FGSM": (step.refine, images, labels, indices, offsets),
        "REPTILE": (lambda *refined: step.bank.update(*refined, step.patch_lr), tf.gather(step.bank.patches, indices), indices),
    }
    seconds = {}
    for name, (function, *arguments) in parts.items():
        watch = Stopwatch(compile_with(step.attacked_model, function, jit_compile=step.jit_compile), *arguments)
        watch.measure(repeats)
        seconds[name] = watch.median
    return seconds


def noise_bank(config: PatchTrainingConfig) -> PatchBank | None:
    """A bank of the config's size, but of noise, which costs a step the same and needs no images; None for plain training."""
    if not config.n_patches:
        return None
    patches = random_patches(config.n_patches, config.patch_shape, seed=stream_seed(0, "noise"))
    return PatchBank(patches, initial_targets(config.n_patches, config.n_classes), tf.fill([config.n_patches], 0.01))


def noise_step(config: PatchTrainingConfig, model: keras.Model, bank: PatchBank | None) -> TrainingStep:
    """The step of a config, with a learning rate that keeps losses on noise finite."""
    step = create_step(config, model, bank)
    step.optimizer.learning_rate.assign(1e-3)
    return step


def noise_batch(config: PatchTrainingConfig, batch_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Images float32 [B, H, W, 3] of noise, and one-hot labels float32 [B, n_classes]."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[batch_size, config.image_size, config.image_size, 3])
    return tf.constant(images, tf.float32), tf.one_hot(rng.integers(config.n_classes, size=batch_size), config.n_classes)


def peak_memory() -> int:
    """The most memory that this process has held so far, bytes: of the GPU where there is one, else of the machine."""
    if tf.config.get_visible_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
