"""Configuration of a training run: frozen dataclasses, strict and safe YAML in, YAML out.

This module imports no TensorFlow, so that a faulty config is reported at once.
"""

import datetime
import os
import pathlib
import re
import string
import uuid
from dataclasses import asdict, dataclass, replace

import yaml

from mat.cli.config_keys import MAX_NAME, from_mapping, key, normalize_and_check, plain_values
from mat.cli.errors import UserError
from mat.cli.files import expand_variables, replace_file
from mat.cli.text import format_value, single_line
from mat.cli.yaml_reader import apply_override, read_mapping
from mat.models.pooling import SMALLEST_POOL, last_feature_map

DEMO_IMAGE_SIZE = 32
DEMO_N_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The inner optimizer, I-FGSM (Algorithm 1 of arXiv:2101.11453).

    Raises:
        UserError: a value of the wrong type or out of its range.
    """

    min_step_size: float = key(1e-4, float, "smallest I-FGSM step size, in units of the [0, 1] pixel range", above=0, maximum=1)
    max_step_size: float = key(0.1, float, "largest I-FGSM step size; each patch draws its own, log-uniformly", above=0, maximum=1)
    n_iterations: int = key(5, int, "K: I-FGSM iterations per batch", minimum=0, maximum=1000)
    targeted_attack: bool = key(True, bool, "each patch drives images to its own target class, instead of away from the true one")

    def __post_init__(self):
        normalize_and_check(self, "optimizer.")
        if self.min_step_size > self.max_step_size:
            raise UserError(
                f"optimizer.min_step_size must not exceed optimizer.max_step_size. Received: {self.min_step_size} > {self.max_step_size}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The protocol of an evaluation of robustness; the defaults are the full one. docs/evaluation.md says what it measures.

    Raises:
        UserError: a value of the wrong type or out of its range, or values that do not fit together.
    """

    attacks: tuple = key(("white_box", "gradient_free"), tuple, "attacks to run", item=str, choices=("white_box", "gradient_free"))
    max_images: int | None = key(None, int, "validation images to score on, drawn at random; null takes all", minimum=1, maximum=10**9)
    n_fit_images: int = key(2000, int, "training images that patches are fitted on, drawn at random", minimum=1, maximum=10**9)
    n_targets: int = key(5, int, "target classes of targeted attacks, drawn at random, beside the untargeted one", minimum=0, maximum=10**6)
    starts: tuple = key(
        ("random", "data", "grey", "bank"),
        tuple,
        "where white-box patches start: noise, shrunken training images, grey, the trained bank where there is one",
        item=str,
        choices=("random", "data", "grey", "bank"),
    )
    step_sizes: tuple = key(
        (0.02, 0.1),
        tuple,
        "first step of white-box attacks, in units of the pixel range; a cosine takes it to 0",
        item=float,
        above=0,
        maximum=1,
    )
    restarts: int = key(1, int, "patches fitted for each combination of target, start and step size", minimum=1, maximum=10_000)
    iterations: int = key(1000, int, "gradient steps of a white-box patch", minimum=1, maximum=10**7)
    search_iterations: int = key(4000, int, "queries of a gradient-free patch", minimum=1, maximum=10**8)
    images_per_iteration: int = key(32, int, "training images in each step or query of a patch", minimum=1, maximum=100_000)
    images_at_once: int = key(128, int, "images in memory in one pass of the network; changes no draw", minimum=1, maximum=10**6, free=True)
    n_controls: int = key(10, int, "noise patches, and as many natural ones, to compare with", minimum=1, maximum=10_000)
    curves: bool = key(True, bool, "measure accuracy against iterations and against patch size")
    patch_scales: tuple = key(
        (0.25, 0.5, 1.5),
        tuple,
        "sizes of the patch-size curve in units of patch_shape; too large ones are left out",
        item=float,
        above=0,
        maximum=100,
    )
    interval_width: float = key(
        0.07, float, "widest 95 % interval of the robust accuracy that raises no warning", above=0, maximum=1, free=True
    )

    def __post_init__(self):
        normalize_and_check(self, "evaluation.")
        if "white_box" not in self.attacks:
            raise UserError(
                f"evaluation.attacks must have white_box, which everything else is held against. "
                f"Received: {format_value(list(self.attacks))}"
            )
        if self.images_per_iteration > self.images_at_once:
            raise UserError(
                "evaluation.images_per_iteration must not exceed evaluation.images_at_once. "
                f"Received: {self.images_per_iteration} > {self.images_at_once}"
            )

    def quick(self):
        """The same protocol with the keys of `QUICK` replaced, where they make it cheaper."""
        return replace(self, **{name: min(value, getattr(self, name)) if type(value) is int else value for name, value in QUICK.items()})


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


@dataclass(frozen=True, kw_only=True)
class PatchTrainingConfig:
    """Everything a training run depends on. The defaults are the published setting on Tiny ImageNet.

    Raises:
        UserError: a value of the wrong type or out of its range, or values that do not fit together.
    """

    base_result_dir: str = key("results", str, "directory that holds the result directories of all runs", path=True, free=True)
    unique_name: str = key(
        "mat",
        str,
        "name of this run's result directory; may use {date}, {id}, $VARIABLES and keys, as in {optimizer[n_iterations]}",
        free=True,
    )
    dataset: str = key("tiny_imagenet", str, "what data_dir holds; demo makes its own images there", choices=("tiny_imagenet", "demo"))
    data_dir: str = key("data/tiny-imagenet", str, "directory of train.tfrecord and validation.tfrecord", path=True, free=True)
    image_size: int = key(64, int, "height and width of the images, pixels", minimum=8, maximum=4096)
    n_classes: int = key(200, int, "number of classes; labels are 0 .. n_classes - 1", minimum=2, maximum=1_000_000)

    depth: int = key(14, int, "layers of the ResNet, 6 n + 2 for n blocks a stack", minimum=8, maximum=1202)
    width: int = key(4, int, "width factor: 16 * width filters in the first stack, doubled in each next one", minimum=1, maximum=64)
    n_stacks: int = key(4, int, "stacks of residual blocks; each but the first halves the feature map", minimum=1, maximum=10)
    normalization: str = key(
        "strip", str, "normalization layer; strip is the original's", choices=("strip", "group", "batch", "layer", "none")
    )
    initial_weights: str | None = key(None, str, "weights file to start from, in the original's HDF5 layout, or null", path=True)

    n_epochs: int = key(75, int, "passes over the training images", minimum=1, maximum=1_000_000)
    batch_size: int = key(128, int, "images per step", minimum=1, maximum=1_000_000)
    initial_lr: float = key(0.033, float, "learning rate of the first epoch, decayed to 0 by a cosine over n_epochs", above=0, maximum=1000)
    weight_decay: float = key(1e-4, float, "factor of the sum of squared convolution kernels in the loss", minimum=0, maximum=1000)
    label_smoothing: float = key(0.0, float, "probability mass moved from the true class to the others", minimum=0, maximum=1)

    n_patches: int = key(1000, int, "P: meta-patches in the bank; 0 trains without patches", minimum=0, maximum=10_000_000)
    patch_shape: tuple = key((24, 24, 3), tuple, "height, width and channels of a patch, pixels")
    patch_initialization: str = key("data", str, "meta-patches start as shrunken training images or as noise", choices=("data", "random"))
    patch_lr: float = key(0.25, float, "sigma: rate of the Reptile update of the bank", minimum=0, maximum=1)
    n_patch_trials: int = key(
        5, int, "F: random (patch, position) trials per image, of which SELECT keeps the worst", minimum=1, maximum=10_000
    )
    optimizer: OptimizerConfig = key(OptimizerConfig(), OptimizerConfig, "the inner optimizer, I-FGSM")

    bad_records: str = key(
        "stop", str, "what records that cannot be used do: stop the run, or be passed over", choices=("stop", "skip"), free=True
    )
    max_bad_records: int = key(
        100, int, "most records of a file that bad_records: skip passes over; more stop the run", minimum=0, maximum=10**9, free=True
    )
    checkpoint_every_minutes: float = key(10.0, float, "minutes between checkpoints within an epoch", above=0, maximum=1e6, free=True)
    checkpoints_to_keep: int = key(2, int, "newest checkpoints that are kept", minimum=1, maximum=1000, free=True)

    robust_evaluation: str = key(
        "quick", str, "accuracy under universal patch attacks, measured after training", choices=("none", "quick", "full"), free=True
    )
    plain_baseline: bool = key(False, bool, "then train the same network without patches and compare", free=True)
    evaluation: EvaluationConfig = key(EvaluationConfig(), EvaluationConfig, "the protocol of robust_evaluation and mat/evaluate.py")

    seed: int = key(0, int, "seed of every random draw", minimum=0, maximum=2**32 - 1)
    precision: str = key("float32", str, "arithmetic of the network", choices=("float32", "tensorfloat32", "mixed_bfloat16"))
    jit_compile: bool | str = key(
        "auto", (bool, str), "compile the step with XLA, as a whole; auto does on GPUs", choices=("auto", True, False)
    )
    deterministic: bool = key(True, bool, "identical weights in every run of one config on one machine; costs speed on GPUs")

    def __post_init__(self):
        normalize_and_check(self, "")
        _check_result_path("base_result_dir", self.base_result_dir)
        self._check_network()
        self._check_patches()
        if self.plain_baseline and (not self.n_patches or self.robust_evaluation == "none"):
            raise UserError(
                "plain_baseline: true compares the robustness with that of training without patches, which needs n_patches above 0 and "
                f"robust_evaluation: quick or full. Received: n_patches: {self.n_patches}, robust_evaluation: {self.robust_evaluation}"
            )
        if self.robust_evaluation == "full" and self.evaluation.starts == ("bank",) and (self.plain_baseline or not self.n_patches):
            raise UserError(
                "evaluation.starts: [bank] starts attacks from a bank, which training without patches has not. Add another start"
            )
        self._check_label_smoothing()
        if self.dataset == "demo" and (self.image_size, self.n_classes) != (DEMO_IMAGE_SIZE, DEMO_N_CLASSES):
            raise UserError(
                f"dataset: demo needs image_size: {DEMO_IMAGE_SIZE} and n_classes: {DEMO_N_CLASSES}. "
                f"Received: image_size: {self.image_size}, n_classes: {self.n_classes}"
            )

    def _check_label_smoothing(self):
        """The true class must stay the most probable one, in float32 too: accuracy is read off the labels."""
        bound = 1 - 1 / self.n_classes
        if self.label_smoothing / (self.n_classes - 1) > (1 - 1e-6) * (1 - self.label_smoothing):
            raise UserError(
                f"label_smoothing must be in [0, {bound:g}) for {self.n_classes} classes: from there on the true class is no more probable "
                f"than the others. Received: {self.label_smoothing}"
            )

    def _check_network(self):
        if (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            raise UserError(f"depth must be 6 n + 2 (8, 14, 20, ...); the nearest are {below} and {below + 6}. Received: {self.depth}")
        feature_map = last_feature_map(self.image_size, self.n_stacks)
        if feature_map < SMALLEST_POOL:
            fitting = max(n for n in range(1, self.n_stacks) if last_feature_map(self.image_size, n) >= SMALLEST_POOL)
            raise UserError(
                f"images of {self.image_size}x{self.image_size} pixels are too small for n_stacks: {self.n_stacks}: the last feature map "
                f"would be {feature_map}x{feature_map}, and the network needs at least {SMALLEST_POOL}x{SMALLEST_POOL}. "
                f"Set n_stacks: {fitting} or a larger image_size. Received: image_size: {self.image_size}"
            )

    def _check_patches(self):
        shape = self.patch_shape
        if len(shape) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape) or shape[2] != 3:
            raise UserError(
                f"patch_shape must be [height, width, 3] with whole numbers of at least 1. Received: {format_value(list(shape))}"
            )
        if max(shape[:2]) > self.image_size:
            raise UserError(
                f"patch_shape must fit into the image, so at most [{self.image_size}, {self.image_size}, 3]. "
                f"Received: {format_value(list(shape))}"
            )

    @classmethod
    def from_yaml(cls, path, overrides=(), *, resume=False):
        """Read a config file, the original's `mat.yaml` and saved `config.yaml` included.

        Args:
            path: the YAML file: a mapping of config keys.
            overrides: strings `key=value` that replace what the file says; nested keys are written with a dot, values are YAML.
            resume: refuse a `unique_name` with {date} or {id}, which names another directory each time.

        Returns:
            The checked config, with the placeholders of `unique_name` filled in.

        Raises:
            UserError: the file cannot be read, is not the YAML of such a mapping, or has an unknown key or a wrong value.
        """
        values = read_mapping(path)
        for override in overrides:
            apply_override(values, override)
        try:
            return cls.from_values(values).resolve_unique_name(resume=resume)
        except UserError as error:
            source = f"{path} with --set {single_line(' '.join(overrides))}" if overrides else path
            raise UserError(f"{source}: {error}") from None

    @classmethod
    def from_values(cls, values):
        """The config of a mapping of plain values, such as `to_values` gives; keys that it leaves out have their defaults.

        Raises:
            UserError: an unknown key or a wrong value.
        """
        return from_mapping(cls, values)

    def to_values(self):
        """Every key with its value as a dict of plain values, sections as dicts in it."""
        return plain_values(asdict(self))

    def to_yaml(self, path):
        """Write the config to `path`, every key with its value; `from_yaml` reads the same config back."""
        values = self.to_values()
        values["unique_name"] = _doubled_braces(self.unique_name)
        replace_file(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())

    def resolve_unique_name(self, *, resume=False):
        """Fill in the $VARIABLES and placeholders of `unique_name`; path separators in values become `_`, lists are joined by `_`.

        Raises:
            UserError: a variable that is not set, an unknown placeholder, a name that leads out of `base_result_dir`, or, to `resume`,
                one that is another each time.
        """
        try:
            template = expand_variables(self.unique_name, lambda value: _doubled_braces(value.replace(os.sep, "_")))
        except UserError as error:
            raise UserError(f"unique_name: {error}") from None
        if {"date", "id"} & _placeholders(template) and resume:
            raise UserError(
                "unique_name has {date} or {id}, so this file names a new directory each time. To resume a run, give the config.yaml "
                f"of its own result directory, such as {self.base_result_dir}/RUN/config.yaml. Received: {self.unique_name!r}"
            )
        values = _printable(asdict(self))
        values |= {"id": uuid.uuid4().hex[:8], "date": datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")}
        try:
            name = template.format(**values)
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise _wrong_name(self.unique_name, error) from None
        parts = pathlib.PurePath(name).parts
        _check_result_path("unique_name", name)
        if (
            not parts
            or pathlib.PurePath(name).is_absolute()
            or {"..", "~"} & set(parts)
            or max(len(part.encode()) for part in parts) > MAX_NAME
        ):
            raise UserError(
                f"unique_name must name a directory below base_result_dir in at most {MAX_NAME} bytes. Received: {format_value(name)}"
            )
        return replace(self, unique_name=name)

    @property
    def bad_records_allowed(self):
        """How many bad records of a file are passed over."""
        return self.max_bad_records if self.bad_records == "skip" else 0

    @property
    def dtype(self):
        """The network's Keras dtype policy; TensorFloat-32 is a way to compute in float32, not a type."""
        return "float32" if self.precision == "tensorfloat32" else self.precision

    def without_patches(self):
        """The config of the plain baseline: the same but for the patches, beside this run's result directory."""
        return replace(self, n_patches=0, plain_baseline=False, unique_name=f"{self.unique_name}_plain")

    @property
    def result_dir(self):
        """Where this run writes: `base_result_dir/unique_name`."""
        return pathlib.Path(self.base_result_dir) / self.unique_name


def _check_result_path(key, path):
    """Refuse what TensorFlow writes checkpoints to, but does not find again: it takes their paths for patterns."""
    if set(path) & set("[]\\"):
        raise UserError(f"{key} must be a path without brackets and backslashes. Received: {format_value(path)}")


def _doubled_braces(text):
    """Text as a format string that gives it."""
    return text.replace("{", "{{").replace("}", "}}")


def _placeholders(unique_name):
    """The names of the placeholders in a `unique_name`; attributes, and padding wider than a directory's name can be, are refused."""
    try:
        parsed = list(string.Formatter().parse(unique_name))
    except ValueError as error:
        raise _wrong_name(unique_name, error) from None
    for _, name, specification, _ in parsed:
        if name and not re.fullmatch(r"\w+(\[\w+\])?", name):
            raise _wrong_name(unique_name, f"{format_value(name)} is not such a name")
        if "{" in (specification or "") or any(int(width) > MAX_NAME for width in re.findall(r"\d+", specification or "")):
            raise _wrong_name(unique_name, f"{format_value(specification)} is too wide")
    return {name.partition("[")[0] for _, name, _, _ in parsed if name}


def _wrong_name(unique_name, error):
    return UserError(
        f"unique_name may use {{date}}, {{id}} and config keys such as {{seed}} or {{optimizer[n_iterations]}}. "
        f"Received: {format_value(unique_name)} ({error})"
    )


def _printable(value):
    """A value as `unique_name` shows it."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return "_".join(map(str, value))
    return value.replace(os.sep, "_") if isinstance(value, str) else value
