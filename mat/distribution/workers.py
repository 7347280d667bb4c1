"""What the workers of a run agree upon, and what happens when one of them is lost."""

import contextlib
import functools
import pathlib
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from mat.cli.errors import LostWorkerError, StoppedError, UserError
from mat.cli.signals import noted_signals
from mat.distribution.replicas import at_own_place, sum_over_replicas
from mat.distribution.strategy import n_workers, run_everywhere
from mat.distribution.tf_config import read_cluster

# What TensorFlow says where another worker does not answer any more.
_LOST = re.compile(r"Collective ops is aborted|[Hh]eartbeat|[Cc]oordination|Failed to connect|Socket closed|Connection reset")
_SEEN_WITHIN = 60.0  # seconds: network file systems may show new files late
_TASK = re.compile(r"/job:(chief|worker)/replica:0/task:(\d+)")


def any_worker(strategy: tf.distribute.Strategy, flags: Sequence[bool]) -> list[bool]:
    """For each flag whether it is set on any worker. All workers must call this at the same points of a run."""
    if n_workers(strategy) == 1:
        return list(flags)
    return [bool(count) for count in _table(strategy, flags).any(axis=0)]


def check_same(strategy: tf.distribute.Strategy, facts: dict[str, str]) -> None:
    """Refuse to go on where workers differ in a fact: name -> value. All of them must call this at the same points of a run.

    Raises:
        UserError: names a fact in which a worker differs from the chief; every worker raises it.
    """
    if n_workers(strategy) == 1:
        return
    table = _table(strategy, [zlib.crc32(value.encode()) for value in facts.values()])
    for i, name in enumerate(facts):
        if differing := np.flatnonzero(table[:, i] != table[0, i]).tolist():
            worker = differing[0] * n_workers(strategy) // len(table)
            remedy = "Give all of them the same command, the same data and the same result directory"
            raise UserError(f"worker {worker} has another {name} than worker 0. {remedy}")


def check_shared(strategy: tf.distribute.Strategy, file: pathlib.Path) -> None:
    """Refuse to go on where a worker does not see a file that the chief has written. All of them must call this at the same point of a run.

    Raises:
        UserError: on every worker.
    """
    if n_workers(strategy) == 1:
        return
    any_worker(strategy, [False])  # returns when the chief is here, and has written it
    end = time.monotonic() + _SEEN_WITHIN
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.1)
    (missing,) = any_worker(strategy, [not file.exists()])
    if missing:
        raise UserError(f"{file.parent}: not all workers see what worker 0 writes there. Set base_result_dir to a place that they share")


@contextlib.contextmanager
def stopped_together(strategy: tf.distribute.Strategy, message: str) -> Iterator[Callable[[], None]]:
    """Within the block a stop signal to any of several workers ends all of them, by a `StoppedError` with this message.

    They end in the function that the block gets, which all of them must call at the same points. A single worker's signals are handled
    as around the block.
    """
    if n_workers(strategy) == 1:
        yield lambda: None
        return
    with noted_signals() as request:

        def check() -> None:
            if number := int(_table(strategy, [request.received]).max()):
                raise StoppedError(message, number)

        yield check


def _table(strategy, numbers):
    """The numbers that all replicas give, int64 [R, n]."""
    return _compiled_table(strategy)(tf.constant([numbers], tf.int64)).numpy()


@functools.cache
def _compiled_table(strategy):
    """A compiled function from a row [1, n] of each replica to the rows of all, [R, n]."""

    return tf.function(lambda row: run_everywhere(strategy, lambda row: sum_over_replicas(at_own_place(row)), row), autograph=False)


@contextlib.contextmanager
def report_lost_workers(remedy: str = "See what it says, and start all of them again") -> Iterator[None]:
    """Within the block a worker that does not answer any more ends in a `LostWorkerError` with the remedy, a sentence."""
    try:
        yield
    except tf.errors.OpError as error:
        cluster, text = read_cluster(), str(error)
        if cluster is None or not _LOST.search(text):
            raise
        named = [cluster.number(kind, int(index)) for kind, index in _TASK.findall(text)]
        number = next((number for number in named if number != cluster.index), 0)  # the chief is asked without its name
        who = f"worker {number} ({cluster.addresses[number]})"
        raise LostWorkerError(f"{cluster.name}: {who} does not answer any more, so that this one ends too. {remedy}") from None
