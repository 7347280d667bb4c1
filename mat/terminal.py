"""What the user sees: the console, TensorFlow's start-up noise kept away, progress that is live in a terminal and plain lines in a pipe."""

import contextlib
import datetime
import errno
import os
import subprocess
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_LINE_SECONDS = 20.0  # between progress lines where the output is not a terminal
REFRESH_SECONDS = 0.5  # between updates of the live line; an update waits for the device


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


def duration(seconds):
    """A time span in words: `48 s`, `3 min 20 s`, `5 h 12 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def interval_text(estimate):
    """An accuracy of a report with its 95 % interval: `28.1% (25.4% to 30.9%)`."""
    return f"{estimate['accuracy']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"


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


class ProgressLine:
    """A bar with a text beside it, redrawn in place in a terminal; elsewhere the text as a line every 20 seconds.

    Args:
        total: what `update` counts up to; None if unknown.
        prefix: a text before the bar.
    """

    def __init__(self, total, prefix=""):
        self.total = total
        self._live = None
        if can_redraw():
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
                transient=True,
                redirect_stdout=False,  # it would write past `_Output`
            )
            self._task = self._live.add_task(prefix, total=total, text="")
        self._prefix = prefix
        self._last_line = time.monotonic()

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def update(self, done, text):
        """Show that `done` of the total is done."""
        if self._live:
            self._live.update(self._task, completed=done, text=text)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            console.print(f"{self._prefix} {text}".strip())
            self._last_line = time.monotonic()


def track(items, total, prefix):
    """Go through `items`, showing how many of `total` are done."""
    with ProgressLine(total, prefix) as line:
        for done, item in enumerate(items, start=1):
            yield item
            if done % 100 == 0 or done == total:
                line.update(done, f"{done}/{total}")


class TrainingProgress:
    """The progress of a training run: loss, accuracy, images/s and time left, and an estimate once the first steps have run.

    Args:
        n_epochs: epochs of the whole run.
        steps_per_epoch: steps in each.
        batch_size: images in a step.
        first_step: how many steps of the run were made before.
    """

    ESTIMATE_AFTER_STEPS = 10

    def __init__(self, *, n_epochs, steps_per_epoch, batch_size, first_step=0):
        self.n_epochs, self.steps_per_epoch, self.batch_size = n_epochs, steps_per_epoch, batch_size
        self.first_step = first_step
        self.total_steps = n_epochs * steps_per_epoch
        self.images_per_second = 0.0
        self._line = ProgressLine(self.total_steps)
        self._started = self._epoch_started = self._last_update = time.monotonic()
        self._after_first_step = None
        self._rate_from = (self._started, self.first_step)  # when and after which step images/s start to count
        self._estimate_at = min(first_step + self.ESTIMATE_AFTER_STEPS, self.total_steps)

    def __enter__(self):
        self._line.__enter__()
        return self

    def __exit__(self, *exception):
        self._line.__exit__(*exception)

    def due(self, done):
        """Whether to call `update` after step number `done` of the run, counted from 1."""
        return done in (self.first_step + 1, self._estimate_at) or time.monotonic() - self._last_update >= REFRESH_SECONDS

    def update(self, done, loss, accuracy):
        """Show the state after step number `done` of the run: means over the epoch so far."""
        now = self._last_update = time.monotonic()
        if done == self.first_step + 1:  # the step that traces and compiles tells nothing about the next ones
            self._after_first_step = now
            self._rate_from = (now, done)
            return
        rate_start, rate_done = self._rate_from
        self.images_per_second = (done - rate_done) * self.batch_size / (now - rate_start)
        seconds_per_step = (now - self._after_first_step) / (done - self.first_step - 1)
        left = seconds_per_step * (self.total_steps - done)
        if done == self._estimate_at:
            end = datetime.datetime.now() + datetime.timedelta(seconds=left)
            console.print(
                f"First step {self._after_first_step - self._started:.1f} s with tracing, then {seconds_per_step:.3f} s a step: "
                f"about {duration(left)} to go, until {end:%H:%M}"
            )
        epoch, step = divmod(done - 1, self.steps_per_epoch)
        self._line.update(
            done,
            f"epoch {epoch + 1}/{self.n_epochs}  step {step + 1}/{self.steps_per_epoch}  loss {loss:.3f}  accuracy {accuracy:.3f}  "
            f"{self.images_per_second:.0f} images/s  {duration(left)} left",
        )

    def end_epoch(self, epoch, *, loss, accuracy, validation_accuracy):
        """Print the line of a finished epoch."""
        now = time.monotonic()
        seconds, self._epoch_started = now - self._epoch_started, now
        self._rate_from = (now, (epoch + 1) * self.steps_per_epoch)
        console.print(
            f"epoch {epoch + 1}/{self.n_epochs}  loss {loss:.3f}  accuracy {accuracy:.3f} (training)  "
            f"validation accuracy {validation_accuracy:.3f} (clean)  {duration(seconds)}"
        )


class WorkProgress:
    """The progress of work of a known amount: what is at hand, and the time left.

    Args:
        total: the amount of all work.
    """

    def __init__(self, total):
        self.total = total
        self._done = self._skipped = 0
        self._line = ProgressLine(total)
        self._started = time.monotonic()

    def __enter__(self):
        self._line.__enter__()
        return self

    def __exit__(self, *exception):
        self._line.__exit__(*exception)

    def skip(self, amount):
        """Count an amount as done that took no time."""
        self._skipped += amount

    def advance(self, amount, text):
        """Count an amount as done, and show `text` beside it."""
        self._done += amount
        done = self._done + self._skipped
        left = (time.monotonic() - self._started) / self._done * max(self.total - done, 0)
        self._line.update(done, f"{min(done / self.total, 1):.0%}  {text}  {duration(left)} left")
