"""Scoring: the predictions of a network under patches, on validation images.

A patch lies at one random position in each image, which is the same for every patch of a size.
Shapes: `N` scored images, `T` iterations, images `H` x `W`, patches `h` x `w`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.distribution.workers import any_worker
from mat.robustness.fit import Callbacks, FittedPatch, shrink
from mat.robustness.plan import PASSES_PER_GRADIENT, POSITION_IMAGES, VANISHING_IMAGES, EvaluationPlan, grid_offsets
from mat.robustness.universal import UNDEFINED, Images, UniversalAttacks
from mat.seeds import generator


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoredPatch(FittedPatch):
    """A patch with the predictions under it."""

    predictions: np.ndarray  # int64 [N], the predicted classes


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """All that an evaluation measured."""

    records: np.ndarray  # int64 [N], the number of each scored image's record in its file; records that are passed over count
    labels: np.ndarray  # int64 [N], the true classes
    images: tf.Tensor  # float32 [N, H, W, 3]
    offsets: np.ndarray  # int32 [N, 2], where patches of the config's size lay
    clean: np.ndarray  # int64 [N], predictions without a patch
    controls: list[ScoredPatch]
    grid: list[ScoredPatch]
    gradient_free: list[ScoredPatch]
    transfer: list[ScoredPatch]
    given: list[ScoredPatch]
    iterations: list[ScoredPatch]  # the curves; both hold the patches at the grid's own iterations and size
    patch_sizes: list[ScoredPatch]
    vanishing: dict[str, float]  # see `vanishing_gradients`
    position_gradients: dict[tuple[int, int], float]  # see `position_gradients`
    cost: int  # forward passes of the network

    @property
    def fitted(self) -> list[ScoredPatch]:
        """The patches that were fitted to the network at the config's size."""
        return [*self.grid, *self.gradient_free]


def check_finite(predictions: np.ndarray, where: str) -> None:
    """Refuse predictions of logits that are not finite with a UserError; `where` says under which patch."""
    if n_undefined := np.sum(predictions == UNDEFINED):
        raise UserError(
            f"the network's logits are NaN or infinite on {n_undefined} of {len(predictions)} validation images {where}: its robustness "
            "cannot be measured. Give other weights, or precision: float32"
        )


def score_patches(
    patches: Sequence[FittedPatch], plan: EvaluationPlan, attacks: UniversalAttacks, scored: Images, callbacks: Callbacks
) -> list[ScoredPatch]:
    """The predictions under each patch; those of fitted patches are saved, and count again for the very same patch."""
    results = []
    for fitted in patches:
        name = f"{fitted.name}-predictions"
        arrays = callbacks.load(name) if fitted.spec else None
        found = arrays is not None and np.array_equal(arrays["patch"], fitted.patch)
        (missing,) = any_worker(attacks.strategy, [not found])  # predicted on all workers or on none
        if arrays is not None and not missing:
            callbacks.skip(len(scored.labels))
        else:
            offsets = plan.scored_offsets(fitted.patch.shape)
            predictions = attacks.predict(fitted.patch, scored.images, offsets, images_at_once=plan.images_at_once)
            callbacks.advance(len(predictions), fitted.name)
            check_finite(predictions, f"under the patch {fitted.name}")
            arrays = {"patch": fitted.patch, "predictions": predictions}
            if fitted.spec:
                callbacks.save(name, **arrays)
        results.append(ScoredPatch(fitted.name, **arrays, losses=fitted.losses, spec=fitted.spec))
    return results


def control_patches(plan: EvaluationPlan, fit_images: tf.Tensor) -> list[FittedPatch]:
    """Patches that are no attack: grey, noise, and shrunken training images."""
    rng, numbers = generator(plan.seed, "evaluation/controls"), range(plan.n_controls)
    grey = FittedPatch("grey", np.full(plan.patch_shape, 0.5, np.float32))
    noise = [FittedPatch(f"noise-{i}", rng.random(plan.patch_shape, np.float32)) for i in numbers]
    chosen = rng.integers(len(fit_images), size=plan.n_controls)
    return [grey, *noise, *(FittedPatch(f"natural-{i}", shrink(fit_images[chosen[i]], plan.patch_shape)) for i in numbers)]


def vanishing_gradients(plan: EvaluationPlan, attacks: UniversalAttacks, scored: Images, callbacks: Callbacks) -> dict[str, float]:
    """The share of images in whose loss a grey patch has no gradient, by "untargeted" (true class) and "targeted" (a random class)."""
    shares = {}
    for loss in ("untargeted", "targeted"):
        gradients = _grey_gradients(plan, attacks, scored, VANISHING_IMAGES, callbacks, targeted=loss == "targeted")
        shares[loss] = float(np.mean((gradients == 0) | ~np.isfinite(gradients)))
    return shares


def position_gradients(
    plan: EvaluationPlan, attacks: UniversalAttacks, scored: Images, callbacks: Callbacks
) -> dict[tuple[int, int], float]:
    """The gradient that a grey patch gets at each (row, column) of `grid_offsets`, in units of the mean over all of them.

    Each image counts alike, however large its loss and so its gradients are. The result is empty if no image has a gradient anywhere.
    """
    positions = grid_offsets(plan.image_size, plan.patch_shape)
    gradients = np.array([_grey_gradients(plan, attacks, scored, POSITION_IMAGES, callbacks, offset=offset) for offset in positions])
    gradients = gradients[:, gradients.any(axis=0) & np.isfinite(gradients).all(axis=0)].astype(np.float64)  # [positions, images]
    if not gradients.size:
        return {}
    return dict(zip(positions, np.mean(gradients / gradients.mean(axis=0), axis=1).tolist(), strict=True))


def _grey_gradients(plan, attacks, scored, n_images, callbacks, *, offset=None, targeted=True):
    """The summed absolute gradients of a grey patch in the same scored images, drawn at random, in each call; float32 [n].

    They are of the loss to a random class or, untargeted, of the true one. The patch lies at `offset` or where it is scored.
    """
    rng = generator(plan.seed, "evaluation/vanishing")
    chosen = np.sort(rng.permutation(len(scored.labels))[:n_images])
    labels = scored.labels[chosen]
    if targeted:
        labels = (labels + rng.integers(1, plan.n_classes, len(chosen))) % plan.n_classes
    offsets = plan.scored_offsets(plan.patch_shape)[chosen] if offset is None else np.full((len(chosen), 2), offset, np.int32)
    patch, images = np.full(plan.patch_shape, 0.5, np.float32), tf.gather(scored.images, chosen)
    gradients = attacks.patch_gradients(patch, images, labels, offsets, images_at_once=plan.images_at_once)
    callbacks.advance(PASSES_PER_GRADIENT * len(chosen), "gradients")
    return gradients
