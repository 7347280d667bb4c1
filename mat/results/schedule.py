"""Learning-rate schedule, also of runs that were extended to more epochs."""

import math
from collections.abc import Sequence


def learning_rate(epoch: int, *, n_epochs: int, initial_lr: float, extensions: Sequence[Sequence[int]] = ()) -> float:
    """Cosine schedule of the learning rate, from `initial_lr` in epoch 0 towards 0 at `n_epochs`.

    Args:
        epoch: counted from 0.
        n_epochs: of the run.
        initial_lr: of epoch 0.
        extensions: (epochs begun before it, `n_epochs` until then) of each extension of the run, in their order.
    """
    for n_begun, earlier in extensions:
        if epoch < n_begun:
            n_epochs = earlier
            break
    return initial_lr / 2 * (1 + math.cos(math.pi * epoch / n_epochs))


def describe_extensions(*, n_epochs: int, initial_lr: float, extensions: Sequence[Sequence[int]]) -> str:
    """How a run was extended and what its learning rate does there, in words; empty where it was not. Arguments as of `learning_rate`."""

    def rate(epoch: int) -> float:
        return learning_rate(epoch, n_epochs=n_epochs, initial_lr=initial_lr, extensions=extensions)

    trained: dict[int, int] = {}  # epochs begun -> n_epochs that they had: nothing is trained between two extensions at one epoch
    for begun, earlier in extensions:
        trained.setdefault(begun, earlier)
    lengths = [*trained.values(), n_epochs]
    told = [
        f"from {lengths[i]} to {lengths[i + 1]} epochs after epoch {begun}, where the learning rate goes from {rate(begun - 1):.3g} to "
        f"{rate(begun):.3g}"
        for i, begun in enumerate(trained)
        if begun  # else nothing was trained with the earlier schedule
    ]
    return f"{'; '.join(told)}; this is not the run of {n_epochs} epochs from the start" if told else ""
