"""The plan of an evaluation: which patches are fitted and scored, on which images, and what that costs."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.seeds import generator

ITERATIONS_PER_CALL = {"white_box": 5, "gradient_free": 25}  # of a compiled attack; few, because Ctrl-C waits for the call
PASSES_PER_CALL = {"white_box": 10, "gradient_free": 26}  # forward passes; a gradient counts as two, and a search scores its start too
ITERATION_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the curve, in units of the grid's iterations
CURVE_PATCHES = 3  # the strongest of the grid, which the curves follow
VANISHING_IMAGES = 500  # images in which patches without a gradient are counted
POSITION_IMAGES = 56  # images on which gradients are compared over positions
PASSES_PER_GRADIENT = 2

Shape = tuple[int, ...]  # (h, w, 3)
Bank = tuple[np.ndarray, np.ndarray]  # patches float32 [P, h, w, 3] and their targets int64 [P]
NamedPatches = Sequence[tuple[str, np.ndarray]]  # names and patches float32 [h, w, 3]


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """One patch to be fitted: the attack, where it starts and how it goes on."""

    attack: str  # "white_box" | "gradient_free"
    target: int | None  # the class that images are driven to, or None for away from their own
    start: str  # "random" | "data" | "grey" | "bank"
    step_size: float | None  # of the first iteration, in units of the pixel range; None without gradients
    repeat: int  # which of the patches that agree in all of the above
    n_iterations: int  # gradient steps or queries
    patch_shape: Shape
    series: str = "grid"  # what it is fitted for: "grid" | "curve"

    @property
    def stream(self) -> str:
        """Name of its random stream, which all points of a curve share, but not with the grid."""
        goal = "untargeted" if self.target is None else f"target{self.target}"
        step = "" if self.step_size is None else f"-step{self.step_size!r}"
        curve = "-curve" if self.series == "curve" else ""
        return f"{self.attack}-{goal}-{self.start}{step}-{self.repeat}{curve}"

    @property
    def name(self) -> str:
        """Its name in the report and of its file."""
        height, width, _ = self.patch_shape
        return self.stream + (f"-{self.n_iterations}-{height}x{width}" if self.series == "curve" else "")

    def cost(self, images_per_iteration: int) -> int:
        """Forward passes, of one image each, that fit it."""
        n_calls = -(-self.n_iterations // ITERATIONS_PER_CALL[self.attack])
        return n_calls * PASSES_PER_CALL[self.attack] * images_per_iteration


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationPlan:
    """What an evaluation fits and scores."""

    grid: list[PatchSpec]  # white-box patches to be fitted; those of the curves depend on how these do
    gradient_free: Sequence[PatchSpec] = ()
    curve_scales: Sequence[float] | None = None  # patch sizes of the curve in units of patch_shape; None without curves
    bank: Bank | None = None  # to start from
    transferred: NamedPatches = ()  # fitted on another network
    given: NamedPatches = ()  # by the user
    n_controls: int = 0  # noise patches, and as many natural ones
    fit_examples: np.ndarray  # positions of the training records that patches are fitted on
    scored_examples: np.ndarray  # positions of the validation records that patches are scored on
    images_per_iteration: int  # training images in each step or query of a patch
    images_at_once: int  # images in one pass of the network
    patch_shape: Shape
    image_size: int  # height and width, pixels
    n_classes: int
    seed: int  # of all draws

    @property
    def cost(self) -> int:
        """Forward passes of the network, of one image each, that all of it takes; a gradient counts as two."""
        specs = [*self.grid, *self.gradient_free, *curve_specs(self, self.grid[:CURVE_PATCHES])]
        n_images, n_positions = len(self.scored_examples), len(grid_offsets(self.image_size, self.patch_shape))
        n_scored = len(specs) + len(self.transferred) + len(self.given) + 2 * self.n_controls + 2  # and grey, and without a patch
        n_gradients = 2 * min(VANISHING_IMAGES, n_images) + n_positions * min(POSITION_IMAGES, n_images)
        fitting = sum(spec.cost(self.images_per_iteration) for spec in specs)
        return fitting + n_scored * n_images + PASSES_PER_GRADIENT * n_gradients

    def scored_offsets(self, patch_shape: Shape) -> np.ndarray:
        """Where patches of a shape lie in the scored images, int32 [N, 2]."""
        rng = generator(self.seed, "evaluation/offsets")
        return draw_offsets(rng, [len(self.scored_examples)], self.image_size, patch_shape)


def make_plan(
    config: PatchTrainingConfig,
    splits: tuple[Records, Records],
    *,
    bank: Bank | None = None,
    transferred: NamedPatches = (),
    given: NamedPatches = (),
) -> EvaluationPlan:
    """The plan of the evaluation that `config.evaluation` asks for, on (training, validation) records.

    Raises:
        UserError: the white-box attack has no start, or a transferred patch has another shape.
    """
    protocol, shape, seed = config.evaluation, config.patch_shape, config.seed
    for name, patch in transferred:
        if patch.shape != shape:
            raise UserError(
                f"the patch {name} to transfer is of the shape {list(patch.shape)}, and patch_shape: {list(shape)} would compare patches "
                "of two sizes. Set patch_shape, or fit the patches at this size"
            )
    starts = [start for start in protocol.starts if start != "bank" or bank is not None]
    if not starts:
        raise UserError(
            "evaluation.starts: [bank] starts attacks from a bank, and there is none. Give one with --bank, or add another start"
        )
    drawn = generator(seed, "evaluation/targets").permutation(config.n_classes)[: protocol.n_targets]
    targets, repeats = [None, *sorted(drawn.tolist())], range(protocol.restarts)
    grid = itertools.product(["white_box"], targets, starts, protocol.step_sizes, repeats, [protocol.iterations], [shape])
    search = itertools.product(["gradient_free"], targets, ["random"], [None], repeats, [protocol.search_iterations], [shape])
    copied = {key: getattr(protocol, key) for key in ("n_controls", "images_per_iteration", "images_at_once")}
    copied |= {key: getattr(config, key) for key in ("patch_shape", "image_size", "n_classes", "seed")}
    return EvaluationPlan(
        grid=list(itertools.starmap(PatchSpec, grid)),
        gradient_free=list(itertools.starmap(PatchSpec, search)) if "gradient_free" in protocol.attacks else [],
        curve_scales=protocol.patch_scales if protocol.curves else None,
        bank=bank,
        transferred=transferred,
        given=given,
        fit_examples=np.sort(generator(seed, "evaluation/fit_images").permutation(len(splits[0].labels))[: protocol.n_fit_images]),
        scored_examples=np.sort(generator(seed, "evaluation/images").permutation(len(splits[1].labels))[: protocol.max_images]),
        **copied,
    )


def curve_specs(plan: EvaluationPlan, strongest: Sequence[PatchSpec]) -> list[PatchSpec]:
    """The patches of the curves: the `strongest` of the grid again, at several numbers of iterations and sizes; none without curves.

    Those at the grid's own number of iterations are fitted anew too: the grid's strongest were chosen for their low accuracy, and as points
    of a curve would be biased against the others.
    """
    if plan.curve_scales is None:
        return []
    specs = []
    for spec in strongest:
        spec = dataclasses.replace(spec, series="curve")
        numbers = [max(1, round(factor * spec.n_iterations)) for factor in ITERATION_FACTORS]
        shapes = {tuple(max(1, round(scale * side)) for side in plan.patch_shape[:2]) for scale in plan.curve_scales}
        specs += [dataclasses.replace(spec, n_iterations=number) for number in numbers]
        specs += [dataclasses.replace(spec, patch_shape=(*shape, 3)) for shape in sorted(shapes) if max(shape) <= plan.image_size]
    return list(dict.fromkeys(specs))


def chunks(specs: Sequence[PatchSpec], size: int, n_replicas: int = 1) -> Iterator[list[PatchSpec]]:
    """The specs in chunks to be fitted side by side, each of one attack, number of iterations and patch shape.

    Chunks of a kind are of one length, so that one compiled function fits them all: the last is filled up with its last. Each of
    `n_replicas` fits an equal share of a chunk, at most `size`.
    """
    groups: dict[tuple, list[PatchSpec]] = {}
    for spec in specs:
        groups.setdefault((spec.attack, spec.n_iterations, spec.patch_shape), []).append(spec)
    for group in groups.values():
        n_chunks = -(-len(group) // (size * n_replicas))
        per_chunk = n_replicas * -(-len(group) // (n_chunks * n_replicas))
        for start in range(0, len(group), per_chunk):
            chunk = group[start : start + per_chunk]
            yield chunk + chunk[-1:] * (per_chunk - len(chunk))


def draw_offsets(rng: np.random.Generator, shape: Sequence[int], image_size: int, patch_shape: Shape) -> np.ndarray:
    """Offsets (row, column) int32 [*shape, 2], uniform over all positions of a patch, both ends included."""
    return np.stack([rng.integers(image_size - side + 1, size=shape, dtype=np.int32) for side in patch_shape[:2]], axis=-1)


def grid_offsets(image_size: int, patch_shape: Shape) -> list[tuple[int, int]]:
    """Where a patch lies at the corners, the edges and in the middle of an image: distinct (row, column), at most nine."""
    ends = [image_size - side for side in patch_shape[:2]]
    return list(dict.fromkeys((row, column) for row in (0, ends[0] // 2, ends[0]) for column in (0, ends[1] // 2, ends[1])))
