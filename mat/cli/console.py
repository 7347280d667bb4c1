"""What the user sees: the console, TensorFlow's start-up noise kept away, progress that is live in a terminal and plain lines in a pipe."""

import contextlib
import errno
import os
import subprocess
import sys

from rich.console import Console


class _Output:
    """Standard output as it is at the moment; where its reader is gone (a closed pipe or terminal) the text goes nowhere.

    A run of hours does not end because nobody watches.
    """

    def __getattr__(self, name):
        return getattr(sys.stdout, name)

    def write(self, text):
        """Write text; returns its length."""
        with contextlib.suppress(OSError):
            if sys.stdout is not None:  # closed by the shell
                sys.stdout.write(text)
        return len(text)

    def flush(self):
        """Pass on what is written."""
        if sys.stdout is None:
            return
        try:
            sys.stdout.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # a full disk may have space again
                return
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())


# Not of the environment: FORCE_COLOR, which notebooks set for pipes too, and COLUMNS, which need not be a width.
_ENVIRONMENT = {name: os.environ[name] for name in ("TERM", "COLORTERM", "NO_COLOR") if name in os.environ}

console = Console(file=_Output(), highlight=False, markup=False, soft_wrap=True, _environ=_ENVIRONMENT)

# The program of a process that shows what it was sent once the sender is gone, however it ended.
_SHOW_AT_THE_END = "import sys; text = sys.stdin.buffer.read(); sys.stderr.buffer.write(text)"


def can_redraw():
    """Whether the output is a terminal on which a line can be drawn again in its place."""
    return console.is_terminal and not console.is_dumb_terminal


@contextlib.contextmanager
def quiet_stderr():
    """Hold back what native code writes to standard error, such as TensorFlow's greetings; shown after all if the block fails.

    It is also shown if the process dies in the block, as by an abort in native code: another process holds it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    saved = os.dup(2)
    holder = subprocess.Popen(  # in a session of its own, which the signals of a terminal or a job's end do not reach
        [sys.executable, "-I", "-S", "-c", _SHOW_AT_THE_END], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    os.dup2(holder.stdin.fileno(), 2)
    failed = False
    try:
        yield
    except Exception:
        failed = True
        raise
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        if not failed:
            holder.kill()
        holder.communicate()  # ends its input and waits for it


def print_facts(title, facts):
    """Print a title and, aligned below it, names and values."""
    console.print(title, style="bold")
    for name, value in facts.items():
        console.print(f"  {name:<{max(map(len, facts))}}  {value}")


def print_table(title, header, rows):
    """Print a title and, below it, rows of texts in aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    console.print(title, style="bold")
    for line in (header, *rows):
        console.print("  " + "   ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
