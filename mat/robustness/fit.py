"""Fitting universal patches on training images, at random positions, as a plan says.

Shapes: `R` patches fitted side by side, `M` images in an iteration of a patch, `T` iterations, patches `h` x `w`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.distribution.workers import any_worker
from mat.patch import resize_to_patches
from mat.robustness.plan import ITERATIONS_PER_CALL, PASSES_PER_CALL, EvaluationPlan, PatchSpec, Shape, chunks, draw_offsets
from mat.robustness.universal import UNTARGETED, UniversalAttacks
from mat.seeds import generator

LARGEST_SQUARE = 0.5  # side of the first squares of the random search, in units of the patch


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What fitting and scoring call as they go on; the defaults keep and show nothing."""

    load: Callable[[str], dict[str, np.ndarray] | None] = lambda _: None  # name -> the arrays that were saved under it, or None
    save: Callable[..., None] = lambda _, **__: None  # keeps arrays under a name, to go on from after an interruption
    advance: Callable[[int, str], None] = lambda *_: None  # counts forward passes as made; with a text
    skip: Callable[[int], None] = lambda _: None  # counts forward passes that need not be made, because of what was loaded


@dataclasses.dataclass(frozen=True, eq=False)
class FittedPatch:
    """A patch to be scored. One that was not fitted has no losses and no spec."""

    name: str
    patch: np.ndarray  # float32 [h, w, 3]
    losses: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))  # [T], of its iterations
    spec: PatchSpec | None = None


def fit_patches(specs: Sequence[PatchSpec], plan: EvaluationPlan, attacks: UniversalAttacks, callbacks: Callbacks) -> list[FittedPatch]:
    """Fit patches in chunks that fit into memory, or load those that were fitted before.

    A chunk is fitted again as a whole, so that a continued evaluation computes what the uninterrupted one would have.

    Raises:
        UserError: a loss is not finite.
    """
    arrays: dict[PatchSpec, Any] = {}
    n_replicas = attacks.strategy.num_replicas_in_sync
    for chunk in chunks(specs, max(1, plan.images_at_once // plan.images_per_iteration), n_replicas):
        loaded = {spec: callbacks.load(spec.name) for spec in chunk}
        (missing,) = any_worker(attacks.strategy, [None in loaded.values()])
        if not missing:
            callbacks.skip(sum(spec.cost(plan.images_per_iteration) for spec in loaded))
            arrays |= loaded
            continue
        patches, losses = _fit_chunk(chunk, plan, attacks, callbacks.advance)
        if not np.all(np.isfinite(losses)):
            raise UserError(f"the loss became NaN or infinite while {chunk[0].name} was fitted. Give other weights, or precision: float32")
        for i, spec in enumerate(loaded):
            arrays[spec] = {"patch": patches[i], "losses": losses[:, i]}
            callbacks.save(spec.name, **arrays[spec])
    return [FittedPatch(spec.name, **arrays[spec], spec=spec) for spec in specs]


def _fit_chunk(specs, plan, attacks, advance):
    """The fitted patches [R, h, w, 3] and their losses [T, R] of specs of one attack, number of iterations and patch shape."""
    attack, n_iterations, patch_shape = specs[0].attack, specs[0].n_iterations, specs[0].patch_shape
    per_call, n_images = ITERATIONS_PER_CALL[attack], plan.images_per_iteration
    shape = [per_call, n_images] if attack == "white_box" else [n_images]  # images in a call
    rngs = [generator(plan.seed, f"evaluation/{spec.stream}") for spec in specs]
    patches = np.stack([_start(spec, rng, plan.bank, attacks) for spec, rng in zip(specs, rngs, strict=True)])
    targets = np.array([UNTARGETED if spec.target is None else spec.target for spec in specs], np.int64)
    decay = (0.5 * (1 + np.cos(np.pi * np.arange(n_iterations) / n_iterations))).astype(np.float32)  # a cosine from 1 towards 0
    steps = np.array([spec.step_size or 0 for spec in specs], np.float32) * decay[:, np.newaxis]
    steps = np.pad(steps, ((0, -n_iterations % per_call), (0, 0)))  # steps of 0 fill the last call
    progress = np.arange(len(steps)) / n_iterations
    n_fitted = len(set(specs))  # a chunk may be filled up
    name = specs[0].name if n_fitted == 1 else f"{n_fitted} {attack.replace('_', '-')} patches"
    losses = []
    for start in range(0, n_iterations, per_call):
        call = slice(start, start + per_call)
        indices = np.stack([rng.integers(len(plan.fit_examples), size=shape, dtype=np.int32) for rng in rngs], axis=-2)
        offsets = np.stack([draw_offsets(rng, shape, plan.image_size, patch_shape) for rng in rngs], axis=-3)
        if attack == "white_box":
            patches, loss = attacks.fit(patches, targets, steps[call], indices, offsets)
        else:
            squares, colors = zip(*(draw_squares(rng, progress[call], patch_shape) for rng in rngs), strict=True)
            patches, loss = attacks.search(patches, targets, np.stack(squares, 1), np.stack(colors, 1), indices, offsets)
        losses.append(loss.numpy())
        advance(n_fitted * n_images * PASSES_PER_CALL[attack], f"{name}, iteration {min(call.stop, n_iterations)}/{n_iterations}")
    return patches.numpy(), np.concatenate(losses)[:n_iterations]


def _start(spec, rng, bank, attacks):
    """The patch that a fit starts from, [h, w, 3]: of images or the bank's patches, one of the target class where there are any."""
    if spec.start == "grey":
        return np.full(spec.patch_shape, 0.5, np.float32)
    if spec.start == "random":
        return rng.random(spec.patch_shape, np.float32)
    pool, labels = (attacks.images, attacks.labels) if spec.start == "data" else bank
    fitting = np.flatnonzero(np.asarray(labels) == spec.target) if spec.target is not None else np.zeros(0, int)
    return shrink(pool[int(rng.choice(fitting if fitting.size else np.arange(len(labels))))], spec.patch_shape)


def shrink(image: tf.Tensor, patch_shape: Shape) -> np.ndarray:
    """An image or patch resized to a patch, float32 [h, w, 3]."""
    return resize_to_patches(tf.convert_to_tensor(image)[tf.newaxis], patch_shape)[0].numpy()


def draw_squares(rng: np.random.Generator, progress: np.ndarray, patch_shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """What the random search tries: squares that shrink with its progress, float [T] from 0 to 1; beyond, nothing is painted.

    Returns:
        (row, column, side) int32 [T, 3], within the patch, and colors float32 [T, 3], each 0 or 1.
    """
    height, width, channels = patch_shape
    sides = np.maximum(1, np.round(LARGEST_SQUARE * min(height, width) * (1 - np.minimum(progress, 1)))).astype(np.int32)
    sides[progress >= 1] = 0
    squares = np.stack([rng.integers(0, height - sides + 1), rng.integers(0, width - sides + 1), sides], axis=-1).astype(np.int32)
    return squares, rng.integers(0, 2, size=(len(sides), channels)).astype(np.float32)
