"""Measuring robustness: controls, a grid of universal patch attacks, curves and transferred patches, all scored on held-out images.

Patches are fitted on training images over random positions and scored on validation images, each at one random position of its own
that is the same for every patch of a size. Shapes: `N` scored images, `R` patches fitted side by side, `M` images in an iteration of
a patch, `T` iterations.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mat.cli.devices import use_xla
from mat.cli.errors import UserError
from mat.cli.progress import WorkProgress
from mat.data.tiny_imagenet import validation_dataset
from mat.patch import resize_to_patches
from mat.robustness.plan import Restart, chunks, cosine_decay, curve_restarts, draw_offsets, draw_squares, grid_offsets, plan_grid
from mat.robustness.universal import UNDEFINED, UNTARGETED, UniversalAttacks
from mat.seeds import generator

SEGMENT = {  # iterations in one call of a compiled attack
    "white_box": 5,  # few, because Ctrl-C waits for the call
    "gradient_free": 25,  # all on the same images
}
CURVE_RESTARTS = 3  # the strongest of the grid, which the curves follow
VANISHING_IMAGES = 500  # images in which patches without a gradient are counted
POSITION_IMAGES = 56  # images on which gradients are compared over positions
LOAD_BATCH = 500
FORWARDS_PER_GRADIENT = 2  # a forward pass and one to the input, in forward passes
NO_LOSSES = np.zeros(0, np.float32)  # of patches that were not fitted


class Outcome(NamedTuple):
    """A patch and what it did: its losses while it was fitted [T] (empty for patches that were not) and the predicted classes [N]."""

    name: str
    patch: np.ndarray
    predictions: np.ndarray
    losses: np.ndarray = NO_LOSSES
    restart: Restart | None = None


class Findings(NamedTuple):
    """All that an evaluation saw; `mat.report` makes the report of it.

    Attributes:
        records: int64 [N], the number of each scored image's record in its file; records that are passed over count.
        labels: int64 [N], the true classes.
        images: float32 [N, H, W, 3].
        offsets: int32 [N, 2], where patches of the config's size lay.
        clean: int64 [N], predictions without a patch.
        controls, grid, gradient_free, transfer: lists of `Outcome`.
        iterations, patch_sizes: lists of `Outcome`, the curves; both hold those at the protocol's iterations and size.
        vanishing: dict of the share of images without a gradient, by "untargeted" and "targeted" loss.
        position_gradients: dict of the gradient that a grey patch gets, in units of the mean over all positions, by (row, column).
        cost: what was computed, in forward passes of the network.
    """

    records: np.ndarray
    labels: np.ndarray
    images: tf.Tensor
    offsets: np.ndarray
    clean: np.ndarray
    controls: list
    grid: list
    gradient_free: list
    transfer: list
    iterations: list
    patch_sizes: list
    vanishing: dict
    position_gradients: dict
    cost: int

    @property
    def fitted(self):
        """The patches that were fitted to the network at the config's size, a list of `Outcome`."""
        return [*self.grid, *self.gradient_free]


class Evaluation:
    """An evaluation of one network.

    Args:
        config: a `PatchTrainingConfig`: the data, `patch_shape`, `seed` and the protocol, `evaluation`.
        model: the network, with the weights to be evaluated.
        splits: (training, validation) `Records`.
        store: where restarts are kept: `load(name)` gives what `save(name, **arrays)` was given, or None.
        bank: (patches float32 [P, h, w, 3], targets [P]) to start from, or None.
        transferred: list of (name, patch) that were fitted on another network.

    Raises:
        UserError: no start for the attacks, a transferred patch of another shape, or a network whose logits are not finite.
    """

    def __init__(self, config, model, splits, store, *, bank=None, transferred=()):
        self.config, self.protocol, self.store = config, config.evaluation, store
        self.bank, self.transferred = bank, transferred
        for name, patch in transferred:
            if patch.shape != config.patch_shape:
                raise UserError(
                    f"the patch {name} to transfer is of the shape {list(patch.shape)}, and patch_shape: {list(config.patch_shape)} would "
                    "compare patches of two sizes. Set patch_shape, or fit the patches at this size"
                )
        train_records, validation_records = splits
        self.fit_images, self.fit_labels, _ = self._load(train_records, self.protocol.n_fit_images, "evaluation/fit_images")
        self.images, self.labels, self.records = self._load(validation_records, self.protocol.max_images, "evaluation/images")
        self.attacks = UniversalAttacks(model, self.fit_images, self.fit_labels, jit_compile=use_xla(config.jit_compile))
        self.at_once = self.protocol.images_at_once
        self.grid = plan_grid(
            self.protocol, n_classes=config.n_classes, patch_shape=config.patch_shape, seed=config.seed, has_bank=bank is not None
        )
        if not any(restart.attack == "white_box" for restart in self.grid):
            raise UserError(
                "evaluation.starts: [bank] starts attacks from a bank, and there is none. Give one with --bank, or add another start"
            )
        # A few images now, before anything is written: weights that are NaN are NaN on every image.
        self._defined(self.attacks.predict_clean(self.images[: self.at_once], images_at_once=self.at_once), "without a patch")

    def _load(self, records, n_images, stream):
        """Images float32 [n, H, W, 3], labels int64 [n] and record numbers of a split, all of it or `n_images` drawn at random."""
        n_all = len(records.labels)
        chosen = np.arange(n_all)
        if n_images is not None and n_images < n_all:
            chosen = np.sort(generator(self.config.seed, stream).permutation(n_all)[:n_images])
        records = records.take(chosen)
        batches = validation_dataset(records, batch_size=LOAD_BATCH, n_classes=self.config.n_classes, image_size=self.config.image_size)
        return tf.concat([images for images, _ in batches], axis=0), records.labels, records.numbers

    def cost(self):
        """Forward passes of the network, of one image each, that the whole evaluation takes; a gradient counts as two."""
        restarts = self.grid
        n_scored = len(restarts) + 1 + 2 * self.protocol.n_controls + 1 + len(self.transferred)
        white_box = [restart for restart in restarts if restart.attack == "white_box"]
        if self.protocol.curves:
            curves = curve_restarts(self.protocol, white_box[:CURVE_RESTARTS], self.config.image_size)
            restarts, n_scored = restarts + curves, n_scored + len(curves)
        fitting = sum(self._fitting_cost(restart) for restart in restarts)
        n_positions = len(grid_offsets(self.config.image_size, self.config.patch_shape))
        n_gradients = 2 * min(VANISHING_IMAGES, len(self.labels)) + n_positions * min(POSITION_IMAGES, len(self.labels))
        return fitting + n_scored * len(self.labels) + FORWARDS_PER_GRADIENT * n_gradients

    def _fitting_cost(self, restart):
        """Forward passes that fit one patch."""
        segment = SEGMENT[restart.attack]
        passes_per_call = segment * FORWARDS_PER_GRADIENT if restart.attack == "white_box" else segment + 1
        return _n_calls(restart) * passes_per_call * self.protocol.images_per_iteration

    def run(self):
        """Do everything that is not in the store yet.

        Returns:
            Findings.

        Raises:
            UserError: the network's logits are not finite.
        """
        cost = self.cost()
        with WorkProgress(cost) as self._progress:
            clean = self._clean_predictions()
            controls = [self._scored(name, patch) for name, patch in self._controls()]
            transfer = [self._scored(f"transfer-{name}", patch) for name, patch in self.transferred]
            outcomes = self._fitted(self.grid)
            grid = [outcome for outcome in outcomes if outcome.restart.attack == "white_box"]
            strongest = sorted(grid, key=lambda outcome: np.mean(outcome.predictions == self.labels))[:CURVE_RESTARTS]
            curves = []
            if self.protocol.curves:
                curves = self._fitted(curve_restarts(self.protocol, [outcome.restart for outcome in strongest], self.config.image_size))
            return Findings(
                records=self.records,
                labels=self.labels,
                images=self.images,
                offsets=self._offsets(self.config.patch_shape),
                clean=clean,
                controls=controls,
                grid=grid,
                gradient_free=[outcome for outcome in outcomes if outcome.restart.attack == "gradient_free"],
                transfer=transfer,
                iterations=[o for o in curves if o.restart.patch_shape == self.config.patch_shape],
                patch_sizes=[o for o in curves if o.restart.n_iterations == self.protocol.iterations],
                vanishing=self._vanishing(),
                position_gradients=self._position_gradients(),
                cost=cost,
            )

    def _clean_predictions(self):
        predictions = self.attacks.predict_clean(self.images, images_at_once=self.at_once)
        self._progress.advance(len(self.labels), "clean images")
        return self._defined(predictions, "without a patch")

    @staticmethod
    def _defined(predictions, where):
        """The predictions, if all are of finite logits."""
        if np.any(predictions == UNDEFINED):
            raise UserError(
                f"the network's logits are NaN or infinite on {np.sum(predictions == UNDEFINED)} of {len(predictions)} validation images "
                f"{where}: its robustness cannot be measured. Give other weights, or precision: float32"
            )
        return predictions

    def _controls(self):
        """(name, patch) of the patches that are no attack: grey, noise, and shrunken training images."""
        shape = self.config.patch_shape
        yield "grey", np.full(shape, 0.5, np.float32)
        rng = generator(self.config.seed, "evaluation/controls")
        for i in range(self.protocol.n_controls):
            yield f"noise-{i}", rng.random(shape, np.float32)
        for i, image in enumerate(rng.integers(len(self.fit_labels), size=self.protocol.n_controls)):
            yield f"natural-{i}", self._shrunken(self.fit_images[image], shape)

    def _offsets(self, patch_shape):
        """Where patches of a shape lie in the scored images, int32 [N, 2]."""
        rng = generator(self.config.seed, "evaluation/offsets")
        return draw_offsets(rng, [len(self.labels)], self.config.image_size, patch_shape)

    def _scored(self, name, patch, losses=NO_LOSSES, restart=None):
        """The `Outcome` of a patch on all scored images."""
        predictions = self.attacks.predict(patch, self.images, self._offsets(patch.shape), images_at_once=self.at_once)
        self._progress.advance(len(self.labels), name)
        self._defined(predictions, f"under the patch {name}")
        return Outcome(name, patch, predictions, losses, restart)

    def _fitted(self, restarts):
        """The `Outcome`s of restarts in their order: from the store, or fitted in chunks that fit into memory and stored.

        A chunk is made again as a whole, so that a continued evaluation computes what the uninterrupted one would have.
        """
        outcomes = {}
        chunk_size = max(1, self.at_once // self.protocol.images_per_iteration)
        for chunk, filled in chunks(restarts, chunk_size):
            stored = [self.store.load(restart.name) for restart in chunk]
            if all(arrays is not None for arrays in stored):
                found = [Outcome(restart.name, restart=restart, **arrays) for restart, arrays in zip(chunk, stored, strict=True)]
                self._progress.skip(sum(self._fitting_cost(restart) + len(self.labels) for restart in chunk))
            else:
                fit = self._fit if chunk[0].attack == "white_box" else self._search
                patches, losses = fit(filled)
                if not np.all(np.isfinite(losses)):
                    raise UserError(
                        f"the loss became NaN or infinite while {chunk[0].name} was fitted. Give other weights, or precision: float32"
                    )
                found = [self._scored(r.name, patch, loss, r) for r, patch, loss in zip(chunk, patches, losses.T, strict=False)]
                for outcome in found:
                    self.store.save(outcome.name, patch=outcome.patch, predictions=outcome.predictions, losses=outcome.losses)
            outcomes |= {outcome.restart: outcome for outcome in found}
        return [outcomes[restart] for restart in restarts]

    def _fit(self, restarts):
        """White-box: the fitted patches, float32 [R, h, w, 3], and their losses, float32 [T, R]."""
        rngs, patches, targets = self._begin(restarts)
        n_iterations, segment = restarts[0].n_iterations, SEGMENT["white_box"]
        step_sizes = np.array([restart.step_size for restart in restarts], np.float32)
        steps = step_sizes * cosine_decay(n_iterations)[:, np.newaxis]
        steps = np.pad(steps, ((0, -n_iterations % segment), (0, 0)))  # steps of 0 fill the last segment
        shape = [segment, self.protocol.images_per_iteration]
        losses = []
        for start in range(0, n_iterations, segment):
            indices, offsets = self._draw(rngs, shape, restarts[0].patch_shape)
            patches, loss = self.attacks.fit(
                patches, targets, steps[start : start + segment], indices.swapaxes(0, 1), offsets.swapaxes(0, 1)
            )
            losses.append(loss.numpy())
            self._advance(restarts, start + segment)
        return patches.numpy(), np.concatenate(losses)[:n_iterations]

    def _search(self, restarts):
        """Gradient-free: the patches found, float32 [R, h, w, 3], and their losses, float32 [T, R]."""
        rngs, patches, targets = self._begin(restarts)
        n_iterations, patch_shape, segment = restarts[0].n_iterations, restarts[0].patch_shape, SEGMENT["gradient_free"]
        losses = []
        for start in range(0, n_iterations, segment):
            indices, offsets = self._draw(rngs, [self.protocol.images_per_iteration], patch_shape)
            progress = np.arange(start, start + segment) / n_iterations
            squares, colors = zip(*(draw_squares(rng, progress, patch_shape) for rng in rngs), strict=True)
            patches, loss = self.attacks.search(patches, targets, np.stack(squares, 1), np.stack(colors, 1), indices, offsets)
            losses.append(loss.numpy())
            self._advance(restarts, start + segment)
        return patches.numpy(), np.concatenate(losses)[:n_iterations]

    def _begin(self, restarts):
        """Generators, starting patches [R, h, w, 3] and targets int64 [R] of restarts."""
        rngs = [generator(self.config.seed, f"evaluation/{restart.stream}") for restart in restarts]
        patches = np.stack([self._start(restart, rng) for restart, rng in zip(restarts, rngs, strict=True)])
        targets = np.array([UNTARGETED if restart.target is None else restart.target for restart in restarts], np.int64)
        return rngs, patches, targets

    def _start(self, restart, rng):
        """The patch that a restart starts from, float32 [h, w, 3]."""
        shape = restart.patch_shape
        if restart.start == "grey":
            return np.full(shape, 0.5, np.float32)
        if restart.start == "random":
            return rng.random(shape, np.float32)
        pool, labels = (self.fit_images, self.fit_labels) if restart.start == "data" else self.bank
        fitting = np.flatnonzero(np.asarray(labels) == restart.target) if restart.target is not None else np.zeros(0, int)
        candidates = fitting if fitting.size else np.arange(len(labels))
        return self._shrunken(pool[int(rng.choice(candidates))], shape)

    @staticmethod
    def _shrunken(image, shape):
        """An image or patch resized to a patch, float32 [h, w, 3]."""
        return resize_to_patches(tf.convert_to_tensor(image)[tf.newaxis], shape)[0].numpy()

    def _draw(self, rngs, shape, patch_shape):
        """Images int32 [R, *shape] and offsets int32 [R, *shape, 2] of the next iterations, each restart's of its own stream."""
        indices = [rng.integers(len(self.fit_labels), size=shape, dtype=np.int32) for rng in rngs]
        offsets = [draw_offsets(rng, shape, self.config.image_size, patch_shape) for rng in rngs]
        return np.stack(indices), np.stack(offsets)

    def _advance(self, restarts, done):
        """Count as done what leads to iteration `done`."""
        restart = restarts[0]
        amount = sum(self._fitting_cost(each) for each in restarts) // _n_calls(restart)
        name = restart.name if len(restarts) == 1 else f"{len(restarts)} {restart.attack.replace('_', '-')} patches"
        self._progress.advance(amount, f"{name}, iteration {min(done, restart.n_iterations)}/{restart.n_iterations}")

    def _vanishing(self):
        """The share of scored images in whose loss a grey patch has no gradient, for the true class and for a class drawn at random."""
        chosen, others = self._gradient_images(VANISHING_IMAGES)
        offsets = self._offsets(self.config.patch_shape)[chosen]
        classes = {"untargeted": self.labels[chosen], "targeted": others}
        gradients = {kind: self._gradients(chosen, labels, offsets) for kind, labels in classes.items()}
        return {kind: float(np.mean((values == 0) | ~np.isfinite(values))) for kind, values in gradients.items()}

    def _position_gradients(self):
        """The gradient that a grey patch gets at each corner, edge and in the middle of the images, in units of the mean over all.

        All positions are tried on the same images. Each image counts alike, however large its loss and so its gradients are.

        Returns:
            dict by (row, column) of the patch; empty if no image has a gradient anywhere.
        """
        chosen, others = self._gradient_images(POSITION_IMAGES)
        offsets = grid_offsets(self.config.image_size, self.config.patch_shape)
        gradients = np.array([self._gradients(chosen, others, np.tile(np.int32(offset), (len(chosen), 1))) for offset in offsets])
        gradients = gradients[:, gradients.any(axis=0) & np.isfinite(gradients).all(axis=0)].astype(np.float64)  # [positions, images]
        if not gradients.size:
            return {}
        return dict(zip(offsets, np.mean(gradients / gradients.mean(axis=0), axis=1).tolist(), strict=True))

    def _gradient_images(self, n_images):
        """At most `n_images` scored images drawn at random, and another class than its own for each: two int64 arrays [n]."""
        rng, n_classes = generator(self.config.seed, "evaluation/vanishing"), self.config.n_classes
        chosen = np.sort(rng.permutation(len(self.labels))[:n_images])
        return chosen, (self.labels[chosen] + rng.integers(1, n_classes, len(chosen))) % n_classes

    def _gradients(self, chosen, labels, offsets):
        """How large the gradients of a grey patch are on chosen images for the loss of `labels`, float32 [n]."""
        patch, images = np.full(self.config.patch_shape, 0.5, np.float32), tf.gather(self.images, chosen)
        gradients = self.attacks.patch_gradients(patch, images, labels, offsets, images_at_once=self.at_once)
        self._progress.advance(FORWARDS_PER_GRADIENT * len(chosen), "gradients")
        return gradients


def _n_calls(restart):
    """Calls of the compiled attack that fit a patch."""
    return -(-restart.n_iterations // SEGMENT[restart.attack])
