"""Progress of long work: a live line in a terminal, plain lines in a pipe."""

import datetime
import time

from rich.progress import BarColumn, Progress, TextColumn

from mat.cli.console import can_redraw, console

PLAIN_LINE_SECONDS = 20.0  # between progress lines where the output is not a terminal
REFRESH_SECONDS = 0.5  # between updates of the live line; an update waits for the device


def duration(seconds):
    """A time span in words: `48 s`, `3 min 20 s`, `5 h 12 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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
