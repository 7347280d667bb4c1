"""What the program runs on: which device, how precisely and how fast it computes, and what happens when its memory does not suffice."""

import contextlib
import os
import pathlib
import re

import tensorflow as tf

from mat.cli.errors import UserError
from mat.cli.text import single_line

CPU_INFO = pathlib.Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of x86 CPUs
TENSOR_CAPABILITY = (8, 0)  # of NVIDIA GPUs that compute in bfloat16 and in TensorFloat-32
PRECISION_VARIABLES = (  # of the environment, by which libraries compute float32 in fewer bits, or TensorFloat-32 in more
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "TF_SET_ONEDNN_FPMATH_MODE",
)
FAST_MATH = re.compile(r"--xla_\w*enable_fast_math(?:=(?!false|0)\S*)?(?!\S)")  # a flag of XLA that is not off
# What libraries say of it; status 1 is oneDNN's.
OUT_OF_MEMORY = re.compile(r"(?i:out of memory|(?:failed|unable) to allocate)|\bOOM\b|ALLOC_FAILED|exception:Status: 1,")
# TensorFlow's file system calls these exhausted resources too.
OTHER_RESOURCES = re.compile(r"No space left on device|Disk quota exceeded|Too many (open files|links)")
NODE_NAME = re.compile(r"\{\{.*?\}\} *")


def configure(*, precision, deterministic):
    """Set how TensorFlow computes, for the rest of the process.

    Args:
        precision: the config's; `tensorfloat32` lets GPUs round the factors of float32 products to 10 bits, as TensorFlow does unasked.
        deterministic: only operations that give the same result every time.
    """
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tensorfloat32")
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def use_xla(jit_compile):
    """Whether to compile with XLA: what the config's key says, and for `auto`, whether there is a GPU."""
    return bool(tf.config.get_visible_devices("GPU")) if jit_compile == "auto" else jit_compile


def device_name():
    """The GPUs by name, or the CPU and its usable cores."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)


def bfloat16_is_fast():
    """Whether the device computes in bfloat16 by itself, so that `mixed_bfloat16` is faster than float32; None where this is not known."""
    if tf.config.get_visible_devices("GPU"):
        return _gpus_have_tensor_types()
    try:
        flags = next(line for line in CPU_INFO.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return None
    return bool(BFLOAT16_FLAGS & set(flags.split()))


def tensorfloat32_is_fast():
    """Whether the device computes in TensorFloat-32, which is faster than float32; None where this is not known. No CPU does."""
    return _gpus_have_tensor_types() if tf.config.get_visible_devices("GPU") else False


def _gpus_have_tensor_types():
    """Whether all GPUs compute in bfloat16 and TensorFloat-32; None where this is not known."""
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    capabilities = [each.get("compute_capability") for each in details]
    return None if None in capabilities else min(capabilities) >= TENSOR_CAPABILITY


def precision_overrides(precision):
    """The variables of the environment that change what a precision computes, whatever the config says.

    Args:
        precision: the config's.

    Returns:
        Text such as `ONEDNN_DEFAULT_FPMATH_MODE=BF16`, several with commas between them; empty if there are none.
    """
    harmless = {} if precision == "tensorfloat32" else {"NVIDIA_TF32_OVERRIDE": "0"}
    values = {name: os.environ.get(name, "") for name in PRECISION_VARIABLES}
    found = [f"{name}={value}" for name, value in values.items() if value.lower() not in ("", "strict", harmless.get(name))]
    flags = [f"XLA_FLAGS={flag}" for flag in FAST_MATH.findall(os.environ.get("XLA_FLAGS", ""))]
    return single_line(", ".join(found + flags))


@contextlib.contextmanager
def memory_limits(advice):
    """Within the block, memory that does not suffice, of the GPU or of the machine, ends in a message.

    Args:
        advice: a function that returns what to say: the key, its value and what to do.

    Raises:
        UserError: out of memory.
    """
    try:
        yield
    except (tf.errors.OpError, MemoryError) as error:
        text = NODE_NAME.sub("", str(error))
        exhausted = isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)) and not OTHER_RESOURCES.search(text)
        said = [line for line in text.splitlines() if OUT_OF_MEMORY.search(line)]
        if not exhausted and not said:
            raise
        reason = single_line((said or text.splitlines() or ["Python can take no more"])[0])
        raise UserError(f"out of memory ({reason}). {advice()}") from None
