"""What `mat.tools.benchmark` measures: the training step beside its convolutions, the input pipeline and the bank.

All timings of one function are medians, and what is compared is timed in turns, so that a machine that slows down for a while slows down
both sides. Shapes: `B` images a batch, `F` trials, `K` I-FGSM iterations, `P` meta-patches.
"""

import contextlib
import dataclasses
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from mat import __version__
from mat.cli.devices import configure, device_name, use_xla
from mat.cli.errors import NonFiniteLossError, UserError
from mat.cli.progress import ProgressLine
from mat.data.reading import read_records
from mat.data.records import IMAGE, LABEL, record_path
from mat.data.tiny_imagenet import CROP_AREA, CROP_ASPECT_RATIO, CROP_ATTEMPTS, SATURATION, resize, train_dataset
from mat.models import create_model
from mat.models.prepared import compile_with
from mat.results.checkpoints import Checkpoints, RunRecord
from mat.tools.conv_bound import Convolutions, seconds_of
from mat.tools.synthetic import make_synthetic_records
from mat.trainer import create_step, sample_patches

N_SYNTHETIC = {"n_train": 100_000, "n_validation": 10_000}  # as many as Tiny ImageNet has
PIPELINE_SECONDS = 2.0  # of each pipeline in a round
LEARNING_RATE = 1e-3  # finite losses on noise


def environment(config):
    """Device, versions and whether XLA compiles the step."""
    return {
        "device": device_name(),
        "versions": {"mat": __version__, "python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__},
        "xla": use_xla(config.jit_compile),
    }


def measure_step(config, repeats, *, breakdown=False, profile=None):
    """Time the step of a config, the plain step of the same network, and each convolution of it alone, in turns.

    Args:
        config: a `PatchTrainingConfig`.
        repeats: rounds that the medians are of.
        breakdown: also time the parts of the step.
        profile: a directory for a TensorFlow profile of one step, or None.

    Returns:
        dict, ready for JSON.
    """
    configure(precision=config.precision, deterministic=config.deterministic)
    if profile is not None:
        make_directory(profile)
    model = create_model(config)
    bank = random_bank(config) if config.n_patches else None
    first_step_seconds = _first_call_seconds(create_step(config, model, bank), *noise_batch(config, 1))
    steps = {"mat": create_step(config, model, bank)}
    batch = noise_batch(config, config.batch_size)
    seconds_of(steps["mat"].train_on_batch, *batch)  # traces
    peak_memory_bytes = peak_memory()  # before more is built that a training run does not hold
    steps["plain"] = create_step(config, model, None)
    for step in steps.values():
        step.optimizer.learning_rate.assign(LEARNING_RATE)
    seconds = {name: [] for name in steps}
    convolutions = Convolutions(model, config.batch_size, config.dtype)
    seconds_of(steps["plain"].train_on_batch, *batch)
    with ProgressLine(repeats, "measuring the step") as line:
        for done in range(repeats):
            convolutions.measure()
            for name, step in steps.items():
                seconds[name].append(seconds_of(step.train_on_batch, *batch))
            line.update(done + 1, f"{done + 1}/{repeats}")
    convolutions.measure()
    if any(int(step.failed_step) >= 0 for step in steps.values()):
        raise NonFiniteLossError("the loss became NaN or infinite, so that no whole step was timed. Try precision: float32")

    n_trials, n_iterations = (config.n_patch_trials, config.optimizer.n_iterations) if bank else (0, 0)
    step_seconds, plain_seconds = (statistics.median(seconds[name]) for name in steps)
    equivalents = convolutions.equivalents(n_trials, n_iterations)
    bound = convolutions.bound_seconds(equivalents)
    layers = convolutions.report(equivalents)
    result = {
        "repeats": repeats,
        "step_seconds": step_seconds,
        "images_per_second": config.batch_size / step_seconds,
        "plain_step_seconds": plain_seconds,
        "mat_to_plain_ratio": step_seconds / plain_seconds,
        "conv_bound_seconds": bound,
        "fraction_of_conv_bound": bound / step_seconds,
        "plain_fraction_of_conv_bound": convolutions.bound_seconds(convolutions.equivalents(0, 0)) / plain_seconds,
        "step_gflops": convolutions.gflop(equivalents) / step_seconds,
        "best_conv_gflops": max(layer["gflops"] for layer in layers),
        "convolutions": layers,
        "first_step_seconds": first_step_seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "all_step_seconds": seconds["mat"],
        "all_plain_step_seconds": seconds["plain"],
    }
    if breakdown:
        result["breakdown"] = measure_parts(steps, batch, repeats)
    if profile is not None:
        tf.profiler.experimental.start(profile)
        seconds_of(steps["mat"].train_on_batch, *batch)
        tf.profiler.experimental.stop()
    return result


def make_directory(path):
    """Make a directory, before the minutes after which it is written to."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile {path}: cannot be made: {error.strerror or error}") from None


def random_bank(config):
    """A `PatchBank` as `config` wants it, but of noise, which costs a step the same and needs no images."""
    return sample_patches(dataclasses.replace(config, patch_initialization="random"), None)


def noise_batch(config, batch_size):
    """Images float32 [B, H, W, 3] of noise, and one-hot labels float32 [B, n_classes]."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[batch_size, config.image_size, config.image_size, 3])
    return tf.constant(images, tf.float32), tf.one_hot(rng.integers(config.n_classes, size=batch_size), config.n_classes)


def measure_parts(steps, batch, repeats):
    """Seconds of SELECT, I-FGSM and REPTILE, each compiled as a function of its own, and of OPT, which is the plain step."""
    step, (images, labels) = steps["mat"], batch
    seconds = {"OPT": [seconds_of(steps["plain"].train_on_batch, *batch) for _ in range(repeats)]}
    if step.bank is None:
        return {"OPT": statistics.median(seconds["OPT"])}

    def compiled(function):
        return compile_with(step.model, function, jit_compile=step.jit_compile)

    trial_indices, trial_offsets = step.draw_trials(images.shape[0], images.shape[1:3])
    indices, offsets = trial_indices[0], trial_offsets[0]
    refined = tf.gather(step.bank.patches, indices)
    parts = {
        "SELECT": (compiled(step.select), (images, labels, trial_indices, trial_offsets)),
        "I-FGSM": (compiled(step.refine), (images, labels, indices, offsets)),
        "REPTILE": (compiled(lambda refined, indices: step.bank.update(refined, indices, step.patch_lr)), (refined, indices)),
    }
    for name, (function, arguments) in parts.items():
        seconds_of(function, *arguments)  # traces
        seconds[name] = [seconds_of(function, *arguments) for _ in range(repeats)]
    return {name: statistics.median(seconds[name]) for name in ("SELECT", "I-FGSM", "OPT", "REPTILE")}


@contextlib.contextmanager
def records_of(config):
    """The directory of the config's records, or of synthetic ones where it has none; with words on which, as a pair."""
    if record_path(config.data_dir, "train").is_file():
        yield config.data_dir, f"of {config.data_dir}"
        return
    scale = min(1.0, (64 / config.image_size) ** 2)  # as many bytes as at 64x64
    counts = {name: max(int(scale * count), config.batch_size) for name, count in N_SYNTHETIC.items()}
    with tempfile.TemporaryDirectory(prefix="mat-benchmark-") as directory:
        try:
            make_synthetic_records(directory, n_classes=config.n_classes, image_size=config.image_size, **counts)
        except OSError as error:
            raise UserError(f"{directory}: synthetic records cannot be written: {error.strerror or error}. Set TMPDIR") from None
        yield directory, f"{counts['n_train']:,} synthetic ones ({config.data_dir} has none)"


def measure_pipeline(config, records, repeats):
    """Images/s of the training pipeline alone and of `plain_pipeline`, in turns.

    To be called before `measure_step` turns on deterministic operations, under which the random ones of the plain pipeline cannot run in
    parallel; ours are stateless and do not care.
    """
    directory, words = records
    train_records = read_records(directory, "train", n_classes=config.n_classes)
    if len(train_records.labels) < config.batch_size:
        raise UserError(f"{train_records.path}: {len(train_records.labels)} records do not fill a batch of batch_size: {config.batch_size}")
    arguments = {"batch_size": config.batch_size, "n_classes": config.n_classes, "image_size": config.image_size}
    pipelines = {
        "pipeline_images_per_second": lambda: train_dataset(
            train_records, label_smoothing=config.label_smoothing, seed=config.seed, epoch=0, **arguments
        ),
        "plain_pipeline_images_per_second": lambda: plain_pipeline(train_records.path, **arguments),
    }
    rates = {name: [] for name in pipelines}
    for _ in range(repeats):
        for name, pipeline in pipelines.items():
            rates[name].append(_images_per_second(pipeline().repeat(), config.batch_size))
    return {"records": words, **{name: statistics.median(values) for name, values in rates.items()}}


def plain_pipeline(path, *, batch_size, n_classes, image_size):
    """What a pipeline is measured against: parse, decode, slice, flip, saturation, legacy resize, one image a call, in that order."""
    features = {IMAGE: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

    def load(record):
        parsed = tf.io.parse_single_example(record, features)
        image = tf.image.convert_image_dtype(tf.io.decode_jpeg(parsed[IMAGE], channels=3), tf.float32)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), whole, seed=1, aspect_ratio_range=CROP_ASPECT_RATIO, area_range=CROP_AREA, max_attempts=CROP_ATTEMPTS
        )
        image = tf.image.random_flip_left_right(tf.slice(image, begin, size), seed=2)
        image = tf.image.random_saturation(image, *SATURATION, seed=3)
        return resize(image, image_size), tf.one_hot(parsed[LABEL], n_classes)

    images = tf.data.TFRecordDataset(path).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return images.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def measure_bank(config, records):
    """Seconds of reading and checking the training records, and of INIT."""
    directory, words = records
    read_seconds, train_records = _timed(read_records, directory, "train", n_classes=config.n_classes)
    result = {"records": words, "read_seconds": read_seconds}
    if config.n_patches:
        result["sample_bank_seconds"], _ = _timed(sample_patches, config, train_records)
    return result


def measure_checkpoint(config, repeats):
    """Seconds and bytes of a checkpoint of a config's run in the temporary directory, and seconds of restoring it.

    The first write, which also traces, is not among those that the median is of.
    """
    step = create_step(config, create_model(config), random_bank(config) if config.n_patches else None)
    state = tf.train.Checkpoint(step=step, record=RunRecord(config.to_values(), data_sha256=""))
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(directory, keep=config.checkpoints_to_keep)
        seconds = [_timed(checkpoints.save, state)[0] for _ in range(repeats + 1)][1:]
        restore_seconds, path = _timed(checkpoints.restore, state)
        n_bytes = sum(file.stat().st_size for file in pathlib.Path(directory).glob(f"{pathlib.Path(path).name}.*"))
    return {"checkpoint_seconds": statistics.median(seconds), "checkpoint_bytes": n_bytes, "restore_seconds": restore_seconds}


def peak_memory():
    """The most memory that this process has held so far, bytes: of the GPU where there is one, else of the machine."""
    if tf.config.get_visible_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _first_call_seconds(step, images, labels):
    """Tracing and compilation: the first call less a warm one."""
    first = seconds_of(step.train_on_batch, images, labels)
    return first - seconds_of(step.train_on_batch, images, labels)


def _images_per_second(dataset, batch_size):
    """The rate of a dataset once it runs."""
    batches = iter(dataset)
    end = time.perf_counter() + PIPELINE_SECONDS / 2
    while time.perf_counter() < end:
        next(batches)
    n_batches, start = 0, time.perf_counter()
    while time.perf_counter() - start < PIPELINE_SECONDS:
        next(batches)
        n_batches += 1
    return n_batches * batch_size / (time.perf_counter() - start)


def _timed(function, *arguments, **keywords):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments, **keywords)
    return time.perf_counter() - start, result
