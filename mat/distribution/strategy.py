"""The `tf.distribute` strategy of a run: which devices share it, their data, and calls on all of them.

A worker is a process; it has a replica for each of its GPUs, or one on the CPU. The first worker is the chief, which alone writes.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.distribution.replicas import Replicas
from mat.distribution.tf_config import EXAMPLE, read_cluster


def make_strategy(distribution: str) -> tf.distribute.Strategy:
    """The strategy that the config's `distribution` names: auto | none | mirrored | multi_worker; made once in a process.

    auto means several workers where `TF_CONFIG` names them, else all visible GPUs where there are several, else the one device. Several
    workers wait here for each other, and TensorFlow must not have computed anything before.

    Raises:
        UserError: `TF_CONFIG` is not as it must be, or names no other worker for multi_worker.
    """
    cluster = read_cluster() if distribution in ("auto", "multi_worker") else None
    if distribution == "auto":
        several = len(tf.config.get_visible_devices("GPU")) > 1
        distribution = "multi_worker" if cluster else "mirrored" if several else "none"
    if distribution == "multi_worker" and cluster is None:
        raise UserError(
            f"distribution: multi_worker needs the environment variable TF_CONFIG on every worker, such as TF_CONFIG='{EXAMPLE}'. Set it, "
            "or distribution: mirrored for the GPUs of one machine"
        )
    return _make_strategy(distribution, cluster)


@functools.cache
def _make_strategy(distribution, cluster):
    if distribution == "none":
        return tf.distribute.get_strategy()
    if distribution == "mirrored":
        return tf.distribute.MirroredStrategy()
    console.print(f"{cluster.name}: waiting for the others; Ctrl-C ends it")
    try:
        with _default_signals():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise UserError(
            "distribution: several workers must be set up before TensorFlow computes anything in this process. In place of --model FILE "
            "give a config with network: FILE; from Python, make this the first call; or set distribution: none"
        ) from None
    except tf.errors.UnknownError as error:
        if "gRPC server" not in str(error):
            raise
        address = cluster.addresses[cluster.index]
        raise UserError(f"TF_CONFIG: {address}: this process cannot listen on that port. End what uses it, or take another") from None
    if cluster.index > 0:
        console.print(f"{cluster.name}: all are here; worker 0 tells how the run goes, and writes")
        console.quiet = True
    return strategy


@contextlib.contextmanager
def _default_signals():
    """Within the block Ctrl-C ends the process: TensorFlow waits without letting Python answer. It puts its own handler of SIGTERM there.

    After the block both are handled as before.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def n_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes share the run."""
    cluster = _cluster(strategy)
    return len(cluster.addresses) if cluster else 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    cluster = _cluster(strategy)
    return cluster is None or cluster.index == 0


def _cluster(strategy):
    """The workers of a strategy; None where it has one alone."""
    return read_cluster() if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else None


def describe_strategy(strategy: tf.distribute.Strategy) -> str:
    """How many devices share the run, in words; empty where it is one alone."""
    workers, replicas = n_workers(strategy), strategy.num_replicas_in_sync
    if workers > 1:
        return f"{workers} workers, {replicas} replicas that share each batch"
    return f"{replicas} replicas that share each batch" if replicas > 1 else ""


def own_replicas(strategy: tf.distribute.Strategy) -> Replicas:
    """The replicas of this worker."""
    cluster, total = _cluster(strategy), strategy.num_replicas_in_sync
    count = total // n_workers(strategy)
    return Replicas(cluster.index * count if cluster else 0, count, total)


def next_batch(strategy: tf.distribute.Strategy, shares: Iterator[Any]) -> Any:
    """The next batch as arguments of `run_everywhere`: for each replica of this worker the next element of a data set's iterator.

    The iterator is plain: those of `Strategy.distribute_datasets_from_function` may take up to a minute to delete, at the end of every
    epoch (their background threads are not always woken up, TensorFlow 2.21).
    """
    if strategy.num_replicas_in_sync == 1:
        return next(shares)
    return strategy.experimental_distribute_values_from_function(lambda _: next(shares))


def copies(strategy: tf.distribute.Strategy, value: tf.Tensor) -> Any:
    """A copy of a tensor on the device of each replica, as an argument of `run_everywhere`."""
    if strategy.num_replicas_in_sync == 1:
        return value
    devices = iter(strategy.extended.worker_devices)

    def copy(_: tf.distribute.ReplicaContext) -> tf.Tensor:
        with tf.device(next(devices)):
            return tf.identity(value)

    return strategy.experimental_distribute_values_from_function(copy)


def run_everywhere(strategy: tf.distribute.Strategy, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on every replica; returns one replica's result, for functions whose result is the same on all of them."""
    results = strategy.run(function, args=arguments)
    return tf.nest.map_structure(lambda result: strategy.experimental_local_results(result)[0], results)
