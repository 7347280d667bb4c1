"""Configuration of a training run: frozen pydantic models, strict and safe YAML in, YAML out.

This module imports no TensorFlow, so that a faulty config is reported at once.
"""

import os
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from typing_extensions import Self

from mat.cli.config_model import Changeable, Name, Path, Section, Several, YesNo, key
from mat.cli.errors import UserError
from mat.cli.files import replace_file
from mat.cli.paths import check_result_path, expand_unique_name, literal_name
from mat.cli.text import format_value, single_line
from mat.cli.yaml_reader import apply_override, read_mapping
from mat.data.metadata import add_metadata
from mat.models.pooling import SMALLEST_POOL, last_feature_map

DEMO_IMAGE_SIZE = 32
DEMO_N_CLASSES = 10
OWN_NETWORK_KEYS = ("input_range", "logits", "safe_mode", "fresh_weights")

StepSize = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(gt=0)]


class OptimizerConfig(Section):
    """The inner optimizer, I-FGSM (Algorithm 1 of arXiv:2101.11453)."""

    prefix = "optimizer."
    min_step_size: StepSize = key(1e-4, "smallest I-FGSM step size, in units of the pixel range [0, 1]")
    max_step_size: StepSize = key(0.1, "largest I-FGSM step size; each patch draws its own, log-uniformly")
    n_iterations: int = key(5, "K, I-FGSM iterations per batch", ge=0)
    targeted_attack: YesNo = key(True, "towards the patch's target class, or away from the true class")

    def _check(self) -> None:
        if self.min_step_size > self.max_step_size:
            received = f"{self.min_step_size} > {self.max_step_size}"
            raise UserError(f"optimizer.min_step_size must not exceed optimizer.max_step_size. Received: {received}")


class EvaluationConfig(Section):
    """The protocol of an evaluation of robustness; the defaults are the full one. docs/evaluation.md says what it measures."""

    prefix = "evaluation."
    attacks: Several[Literal["white_box", "gradient_free"]] = key(("white_box", "gradient_free"), "attacks to run, white_box among them")
    max_images: int | None = key(None, "validation images to score on, drawn at random; null takes all", ge=1)
    n_fit_images: int = key(2000, "training images that patches are fitted on, drawn at random", ge=1)
    n_targets: int = key(5, "target classes, drawn at random, beside the untargeted attack", ge=0)
    starts: Several[Literal["random", "data", "grey", "bank"]] = key(
        ("random", "data", "grey", "bank"),
        "noise, shrunken training images, grey, the trained bank; images and meta-patches of the target class if there are any",
    )
    step_sizes: Several[StepSize] = key((0.02, 0.1), "of the first iteration, in units of the pixel range [0, 1]; a cosine takes it to 0")
    restarts: int = key(1, "patches for each combination of target, start and step size", ge=1, le=10_000)
    iterations: int = key(1000, "gradient steps of a white-box patch", ge=1)
    search_iterations: int = key(4000, "queries of a gradient-free patch", ge=1)
    images_per_iteration: int = key(32, "training images in each step or query", ge=1)
    images_at_once: Changeable[int] = key(128, "images in memory in one pass of the network; changes no draw", ge=1)
    n_controls: int = key(10, "noise patches, and as many natural ones, to compare with", ge=1, le=10_000)
    curves: YesNo = key(True, "measure accuracy against iterations and against patch size")
    patch_scales: Several[Scale] = key(
        (0.25, 0.5, 1.5), "sizes of the curve, in units of patch_shape; those above the image's are left out"
    )
    interval_width: Changeable[float] = key(0.07, "widest 95 % interval that raises no warning", gt=0, le=1)

    def _check(self) -> None:
        if "white_box" not in self.attacks:
            received = format_value(list(self.attacks))
            raise UserError(f"evaluation.attacks must have white_box, which everything else is held against. Received: {received}")
        if self.images_per_iteration > self.images_at_once:
            received = f"{self.images_per_iteration} > {self.images_at_once}"
            raise UserError(f"evaluation.images_per_iteration must not exceed evaluation.images_at_once. Received: {received}")

    def quick(self, kept: Collection[str] = ()) -> Self:
        """The same protocol with the keys of `QUICK` replaced, but for those to be `kept`, where they make it cheaper."""
        replaced = {key: min(value, getattr(self, key)) if type(value) is int else value for key, value in QUICK.items()}
        return self.replace(**{key: value for key, value in replaced.items() if key not in kept})


QUICK = {  # a first look: one start and step size, few iterations, no curves
    "attacks": ("white_box",),
    "starts": ("random",),
    "step_sizes": (0.05,),
    "restarts": 1,
    "iterations": 100,
    "images_per_iteration": 16,
    "n_fit_images": 1000,
    "n_controls": 3,
    "curves": False,
}


class PatchTrainingConfig(Section):
    """Everything a training run depends on. The defaults are the published setting on Tiny ImageNet."""

    base_result_dir: Changeable[Path] = key("results", "directory of the result directories of all runs")
    unique_name: Changeable[Name] = key(
        "mat", "this run's result directory; may use {date}, {id}, $VARIABLES and any key, as in {seed} or {optimizer[n_iterations]}"
    )
    dataset: Literal["tiny_imagenet", "demo"] = key("tiny_imagenet", "tiny_imagenet, or demo, which makes its own images in data_dir")
    data_dir: Changeable[Path] = key("data/tiny-imagenet", "directory of train.tfrecord and validation.tfrecord")
    image_size: int = key(64, "height and width of the images, pixels", ge=8, le=4096)
    n_classes: int = key(200, "labels are 0 to n_classes - 1", ge=2)

    network: Path = key("resnet", "resnet; an own network: a .keras file, or package.module:function, called with image_size, n_classes")
    input_range: Literal["0..1", "0..255", "-1..1", "imagenet"] = key(
        "0..1", "pixels that an own network takes; imagenet: normalized by channel, as for torchvision's networks"
    )
    logits: YesNo = key(True, "an own network gives logits, or (false) probabilities")
    safe_mode: YesNo = key(True, "refuse a .keras file with code of its own, such as a Lambda layer's; false runs the code")
    fresh_weights: YesNo = key(False, "initialize an own network's weights anew")
    depth: int = key(14, "of the ResNet, 6 n + 2 for n residual blocks a stack", ge=8)
    width: int = key(4, "16 x width filters in the first stack, doubled in each next one", ge=1)
    n_stacks: int = key(4, "stacks; each but the first halves the feature map, which must stay at least 8x8", ge=1, le=10)
    normalization: Literal["strip", "group", "batch", "layer", "none"] = key(
        "strip", "strip (the original's, which released weights need), group, batch, layer, none"
    )
    initial_weights: Path | None = key(
        None, "weights file to start from: the original's HDF5, or Keras 3's .weights.h5 or .keras; null for none"
    )

    n_epochs: int = key(75, "passes over the training images", ge=1)
    batch_size: int = key(128, "images per step", ge=1)
    initial_lr: float = key(0.033, "learning rate of the first epoch; a cosine takes it to 0 over n_epochs", gt=0)
    weight_decay: float = key(1e-4, "factor of the sum of squared convolution kernels in the loss, depthwise ones too", ge=0)
    label_smoothing: float = key(0.0, "probability moved from the true class to the others, which must stay less probable", ge=0, le=1)

    n_patches: int = key(1000, "P, size of the bank; 0 trains without patches", ge=0)
    patch_shape: tuple[int, ...] = key((24, 24, 3), "height, width and channels of a patch, pixels", strict=False)
    patch_initialization: Literal["data", "random"] = key("data", "patches start as shrunken training images (data) or as noise (random)")
    patch_lr: float = key(0.25, "sigma, rate of the Reptile update of the bank", ge=0, le=1)
    n_patch_trials: int = key(5, "F, random (patch, position) trials per image, of which SELECT keeps the worst", ge=1)
    optimizer: OptimizerConfig = key(OptimizerConfig(), "the inner optimizer, I-FGSM", strict=False)

    bad_records: Changeable[Literal["stop", "skip"]] = key("stop", "records of data_dir that cannot be used: stop the run, or skip them")
    max_bad_records: Changeable[int] = key(100, "most records of a file that skip passes over; more stop the run", ge=0)
    checkpoint_every_minutes: Changeable[float] = key(10.0, "minutes between checkpoints within an epoch; each epoch ends with one", gt=0)
    checkpoints_to_keep: Changeable[int] = key(2, "newest checkpoints that are kept", ge=1)

    robust_evaluation: Changeable[Literal["none", "quick", "full"]] = key(
        "quick", "accuracy under universal patch attacks, measured after the last epoch: none, quick, full (hours on a CPU)"
    )
    plain_baseline: Changeable[YesNo] = key(False, "then train the same network without patches, and compare")
    evaluation: EvaluationConfig = key(EvaluationConfig(), "the protocol of robust_evaluation and mat/evaluate.py", strict=False)

    seed: int = key(0, "of every random draw", ge=0, le=2**32 - 1)
    precision: Literal["float32", "tensorfloat32", "mixed_bfloat16"] = key(
        "float32",
        "float32; tensorfloat32 (10 bits of mantissa in convolutions, faster on GPUs from Ampere on); mixed_bfloat16 (network in bfloat16; "
        "statistics, losses, patches and weights in float32)",
    )
    attack_precision: Literal["same", "float32", "bfloat16"] = key(
        "same", "of SELECT and I-FGSM, which need an order and signs: same (as precision), float32 (or tensorfloat32, if so), bfloat16"
    )
    jit_compile: YesNo | Literal["auto"] = key("auto", "compile the step with XLA: auto (on GPUs), true, false")
    deterministic: YesNo = key(True, "identical weights in every run of one config on one machine; false may be faster on GPUs")
    steps_per_call: Changeable[int] = key(
        1, "steps that one call makes; more may be faster on GPUs. Progress, checkpoints and Ctrl-C wait for its end", ge=1
    )
    distribution: Changeable[Literal["auto", "none", "mirrored", "multi_worker"]] = key(
        "auto",
        "what shares each batch: all GPUs (mirrored), the processes in TF_CONFIG (multi_worker), what there is (auto), nothing (none)",
    )
    log_every_steps: Changeable[int | None] = key(
        None, "steps between TensorBoard's loss and accuracy of single steps; null gives a run about 1,000 of them", ge=1
    )

    def _check(self) -> None:
        check_result_path("base_result_dir", self.base_result_dir)
        self._check_network()
        if (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            raise UserError(f"depth must be 6 n + 2 (8, 14, 20, ...); the nearest are {below} and {below + 6}. Received: {self.depth}")
        feature_map = last_feature_map(self.image_size, self.n_stacks)
        if feature_map < SMALLEST_POOL and not self.own_network:
            fitting = max(n for n in range(1, self.n_stacks) if last_feature_map(self.image_size, n) >= SMALLEST_POOL)
            raise UserError(
                f"images of {self.image_size}x{self.image_size} pixels are too small for n_stacks: {self.n_stacks}: the last feature map "
                f"would be {feature_map}x{feature_map}, and the network needs at least {SMALLEST_POOL}x{SMALLEST_POOL}. "
                f"Set n_stacks: {fitting} or a larger image_size. Received: image_size: {self.image_size}"
            )
        if self.dataset == "demo" and (self.image_size, self.n_classes) != (DEMO_IMAGE_SIZE, DEMO_N_CLASSES):
            raise UserError(
                f"dataset: demo needs image_size: {DEMO_IMAGE_SIZE} and n_classes: {DEMO_N_CLASSES}. "
                f"Received: image_size: {self.image_size}, n_classes: {self.n_classes}"
            )
        shape = list(self.patch_shape)
        if len(shape) != 3 or min(shape) < 1 or shape[2] != 3:
            raise UserError(f"patch_shape must be [height, width, 3] with whole numbers of at least 1. Received: {format_value(shape)}")
        if max(shape) > self.image_size:
            largest = [self.image_size, self.image_size, 3]
            raise UserError(f"patch_shape must fit into the image, so at most {largest}. Received: {format_value(shape)}")
        others = self.label_smoothing / (self.n_classes - 1)
        if others > (1 - 1e-6) * (1 - self.label_smoothing):  # in float32 too: accuracy is read off the labels
            raise UserError(
                f"label_smoothing must be in [0, {1 - 1 / self.n_classes:g}) for {self.n_classes} classes: from there on the true class is "
                f"no more probable than the others. Received: {self.label_smoothing}"
            )
        if self.plain_baseline and (not self.n_patches or self.robust_evaluation == "none"):
            raise UserError(
                "plain_baseline: true compares the robustness with that of training without patches, which needs n_patches above 0 and "
                f"robust_evaluation: quick or full. Received: n_patches: {self.n_patches}, robust_evaluation: {self.robust_evaluation}"
            )
        if self.robust_evaluation == "full" and self.evaluation.starts == ("bank",) and (self.plain_baseline or not self.n_patches):
            raise UserError("evaluation.starts: [bank] needs a bank, which training without patches has not. Add another start")

    def _check_network(self) -> None:
        """Refuse a network that is none of the three kinds, keys of other kinds, and a precision that it cannot have.

        The keys of the ResNet have values in most configs, so that the plan of a run tells that they do not apply.
        """
        if self.own_network and not re.fullmatch(r".*\.keras|[^\W\d]\w*(\.\w+)*:\w+", self.network, re.DOTALL):
            remedy = "A model in another format is made one by model.save('NAME.keras')"
            raise UserError(
                f"network must be resnet, a .keras file or package.module:function. {remedy}. Received: {format_value(self.network)}"
            )
        for name in () if self.own_network else OWN_NETWORK_KEYS:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                remedy = "Leave it out, or set network: FILE.keras"
                raise UserError(f"{name}: {format_value(value)} has no effect on network: {format_value(self.network)}. {remedy}")
        for name, value in {"precision": "mixed_bfloat16", "attack_precision": "bfloat16"}.items():
            if self.network.endswith(".keras") and getattr(self, name) == value:
                others = "float32 or tensorfloat32" if name == "precision" else "same"
                raise UserError(
                    f"{name}: {value} has no effect on network: {format_value(self.network)}, whose layers are saved with their types. "
                    f"Set {name}: {others}, or give a function that makes it (network: package.module:function)"
                )

    @classmethod
    def from_yaml(cls, path: str | os.PathLike, overrides: Sequence[str] = (), *, resume: bool = False) -> Self:
        """Read a config file, the original's `mat.yaml` and saved `config.yaml` included, and fill in the placeholders of `unique_name`.

        Args:
            path: the YAML file.
            overrides: strings `key=value` that replace what the file says; nested keys are written with a dot.
            resume: refuse a `unique_name` with {date} or {id}, which names another directory each time.

        Raises:
            UserError: the file cannot be read, is not the YAML of such a mapping, or as of `from_values`.
        """
        values = read_mapping(path)
        for override in overrides:
            apply_override(values, override)
        try:
            return cls.from_values(values, resume=resume)
        except UserError as error:
            source = f"{path} with --set {single_line(' '.join(overrides))}" if overrides else path
            raise UserError(f"{source}: {error}") from None

    @classmethod
    def from_values(cls, values: dict[str, Any], *, resume: bool = False) -> Self:
        """The config of the values of a YAML file, with the `image_size` and the `n_classes` of the data where they are not given.

        Args:
            values: by key, those of a section as a dict.
            resume: as of `from_yaml`.

        Raises:
            UserError: an unknown key, a wrong value, or one that contradicts the `dataset.json` of the data.
        """
        config = cls(**add_metadata(values, cls.model_fields["data_dir"].default))
        return config.replace(unique_name=expand_unique_name(config.unique_name, config.to_values(), resume=resume))

    def to_yaml(self, path: str | os.PathLike, *, comment: str = "") -> None:
        """Write the config to `path`, below a `comment` of one line, every key with its value; `from_yaml` reads the same config back."""
        values = self.to_values() | {"unique_name": literal_name(self.unique_name)}
        head = f"# {comment}\n" if comment else ""
        replace_file(path, (head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode())

    def without_patches(self) -> Self:
        """The config of the plain baseline: the same but for the patches, beside this run's result directory."""
        return self.replace(n_patches=0, plain_baseline=False, unique_name=f"{self.unique_name}_plain")

    @property
    def bad_records_allowed(self) -> int:
        """How many bad records of a file are passed over."""
        return self.max_bad_records if self.bad_records == "skip" else 0

    @property
    def own_network(self) -> bool:
        """Whether the network is the user's, and not the original's ResNet."""
        return self.network != "resnet"

    @property
    def dtype(self) -> str:
        """The network's Keras dtype policy; TensorFloat-32 is a way to compute in float32, not a type."""
        return "float32" if self.precision == "tensorfloat32" else self.precision

    @property
    def result_dir(self) -> pathlib.Path:
        """Where this run writes: `base_result_dir/unique_name`."""
        return pathlib.Path(self.base_result_dir) / self.unique_name
