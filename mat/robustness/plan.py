"""The grid of universal patch attacks: which patches are fitted, in which chunks, and what is drawn for them on the host.

Shapes: `T` iterations, patches `h` x `w`.
"""

import dataclasses
import itertools

import numpy as np

from mat.seeds import generator

ITERATION_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the curve, in units of the grid's iterations
LARGEST_SQUARE = 0.5  # side of the first squares of the random search, in units of the patch


@dataclasses.dataclass(frozen=True)
class Restart:
    """One patch to be fitted: the attack, where it starts and how it goes on.

    Attributes:
        attack: "white_box" | "gradient_free".
        target: the class that images are driven to, or None for away from their own.
        start: "random" | "data" | "grey" | "bank".
        step_size: of the first iteration, in units of the pixel range; None without gradients.
        repeat: which of the restarts that agree in all of the above.
        n_iterations: T.
        patch_shape: (h, w, 3).
        series: what it is fitted for: "grid" | "curve".
    """

    attack: str
    target: int | None
    start: str
    step_size: float | None
    repeat: int
    n_iterations: int
    patch_shape: tuple
    series: str = "grid"

    @property
    def stream(self):
        """Name of its random stream, which all points of a curve share, but not with the grid."""
        goal = "untargeted" if self.target is None else f"target{self.target}"
        step = "" if self.step_size is None else f"-step{self.step_size!r}"
        curve = "-curve" if self.series == "curve" else ""
        return f"{self.attack}-{goal}-{self.start}{step}-{self.repeat}{curve}"

    @property
    def name(self):
        """Its name in the report and of its file."""
        height, width, _ = self.patch_shape
        return self.stream + (f"-{self.n_iterations}-{height}x{width}" if self.series == "curve" else "")


def plan_grid(protocol, *, n_classes, patch_shape, seed, has_bank):
    """The restarts of the grid: targets x starts x step sizes x repeats, white-box ones first.

    Args:
        protocol: an `EvaluationConfig`.
        n_classes: targets are drawn from 0 .. n_classes - 1.
        patch_shape: (h, w, 3).
        seed: the config's seed.
        has_bank: whether patches can start from a trained bank.

    Returns:
        list of `Restart`.
    """
    n_targets = min(protocol.n_targets, n_classes)
    drawn = generator(seed, "evaluation/targets").permutation(n_classes)[:n_targets]
    targets = [None, *sorted(int(target) for target in drawn)]
    starts = [start for start in protocol.starts if start != "bank" or has_bank]
    grid = [
        Restart("white_box", target, start, step_size, repeat, protocol.iterations, patch_shape)
        for target in targets
        for start in starts
        for step_size in protocol.step_sizes
        for repeat in range(protocol.restarts)
    ]
    if "gradient_free" in protocol.attacks:
        grid += [
            Restart("gradient_free", target, "random", None, repeat, protocol.search_iterations, patch_shape)
            for target in targets
            for repeat in range(protocol.restarts)
        ]
    return grid


def curve_restarts(protocol, strongest, image_size):
    """The restarts of the curves, which fit the `strongest` of the grid again at several numbers of iterations and sizes.

    At the grid's own too: the strongest of many are strong by luck as well, which no other point of a curve has.
    """
    restarts = []
    for restart in strongest:
        restart = dataclasses.replace(restart, series="curve")
        numbers = [max(1, round(factor * restart.n_iterations)) for factor in ITERATION_FACTORS]
        restarts += [dataclasses.replace(restart, n_iterations=number) for number in numbers]
        shapes = scaled_shapes(restart.patch_shape, protocol.patch_scales, image_size)
        restarts += [dataclasses.replace(restart, patch_shape=shape) for shape in shapes]
    return list(dict.fromkeys(restarts))


def scaled_shapes(patch_shape, scales, image_size):
    """The patch shapes of the patch-size curve, but for the shape itself and those that do not fit into the image."""
    shapes = {tuple(max(1, round(scale * side)) for side in patch_shape[:2]) for scale in scales}
    return [(*shape, 3) for shape in sorted(shapes) if max(shape) <= image_size and shape != tuple(patch_shape[:2])]


def cosine_decay(n_iterations):
    """Factors of the step size, from 1 towards 0 over the iterations; float32 [T]."""
    return (0.5 * (1 + np.cos(np.pi * np.arange(n_iterations) / n_iterations))).astype(np.float32)


def draw_squares(rng, progress, patch_shape):
    """What the random search tries: squares that shrink as it goes on, in the corners of the color cube.

    Args:
        rng: a NumPy generator.
        progress: float [T], how far the search is, from 0 to 1.
        patch_shape: (h, w, 3).

    Returns:
        (row, column, side) int32 [T, 3], within the patch, and colors float32 [T, 3], each 0 or 1.
    """
    height, width, channels = patch_shape
    sides = np.maximum(1, np.round(LARGEST_SQUARE * min(height, width) * (1 - np.minimum(progress, 1)))).astype(np.int32)
    sides[progress >= 1] = 0  # beyond the end nothing is painted
    squares = np.stack([rng.integers(0, height - sides + 1), rng.integers(0, width - sides + 1), sides], axis=-1).astype(np.int32)
    return squares, rng.integers(0, 2, size=(len(sides), channels)).astype(np.float32)


def draw_offsets(rng, shape, image_size, patch_shape):
    """Offsets (row, column) int32 [*shape, 2] from a NumPy generator, uniform over all positions of a patch, both ends included."""
    rows = rng.integers(image_size - patch_shape[0] + 1, size=shape, dtype=np.int32)
    return np.stack([rows, rng.integers(image_size - patch_shape[1] + 1, size=shape, dtype=np.int32)], axis=-1)


def grid_offsets(image_size, patch_shape):
    """Where a patch lies at the corners, the edges and in the middle of an image: a list of distinct (row, column), at most nine."""
    ends = [image_size - side for side in patch_shape[:2]]
    return list(dict.fromkeys(itertools.product(*([0, end // 2, end] for end in ends))))


def chunks(restarts, size):
    """Restarts in chunks of at most `size`, each of one attack, number of iterations and patch shape.

    The chunks of a kind are of one length, so that one compiled function fits them all: the last one is filled up with copies of its
    last restart.

    Yields:
        (restarts, the same filled up), both lists.
    """
    groups = {}
    for restart in restarts:
        groups.setdefault((restart.attack, restart.n_iterations, restart.patch_shape), []).append(restart)
    for group in groups.values():
        per_chunk = -(-len(group) // -(-len(group) // size))
        for start in range(0, len(group), per_chunk):
            chunk = group[start : start + per_chunk]
            yield chunk, chunk + chunk[-1:] * (per_chunk - len(chunk))
