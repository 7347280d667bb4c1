"""The process of a command: its streams, its settings, and TensorFlow's start with what it says of GPUs."""

import os
import re
import subprocess
import sys

from mat.cli.console import console, quiet_stderr
from mat.cli.errors import UserError
from mat.cli.text import single_line

DRIVER_PATHS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")  # one is there where NVIDIA's driver is
# Values by which users and schedulers keep GPUs from a process.
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"), "NVIDIA_VISIBLE_DEVICES": ("", "void", "none")}
MAX_REASONS = 8
# A line of TensorFlow's log, `E0000 00:00:1795594202.222893 5880 cuda.cc:52] text` or `2026-01-01 12:00:00.1: E cuda.cc:52] text`.
_LOG_LINE = re.compile(r"^(?:[\d-]+ [\d:.]+: )?([IWEF])(?:\d+ [\d:.]+ +\d+)? \S+:\d+\] (.*)", re.MULTILINE)


def prepare_process() -> None:
    """Make a command independent of where it was started from: its standard streams, a notebook's graphics, the user's Keras settings."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed by the shell: the next file to be opened would get its number, and what is printed
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a notebook's
            stream.reconfigure(errors="backslashreplace")  # characters that it cannot show become escapes
    os.environ["MPLBACKEND"] = "agg"  # no command shows a window
    os.environ["KERAS_HOME"] = os.devnull  # has no keras.json, and none can be written


def check_keras_backend() -> None:
    """Refuse a `KERAS_BACKEND` other than TensorFlow, with a `UserError`."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise UserError(f"KERAS_BACKEND={backend}: Keras must run on TensorFlow here. Unset KERAS_BACKEND, or set it to tensorflow")


def load_tensorflow() -> None:
    """Import TensorFlow without its greetings; a GPU that it should find and does not is told, with the reasons."""
    with quiet_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    hidden = any(os.environ.get(name, "all").split(",")[0].strip() in values for name, values in NO_GPUS.items())
    if gpus or hidden or not any(map(os.path.exists, DRIVER_PATHS)):
        return
    console.print("WARNING: this machine has an NVIDIA driver, and TensorFlow finds no GPU: it computes on the CPU. It says:")
    for reason in _gpu_reasons() or ["nothing; it may be built for CPUs only"]:
        console.print(f"  {reason}")
    console.print(
        '  For the GPU: pip install "tensorflow[and-cuda]" in .venv; start a container with --gpus all. For the CPU, without this warning: '
        "set CUDA_VISIBLE_DEVICES="
    )


def _gpu_reasons() -> list[str]:
    """What TensorFlow's log says of GPUs, asked of another process: this one has held back all but errors from the start."""
    command = [sys.executable, "-c", "import tensorflow as tf; tf.config.list_physical_devices('GPU')"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    try:  # from /, where nothing hides a module
        log = subprocess.run(command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stderr
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [single_line(text) for level, text in _LOG_LINE.findall(log.decode(errors="replace")) if level != "I" or "GPU" in text]
    return list(dict.fromkeys(lines))[:MAX_REASONS]
