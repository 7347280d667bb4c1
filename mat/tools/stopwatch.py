"""Timing of calls, each until the device is done."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def timed(function: Callable, *arguments: Any, **keywords: Any) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = function(*arguments, **keywords)
    tf.test.experimental.sync_devices()
    return time.perf_counter() - start, result


class Stopwatch:
    """Seconds of repeated calls of a function with the same arguments.

    The first call, which traces and compiles, is made at once and counts as `first_seconds` alone, not among the `seconds`.
    """

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = functools.partial(function, *arguments)
        self.first_seconds, _ = timed(self.call)
        self.seconds: list[float] = []

    def measure(self, n_calls: int = 1) -> None:
        """Make calls and note their seconds."""
        self.seconds += [timed(self.call)[0] for _ in range(n_calls)]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)
