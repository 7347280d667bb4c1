"""The device: which one, how precisely and how fast it computes, and what happens when its memory does not suffice."""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from mat.cli.errors import UserError
from mat.cli.text import single_line

CPU_INFO = pathlib.Path("/proc/cpuinfo")
# Of the environment, by which libraries compute float32 in fewer bits, or TensorFloat-32 in more.
PRECISION_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE")
_FAST_MATH = re.compile(r"--xla_\w*enable_fast_math(?:=(?!false|0)\S*)?(?!\S)")  # a flag of XLA that is not off
# What libraries say of it; status 1 is oneDNN's.
_OUT_OF_MEMORY = re.compile(r"(?i:out of memory|(?:failed|unable) to allocate)|\bOOM\b|ALLOC_FAILED|exception:Status: 1,")
_XLA_UNSUPPORTED = re.compile(r"Detected unsupported operations|tf2xla conversion failed")
# TensorFlow's file system calls these exhausted resources too.
_OTHER_RESOURCES = re.compile(r"No space left on device|Disk quota exceeded|Too many (open files|links)")


def configure(*, precision: str, deterministic: bool) -> None:
    """Set how TensorFlow computes: `tensorfloat32`, else its default, lets GPUs round the factors of float32 products to 10 bits."""
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tensorfloat32")
    if deterministic:
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def restored_settings() -> Iterator[None]:
    """After the block TensorFlow computes as before it: what `configure` sets holds for the whole process.

    Determinism, where it stays on, turns random operations without a seed into errors. TensorFlow has no public name for turning it off.
    """
    from tensorflow.python.framework import config

    tensorfloat32 = tf.config.experimental.tensor_float_32_execution_enabled()
    deterministic = config.is_op_determinism_enabled()
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tensorfloat32)
        if not deterministic:
            config.disable_op_determinism()


def use_xla(jit_compile: bool | str) -> bool:
    """Whether to compile with XLA: what the config's key says, and for `auto`, whether there is a GPU."""
    return bool(tf.config.get_visible_devices("GPU") if jit_compile == "auto" else jit_compile)


def device_name() -> str:
    """The GPUs by name, or the CPU and its usable cores."""
    gpus = _gpu_details()
    if not gpus:
        return f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return ", ".join(gpu.get("device_name", f"GPU:{i}") for i, gpu in enumerate(gpus))


def bfloat16_is_fast() -> bool | None:
    """Whether the device computes in bfloat16 by itself, so that `mixed_bfloat16` is faster than float32; None where this is not known."""
    if _gpu_details():
        return tensorfloat32_is_fast()
    flags = re.search(r"^flags\b.*", CPU_INFO.read_text(), re.MULTILINE) if CPU_INFO.exists() else None
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags[0])) if flags else None


def tensorfloat32_is_fast() -> bool | None:
    """Whether the device computes in TensorFloat-32, which is faster than float32; None where this is not known. No CPU does."""
    capabilities: list[Any] = [gpu.get("compute_capability") for gpu in _gpu_details()] or [(0, 0)]
    return None if None in capabilities else min(capabilities) >= (8, 0)  # Ampere, which has bfloat16 too


def _gpu_details() -> list[dict[str, Any]]:
    return [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]


def precision_overrides(precision: str) -> str:
    """The variables of the environment that change what the config's precision computes, such as `ONEDNN_DEFAULT_FPMATH_MODE=BF16`."""
    harmless = {} if precision == "tensorfloat32" else {"NVIDIA_TF32_OVERRIDE": "0"}
    values = {name: os.environ.get(name, "") for name in PRECISION_VARIABLES}
    found = [f"{name}={value}" for name, value in values.items() if value.lower() not in ("", "strict", harmless.get(name))]
    flags = [f"XLA_FLAGS={flag}" for flag in _FAST_MATH.findall(os.environ.get("XLA_FLAGS", ""))]
    return single_line(", ".join(found + flags))


@contextlib.contextmanager
def report_device_errors(memory_advice: Callable[[], str]) -> Iterator[None]:
    """Within the block, memory that does not suffice, of the GPU or of the machine, ends in a `UserError` with this advice.

    So do operations of an own network that XLA cannot compile.
    """
    try:
        yield
    except (tf.errors.OpError, MemoryError) as error:
        text = re.sub(r"\{\{.*?\}\} *", "", str(error))  # names of nodes
        if unsupported := _XLA_UNSUPPORTED.search(text):
            reason = single_line(text[unsupported.start() :])
            raise UserError(f"XLA cannot compile an operation of the network ({reason}). Set jit_compile: false") from None
        exhausted = isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)) and not _OTHER_RESOURCES.search(text)
        said = [line for line in text.splitlines() if _OUT_OF_MEMORY.search(line)]
        if not exhausted and not said:
            raise
        reason = single_line((said or text.splitlines() or ["Python can take no more"])[0])
        raise UserError(f"out of memory ({reason}). {memory_advice()}") from None
