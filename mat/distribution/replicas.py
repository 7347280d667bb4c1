"""What a replica does of a batch that several share, and the sums over all of them.

A replica is a device with its copy of the network and the bank. Of a batch of `B` images each of `R` replicas gets a share of
ceil(B / R), in the order of the batch: replica r those from number r * ceil(B / R) on.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

FILLING = -1  # in place of the number of an example: any image, which counts neither in losses nor in accuracies


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The replicas of a worker among all that share a batch."""

    first: int = 0  # number of its first one, among all of them
    count: int = 1  # how many it has
    total: int = 1  # R

    def shares_of(self, batches: np.ndarray) -> np.ndarray:
        """What these replicas get of batches of example numbers [n, B], batch by batch: [n * count, ceil(B / R)].

        Where a batch does not come out even, the last shares are filled up with `FILLING`.
        """
        n_batches, batch_size = batches.shape
        share = -(-batch_size // self.total)
        filled = np.pad(batches, ((0, 0), (0, share * self.total - batch_size)), constant_values=FILLING)
        return filled.reshape(n_batches, self.total, share)[:, self.first : self.first + self.count].reshape(-1, share)


ONE_REPLICA = Replicas()


def replica_number() -> tf.Tensor:
    """The number of the replica that calls, int32 [] in 0 .. R - 1."""
    return tf.convert_to_tensor(tf.distribute.get_replica_context().replica_id_in_sync_group)


def n_replicas() -> int:
    """R, how many replicas share a batch, of the strategy at hand."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def own_share(values: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """This replica's share of what all replicas were given, along an axis that R divides."""
    size = [*values.shape]
    size[axis] //= n_replicas()
    begin = [replica_number() * size[axis] if i == axis else 0 for i in range(len(size))]
    return tf.slice(values, begin, size)


def at_own_place(share: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """This replica's share along an axis at its place among those of all replicas, zeros elsewhere: summed over them, all shares."""
    shape = [*share.shape]
    begin, others = replica_number() * shape[axis], (n_replicas() - 1) * shape[axis]
    padded = tf.pad(share, [[begin, others - begin] if i == axis else [0, 0] for i in range(len(shape))])
    shape[axis] += others
    return tf.ensure_shape(padded, shape)


def sum_over_replicas(values: Any) -> Any:
    """The sums over all replicas of tensors of one type, in the structure that they come in; called by every replica."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def mean_over_replicas(values: Any) -> Any:
    """As `sum_over_replicas`, the means."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)


def assign_copy(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assign to the calling replica's own copy of a variable; for values that are the same on all replicas."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.cast(value, variable.dtype))


def add_to_copy(variable: tf.Variable, value: tf.Tensor) -> None:
    """As `assign_copy`, adding to it."""
    tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=tf.cast(value, variable.dtype))
