"""What shells, notebooks and users' settings do to a command, kept from doing harm; and TensorFlow's start, with what it says of GPUs."""

import os
import pathlib
import re
import subprocess
import sys

from mat.cli.console import console, quiet_stderr
from mat.cli.errors import UserError
from mat.cli.text import single_line

# One of them is there where an NVIDIA driver is, the last under WSL.
DRIVER_PATHS = tuple(map(pathlib.Path, ("/proc/driver/nvidia/version", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")))
NO_GPUS = {  # values by which users and schedulers keep GPUs from a process
    "CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"),
    "NVIDIA_VISIBLE_DEVICES": ("", "void", "none"),
}
FIND_GPUS = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
FIND_SECONDS = 60  # at most, for TensorFlow to say what it finds
MAX_REASONS = 8
# A line of TensorFlow's log, `E0000 00:00:1795594202.222893 5880 cuda.cc:52] text` or `2026-01-01 12:00:00.1: E cuda.cc:52] text`.
LOG_LINE = re.compile(r"^(?:[\d-]+ [\d:.]+: )?([IWEF])(?:\d+ [\d:.]+ +\d+)? \S+:\d+\] (.*)", re.MULTILINE)


def prepare_process():
    """Make a command's process independent of where it was started from. To be called before anything is printed or opened.

    Closed standard streams lead nowhere, characters that an output cannot show become escapes, and neither the graphics of a notebook
    nor the Keras settings of the user count.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:  # closed by the shell: the next file to be opened would get the number, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a notebook's
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # no command shows a window
    os.environ["KERAS_HOME"] = os.devnull  # has no keras.json, and none can be written


def check_keras_backend():
    """Refuse a `KERAS_BACKEND` other than TensorFlow.

    Raises:
        UserError: it is another one.
    """
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise UserError(f"KERAS_BACKEND={backend}: Keras must run on TensorFlow here. Unset KERAS_BACKEND, or set it to tensorflow")


def load_tensorflow():
    """Import TensorFlow and have it find the devices, without its greetings.

    Where this machine has an NVIDIA driver and TensorFlow finds no GPU, which nobody has hidden, the console says so, and why.
    """
    with quiet_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    hidden = any(os.environ.get(name, "all").split(",")[0].strip() in values for name, values in NO_GPUS.items())
    if gpus or hidden or not any(path.exists() for path in DRIVER_PATHS):
        return
    console.print("WARNING: this machine has an NVIDIA driver, and TensorFlow finds no GPU: it computes on the CPU. It says:")
    for reason in _gpu_reasons() or ["nothing; it may be built for CPUs only"]:
        console.print(f"  {reason}")
    console.print(
        '  For the GPU: pip install "tensorflow[and-cuda]" in .venv; start a container with --gpus all. For the CPU, without this warning: '
        "set CUDA_VISIBLE_DEVICES="
    )


def _gpu_reasons():
    """What TensorFlow's log says of GPUs and devices, a list of lines.

    Another process is asked: this one has held back all but errors from the start.
    """
    try:
        run = subprocess.run(
            [sys.executable, "-c", FIND_GPUS],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"},
            cwd="/",  # where nothing hides a module
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FIND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [single_line(text) for level, text in LOG_LINE.findall(run.stderr) if level != "I" or "GPU" in text]
    return list(dict.fromkeys(lines))[:MAX_REASONS]
