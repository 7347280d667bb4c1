"""Universal patches from Python: fitting one to a model, and pasting patches into images."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat import patch
from mat.api.arrays import float_images, float_pixels, integer_labels
from mat.api.session import session
from mat.cli.devices import use_xla
from mat.cli.errors import UserError
from mat.cli.progress import WorkProgress
from mat.cli.text import single_line
from mat.config import PatchTrainingConfig
from mat.models.own_network import wrap_model
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
        input_range: of the model, `0..1`, `0..255`, `-1..1` or `imagenet`; what `mat.load` and `mat.train` give takes 0..1.
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
    keys: dict[str, Any] = {"image_size": pixels.shape[1], "input_range": input_range, "logits": logits}
    batches = {"images_per_iteration": images_per_iteration, "images_at_once": images_per_iteration}
    protocol = {"iterations": iterations, "step_sizes": [step_size], **batches}
    _check_keys(start, patch_shape=patch_shape, seed=seed, evaluation=protocol, **keys)
    spec = PatchSpec("white_box", target, start, step_size, 0, iterations, tuple(patch_shape))
    with session():
        network = wrap_model(model, **keys)
        n_classes = network.output_shape[-1]
        true = _true_classes(labels, target, len(pixels), n_classes)
        return _fit(network, pixels, true, spec, image_size=pixels.shape[1], n_classes=n_classes, seed=seed, **batches)


def _check_keys(start: str, **keys: Any) -> None:
    """Refuse an unknown start, and values that a config refuses for these keys."""
    if start not in STARTS:
        raise UserError(f"start must be one of {', '.join(STARTS)}. Received: {start!r}")
    PatchTrainingConfig(network="model:given", **keys)


def _true_classes(labels: Any, target: int | None, n_images: int, n_classes: int) -> np.ndarray:
    """The true classes int64 [N], zeros where none are given and needed; a `UserError` tells of classes that the model does not have."""
    if labels is None and target is None:
        raise UserError("fit_patch needs labels, the true classes of the images, or a target. Received: None for both")
    true = np.zeros(n_images, np.int64) if labels is None else integer_labels(labels, n_images)
    if outside := sorted({*true.tolist(), target or 0} - set(range(n_classes))):
        raise UserError(f"labels and target must be in 0..{n_classes - 1}, the model's classes. Received: {outside[:5]}")
    return true


def _fit(network: keras.Model, pixels: np.ndarray, true: np.ndarray, spec: PatchSpec, **plan: Any) -> np.ndarray:
    """The patch that is fitted to a network on these images; `plan` has further fields of the `EvaluationPlan`."""
    examples: dict[str, Any] = {"fit_examples": np.arange(len(pixels)), "scored_examples": np.zeros(0, np.int64)}
    whole = EvaluationPlan(grid=[spec], patch_shape=spec.patch_shape, **examples, **plan)
    attacks = UniversalAttacks(network, pixels, true, jit_compile=use_xla("auto"))
    with WorkProgress(spec.cost(whole.images_per_iteration)) as progress:
        return fit_patches([spec], whole, attacks, Callbacks(advance=progress.advance))[0].patch


def apply_patches(images: np.ndarray, patches: np.ndarray, offsets: Any = None) -> tf.Tensor:
    """Paste a patch into images: `mat.patch.apply_patches`, for a single image or patch too, and in the middle where no offsets are given.

    Args:
        images: [B, H, W, 3] or one image [H, W, 3], uint8 or float in [0, 1].
        patches: one for all images, [h, w, 3], or one for each, [B, h, w, 3], uint8 or float in [0, 1]; h <= H and w <= W.
        offsets: (row, column) of the patch's upper left corner in pixels, for all images or for each, [B, 2]; within 0..H-h and 0..W-w.

    Returns:
        float32, of the shape of `images`.

    Raises:
        UserError: the shapes or values do not fit, or an offset is outside.

    Example:
        >>> import mat, numpy as np
        >>> mat.apply_patches(np.zeros((1, 8, 8, 3)), np.ones((2, 2, 3)), offsets=(0, 6)).numpy()[0, :3, 4:, 0]
        array([[0., 0., 1., 1.],
               [0., 0., 1., 1.],
               [0., 0., 0., 0.]], dtype=float32)
    """
    single = np.ndim(images) == 3
    pixels = float_images(np.asarray(images)[np.newaxis] if single else images)
    patches = np.asarray(patches)
    patches = patches[np.newaxis] if patches.ndim == 3 else patches
    shape = patches.shape[1:]
    free = [side - patch_side for side, patch_side in zip(pixels.shape[1:3], shape, strict=False)]  # of the offsets
    if len(shape) != 3 or shape[-1] != 3 or min(free) < 0 or not patches.size or len(patches) not in (1, len(pixels)):
        raise UserError(
            f"patches must be one patch [h, w, 3], or {len(pixels)} of them, that fit into images {list(pixels.shape[1:])}. "
            f"Received: {list(patches.shape)}"
        )
    patches = float_pixels(patches, "patches")
    corners = np.asarray([side // 2 for side in free] if offsets is None else offsets)
    fitting = corners.shape in ((2,), (len(pixels), 2)) and corners.dtype.kind in "iu"
    if not fitting or np.any(corners < 0) or np.any(corners > free):
        whole = f"whole numbers [2] or [{len(pixels)}, 2] within 0..{free[0]} and 0..{free[1]}"
        raise UserError(f"offsets must be {whole}. Received: {single_line(str(corners.tolist()))}")
    corners = np.broadcast_to(corners, (len(pixels), 2)).astype(np.int32)
    patched = patch.apply_patches(pixels, np.broadcast_to(patches, (len(pixels), *shape)), corners)
    return patched[0] if single else patched
