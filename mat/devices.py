"""What the program runs on."""

import os

import tensorflow as tf


def use_xla(jit_compile):
    """Whether to compile with XLA: what the config's key says, and for `auto`, whether there is a GPU."""
    return bool(tf.config.list_physical_devices("GPU")) if jit_compile == "auto" else jit_compile


def device_name():
    """The GPUs by name, or the CPU and its usable cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)
