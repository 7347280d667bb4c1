"""The start and the end of every command: its streams and settings, TensorFlow, one message on standard error and an exit status."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from mat.cli.console import console, quiet_stderr
from mat.cli.errors import LostWorkerError, NonFiniteLossError, StoppedError, UserError
from mat.cli.signals import in_command
from mat.cli.text import single_line

DRIVER_PATHS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")  # one is there where NVIDIA's driver is
# Values by which users and schedulers keep GPUs from a process.
_NO_GPUS = {"CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"), "NVIDIA_VISIBLE_DEVICES": ("", "void", "none")}
_MAX_REASONS = 8
# A line of TensorFlow's log, `E0000 00:00:1795594202.222893 5880 cuda.cc:52] text` or `2026-01-01 12:00:00.1: E cuda.cc:52] text`.
_LOG_LINE = re.compile(r"^(?:[\d-]+ [\d:.]+: )?([IWEF])(?:\d+ [\d:.]+ +\d+)? \S+:\d+\] (.*)", re.MULTILINE)


def run_command(program: str, parse_arguments: Callable[..., Any], command: Callable[..., Any], arguments: Any = None) -> int:
    """Run a command and report how it ended, in place of a traceback where it is not a bug.

    Args:
        program: the name before the message, such as `mat-train`.
        parse_arguments: makes of `arguments` (None: those of the process) what `command` takes, or ends the process as for `--help`.
        command: may return an exit status of its own.

    Returns:
        The exit status: 0 done, 2 the user's input is at fault, 3 a non-finite loss, 4 another worker is gone, 130 Ctrl-C, 143 SIGTERM,
        129 SIGHUP.
    """
    prepare_process()
    token = in_command.set(True)
    try:
        parsed = parse_arguments(arguments)
        backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
        if backend != "tensorflow":
            raise UserError(f"KERAS_BACKEND={backend}: Keras must run on TensorFlow here. Unset KERAS_BACKEND, or set it to tensorflow")
        return command(parsed) or 0
    except (UserError, NonFiniteLossError, LostWorkerError, StoppedError) as error:
        message, status = str(error), error.exit_status
    except UnicodeEncodeError as error:
        text, status = single_line(ascii(error.object)), 2
        message = f"{text}: has characters that {error.encoding} does not have. Set PYTHONUTF8=1, or use a name without them"
    except KeyboardInterrupt:
        message, status = "interrupted; run the same command again", 130
    finally:
        in_command.reset(token)
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program}: {message}", file=sys.stderr)
    return status


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


def load_tensorflow() -> None:
    """Import TensorFlow without its greetings; a GPU that it should find and does not is told, with the reasons."""
    with quiet_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    hidden = any(os.environ.get(name, "all").split(",")[0].strip() in values for name, values in _NO_GPUS.items())
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
    return list(dict.fromkeys(lines))[:_MAX_REASONS]
