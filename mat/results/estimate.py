"""What a run will take: the time of its steps and validations, measured on one batch of each, and memory."""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Callable

import tensorflow as tf

from mat.cli.console import print_facts
from mat.cli.progress import duration


def print_estimate(
    *,
    step: Callable[[], object],
    validation: Callable[[], object],
    n_steps: int,
    n_validations: int,
    n_validation_batches: int,
    batch_size: int,
    evaluation: str,
) -> None:
    """Make two steps, validate one batch twice, and print what the rest of a run will take.

    Args:
        step: makes a step, and returns once it is made.
        validation: validates one batch.
        n_steps: steps that are left.
        n_validations: validations that are left.
        n_validation_batches: batches of each.
        batch_size: images of a batch.
        evaluation: what is evaluated after the last epoch, in words.
    """
    (first_step, step_seconds), (first_validation, batch_seconds) = _timed_twice(step), _timed_twice(validation)
    tracing = first_step - step_seconds + first_validation - batch_seconds
    seconds = max(tracing, 0) + n_steps * step_seconds + n_validations * n_validation_batches * batch_seconds
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    estimate = {
        "first step": f"{first_step:.1f} s with tracing",
        "steps": f"{step_seconds:.3f} s each, {batch_size / step_seconds:,.0f} images/s; {n_steps:,} are left",
        "validation": f"{n_validation_batches * batch_seconds:.3g} s each; {n_validations:,} are left",
        "training": f"about {duration(seconds)}, until {end:%Y-%m-%d %H:%M} if it began now",
        "evaluation": evaluation,
        "memory": _peak_memory(),
    }
    print_facts("Dry run: from two steps on one batch, and the validation of one", estimate)


def _timed_twice(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a first call, which may trace and compile, and of a second."""
    times = [time.monotonic()]
    for _ in range(2):
        function()
        times.append(time.monotonic())
    return times[1] - times[0], times[2] - times[1]


def _peak_memory() -> str:
    """The most memory that this process has held so far, and of each GPU where TensorFlow tells."""
    held = {"this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    for i in range(len(tf.config.get_visible_devices("GPU"))):
        with contextlib.suppress(ValueError, RuntimeError, tf.errors.OpError):  # not all kinds of devices tell
            held[f"GPU:{i}"] = tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"]
    return ", ".join(f"{n_bytes / 1e6:,.0f} MB of {name}" for name, n_bytes in held.items()) + " at its peak so far"
