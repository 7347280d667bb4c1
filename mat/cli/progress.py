"""Progress of long work: a live line in a terminal and in a notebook, plain lines in a pipe."""

import datetime
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from mat.cli.console import console, notebook_output

_PLAIN_LINE_SECONDS = 20.0  # between progress lines where the output is not a terminal
_REFRESH_SECONDS = 0.5  # between updates of a training's line; an update waits for the device
_ESTIMATE_AFTER_STEPS = 10


def duration(seconds: float) -> str:
    """A time span in words: `48 s`, `3 min 20 s`, `5 h 12 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressLine:
    """A bar with a text and the time left beside it, redrawn in place in a terminal; the same without the bar in a notebook.

    Elsewhere a line of text every 20 seconds.
    """

    def __init__(self, total: float, prefix: str = "") -> None:
        before, after = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[text]"))
        columns = (before, BarColumn(24), after)  # stdout is not redirected: that would write past `console`
        self._live = Progress(*columns, console=console, speed_estimate_period=math.inf, transient=True, redirect_stdout=False)
        self._live.add_task(prefix, total=total, text="")
        self.task = self._live.tasks[0]
        self._last_line = time.monotonic()
        self._notebook: Any = None

    def __enter__(self) -> Any:
        self._notebook = None if console.quiet else notebook_output()
        if console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if console.is_interactive:
            self._live.stop()
        if self._notebook:
            self._notebook.update({"text/plain": ""}, raw=True)

    def show(self, done: float, text: str) -> None:
        """Show that `done` of the total is done. The time left counts from the first call: what comes before may be compilation."""
        self._live.update(self.task.id, completed=done)
        left = self.task.time_remaining
        self.task.fields["text"] = text if left is None else f"{text}  {duration(left)} left"
        line = f"{self.task.description} {self.task.fields['text']}".strip()
        if self._notebook:
            self._notebook.update({"text/plain": line}, raw=True)
        elif not console.is_interactive and time.monotonic() - self._last_line >= _PLAIN_LINE_SECONDS:
            console.print(line)
            self._last_line = time.monotonic()


def track(items: Iterable[Any], total: int, prefix: str) -> Iterator[Any]:
    """Go through `items`, showing how many of `total` are done."""
    with ProgressLine(total, prefix) as line:
        for done, item in enumerate(items, start=1):
            yield item
            if done % max(total // 1000, 1) == 0:
                line.show(done, f"{done}/{total}")


class WorkProgress(ProgressLine):
    """Progress of work of a known amount: how much of it is done, and what is at hand."""

    def skip(self, amount: float) -> None:
        """Count an amount as done that took no time."""
        self.task.completed += amount

    def advance(self, amount: float, text: str) -> None:
        """Count an amount as done, and show `text` beside it."""
        done = self.task.completed + amount
        self.show(done, f"{min(done / (self.task.total or 1), 1):.0%}  {text}")


class TrainingProgress(ProgressLine):
    """Progress of a training run of which `first_step` steps were made before: loss, accuracy, images/s, and an estimate of the time."""

    def __init__(self, *, n_epochs: int, steps_per_epoch: int, batch_size: int, first_step: int = 0) -> None:
        super().__init__(n_epochs * steps_per_epoch)
        self.images_per_second = 0.0
        self._n_epochs, self._steps_per_epoch, self._batch_size = n_epochs, steps_per_epoch, batch_size
        self._tracing_seconds = 0.0  # of the first call, which traces and compiles and tells nothing about the next ones; 0 before
        self._estimated = False
        self._estimate_at = min(first_step + _ESTIMATE_AFTER_STEPS, n_epochs * steps_per_epoch)
        self._epoch_started = self._last_update = time.monotonic()
        self._rate_from = (self._epoch_started, first_step)  # when and after which step images/s start to count

    def due(self, done: int) -> bool:
        """Whether to call `update` after step number `done` of the run, counted from 1."""
        estimate = done >= self._estimate_at and not self._estimated
        return not self._tracing_seconds or estimate or time.monotonic() - self._last_update >= _REFRESH_SECONDS

    def update(self, done: int, loss: float, accuracy: float) -> None:
        """Show the state after step number `done` of the run: means over the epoch so far."""
        now = self._last_update = time.monotonic()
        seconds, steps = now - self._rate_from[0], done - self._rate_from[1]
        self.images_per_second = steps * self._batch_size / seconds
        epoch, step = divmod(done - 1, self._steps_per_epoch)
        place = f"epoch {epoch + 1}/{self._n_epochs}  step {step + 1}/{self._steps_per_epoch}"
        self.show(done, f"{place}  loss {loss:.3f}  accuracy {accuracy:.3f}  {self.images_per_second:.0f} images/s")
        if not self._tracing_seconds:
            self._tracing_seconds, self._rate_from = seconds, (now, done)
        elif done >= self._estimate_at and not self._estimated:
            self._estimated = True
            pace, left = 1 / (self.task.speed or 1), self.task.time_remaining or 0
            end = datetime.datetime.now() + datetime.timedelta(seconds=left)
            estimate = f"then {pace:.3f} s a step: about {duration(left)} to go, until {end:%H:%M}"
            console.print(f"First step {self._tracing_seconds:.1f} s with tracing, {estimate}")

    def end_epoch(self, epoch: int, *, loss: float, accuracy: float, validation_accuracy: float) -> None:
        """Print the line of a finished epoch, counted from 0."""
        now = time.monotonic()
        seconds, self._epoch_started = now - self._epoch_started, now
        self._rate_from = (now, (epoch + 1) * self._steps_per_epoch)
        training = f"epoch {epoch + 1}/{self._n_epochs}  loss {loss:.3f}  accuracy {accuracy:.3f} (training)"
        console.print(f"{training}  validation accuracy {validation_accuracy:.3f} (clean)  {duration(seconds)}")
