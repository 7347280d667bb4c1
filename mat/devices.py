"""What the program runs on."""

import os
import pathlib

import tensorflow as tf

CPU_INFO = pathlib.Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of x86 CPUs
BFLOAT16_CAPABILITY = (8, 0)  # of NVIDIA GPUs


def use_xla(jit_compile):
    """Whether to compile with XLA: what the config's key says, and for `auto`, whether there is a GPU."""
    return bool(tf.config.list_physical_devices("GPU")) if jit_compile == "auto" else jit_compile


def device_name():
    """The GPUs by name, or the CPU and its usable cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)


def bfloat16_is_fast():
    """Whether the device computes in bfloat16 by itself, so that `mixed_bfloat16` is faster than float32; None where this is not known."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
        return None if None in capabilities else min(capabilities) >= BFLOAT16_CAPABILITY
    try:
        flags = next(line for line in CPU_INFO.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return None
    return bool(BFLOAT16_FLAGS & set(flags.split()))
