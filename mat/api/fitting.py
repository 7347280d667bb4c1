"""Universal patches from Python: fitting one to a model, and pasting patches into images."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat import patch
from mat.api.arrays import float_images, integer_labels
from mat.api.session import network_of, session
from mat.cli.devices import use_xla
from mat.cli.errors import UserError
from mat.cli.progress import WorkProgress
from mat.robustness.fit import Callbacks, fit_patches
from mat.robustness.plan import EvaluationPlan, PatchSpec
from mat.robustness.universal import UniversalAttacks

STARTS = ("random", "data", "grey")


def fit_patch(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    target: int | None = None,
    *,
    patch_shape: tuple[int, ...] = (24, 24, 3),
    iterations: int = 1000,
    step_size: float = 0.05,
    start: str = "random",
    images_per_iteration: int = 32,
    input_range: str = "0..1",
    logits: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Fit one universal patch to a model: the white-box attack of an evaluation, I-FGSM on other images and positions in each iteration.

    Args:
        model: of `mat.load` or `mat.train`, or any Keras classifier of images; it is not changed.
        images: [N, H, W, 3], uint8, or float in [0, 1], to fit on; for a fair accuracy not those that the patch is tried on.
        labels: integers [N], the true classes; None if there is a target.
        target: the class that the patch drives images to; None drives them away from their own.
        patch_shape: (h, w, 3), pixels.
        iterations: signed-gradient steps.
        step_size: of the first one, in units of the pixel range [0, 1]; a cosine takes it to 0.
        start: random (noise), data (a shrunken image) or grey.
        images_per_iteration: how many images each step looks at.
        input_range: of the model, `0..1`, `0..255`, `-1..1` or `imagenet`; models of this program take 0..1.
        logits: whether the model gives logits, or else probabilities.
        seed: of every draw.

    Returns:
        The patch, float32 [h, w, 3] in [0, 1].

    Raises:
        UserError: the model cannot be used, an argument does not fit, or the loss is not finite.

    Example:
        >>> import mat
        >>> from mat.data.tiny_imagenet import load_dataset
        >>> images, labels = next(iter(load_dataset("data/demo", "train", batch_size=200, n_classes=10, image_size=32)))
        >>> patch = mat.fit_patch(mat.load("results/example"), images, labels, target=3, patch_shape=(12, 12, 3), iterations=10)
        >>> patch.shape
        (12, 12, 3)
    """
    pixels = float_images(images)
    spec = PatchSpec("white_box", target, start, step_size, 0, iterations, tuple(patch_shape))
    true = _true_classes(labels, target, len(pixels), model.output_shape[-1])
    _check_start(spec, pixels.shape[1])
    with session():
        shape = {"image_size": pixels.shape[1], "n_classes": model.output_shape[-1]}
        network = network_of(model, **shape, input_range=input_range, logits=logits)
        return _fit(network, pixels, true, spec, **shape, images_per_iteration=images_per_iteration, seed=seed)


def _true_classes(labels: Any, target: int | None, n_images: int, n_classes: int) -> np.ndarray:
    """The true classes int64 [N], zeros where none are given and needed; a `UserError` tells of classes that the model does not have."""
    if labels is None and target is None:
        raise UserError("fit_patch needs labels, the true classes of the images, or a target. Received: None for both")
    true = np.zeros(n_images, np.int64) if labels is None else integer_labels(labels, n_images)
    if outside := sorted({*true.tolist(), target or 0} - set(range(n_classes))):
        raise UserError(f"labels and target must be in 0..{n_classes - 1}, the model's classes. Received: {outside[:5]}")
    return true


def _check_start(spec: PatchSpec, size: int) -> None:
    """Refuse an unknown start, and a patch that does not fit into images of a size."""
    if spec.start not in STARTS or len(spec.patch_shape) != 3 or max(spec.patch_shape[:2]) > size or spec.patch_shape[2] != 3:
        raise UserError(
            f"fit_patch takes a start of {', '.join(STARTS)}, and a patch_shape (height, width, 3) that fits into images of {size}x{size}. "
            f"Received: start={spec.start!r}, patch_shape={spec.patch_shape}"
        )


def _fit(network: keras.Model, pixels: np.ndarray, true: np.ndarray, spec: PatchSpec, **plan: Any) -> np.ndarray:
    """The patch that is fitted to a network on these images; `plan` has further fields of the `EvaluationPlan`."""
    n_images = plan["images_per_iteration"]
    examples: dict[str, Any] = {"fit_examples": np.arange(len(pixels)), "scored_examples": np.zeros(0, np.int64)}
    whole = EvaluationPlan(grid=[spec], patch_shape=spec.patch_shape, images_at_once=n_images, **examples, **plan)
    attacks = UniversalAttacks(network, pixels, true, jit_compile=use_xla("auto"))
    with WorkProgress(spec.cost(n_images)) as progress:
        return fit_patches([spec], whole, attacks, Callbacks(advance=progress.advance))[0].patch


def apply_patches(images: np.ndarray, patches: np.ndarray, offsets: Any = None) -> tf.Tensor:
    """Paste a patch into images: `mat.patch.apply_patches`, for a single image or patch too, and in the middle where no offsets are given.

    Args:
        images: [B, H, W, 3] or one image [H, W, 3], uint8 or float in [0, 1].
        patches: one for all images, [h, w, 3], or one for each, [B, h, w, 3], float in [0, 1]; h <= H and w <= W.
        offsets: (row, column) of the patch's upper left corner in pixels, for all images or for each, [B, 2]; within 0..H-h and 0..W-w.

    Returns:
        float32, of the shape of `images`.

    Raises:
        UserError: the shapes do not fit, or an offset is outside.

    Example:
        >>> import mat, numpy as np
        >>> mat.apply_patches(np.zeros((1, 8, 8, 3)), np.ones((2, 2, 3)), offsets=(0, 6)).numpy()[0, :3, 4:, 0]
        array([[0., 0., 1., 1.],
               [0., 0., 1., 1.],
               [0., 0., 0., 0.]], dtype=float32)
    """
    single = np.ndim(images) == 3
    pixels = float_images(np.asarray(images)[np.newaxis] if single else images)
    patches = np.asarray(patches, np.float32)
    patches = patches[np.newaxis] if patches.ndim == 3 else patches
    shape = patches.shape[1:]
    free = [side - patch_side for side, patch_side in zip(pixels.shape[1:3], shape, strict=False)]  # of the offsets
    if len(shape) != 3 or shape[-1] != 3 or min(free) < 0 or len(patches) not in (1, len(pixels)):
        raise UserError(
            f"patches must be one patch [h, w, 3], or {len(pixels)} of them, that fit into images {list(pixels.shape[1:])}. "
            f"Received: {list(patches.shape)}"
        )
    corners = np.broadcast_to([side // 2 for side in free] if offsets is None else offsets, (len(pixels), 2))
    if np.any(corners < 0) or np.any(corners > free):
        raise UserError(f"offsets must be within 0..{free[0]} and 0..{free[1]}. Received: {np.unique(corners, axis=0).tolist()}")
    patched = patch.apply_patches(pixels, np.broadcast_to(patches, (len(pixels), *shape)), corners.astype(np.int32))
    return patched[0] if single else patched
