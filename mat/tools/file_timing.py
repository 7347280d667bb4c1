"""Timing of what a run reads and writes: the input pipeline, the records, the bank that starts from them, and checkpoints."""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Collection
from typing import Any

import tensorflow as tf

from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.reading import read_records
from mat.data.records import IMAGE, LABEL, record_path
from mat.data.tiny_imagenet import CROP_AREA, CROP_ASPECT_RATIO, CROP_ATTEMPTS, SATURATION, resize, train_dataset
from mat.models import create_model
from mat.patch import PatchBank
from mat.results.checkpoints import Checkpoints, RunRecord
from mat.run import create_step, sample_patches
from mat.tools.stopwatch import Stopwatch, timed
from mat.tools.synthetic import make_synthetic_records

N_SYNTHETIC = {"n_train": 100_000, "n_validation": 10_000}  # as many as Tiny ImageNet has
PIPELINE_SECONDS = 2.0  # of each pipeline in a round


def measure_data(config: PatchTrainingConfig, parts: Collection[str], repeats: int) -> dict[str, Any]:
    """Time the training pipeline and a plain one (`pipeline` in `parts`), and reading the records and INIT (`bank`).

    To be called before deterministic operations are turned on, under which the random ones of the plain pipeline cannot run in parallel;
    ours are stateless and do not care.
    """
    with _records(config) as (directory, words):
        read_seconds, records = timed(read_records, directory, "train", n_classes=config.n_classes)
        result = {"records": words}
        if "pipeline" in parts:
            result |= _pipeline_rates(config, records, repeats)
        if "bank" in parts:
            result["read_seconds"] = read_seconds
        if "bank" in parts and config.n_patches:
            result["sample_bank_seconds"], _ = timed(sample_patches, config, records)
    return result


@contextlib.contextmanager
def _records(config):
    """The directory of the config's records, or of synthetic ones where it has none, and words on which."""
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


def _pipeline_rates(config, records, repeats):
    """Images/s of the training pipeline and of the plain one, in turns."""
    if len(records.labels) < config.batch_size:
        raise UserError(f"{records.path}: {len(records.labels)} records do not fill a batch of batch_size: {config.batch_size}")
    sizes = {"batch_size": config.batch_size, "n_classes": config.n_classes, "image_size": config.image_size}
    ours, plain = [], []
    for _ in range(repeats):
        dataset = train_dataset(records, label_smoothing=config.label_smoothing, seed=config.seed, epoch=0, **sizes)
        ours.append(config.batch_size * _batches_per_second(dataset))
        plain.append(config.batch_size * _batches_per_second(_plain_pipeline(records.path, **sizes)))
    return {"pipeline_images_per_second": statistics.median(ours), "plain_pipeline_images_per_second": statistics.median(plain)}


def _plain_pipeline(path, *, batch_size, n_classes, image_size):
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

    images = tf.data.TFRecordDataset(str(path)).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return images.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _batches_per_second(dataset):
    """The rate of a dataset, repeated, once it runs."""
    batches = iter(dataset.repeat())
    for seconds in (PIPELINE_SECONDS / 2, PIPELINE_SECONDS):  # the first time to warm up
        n_batches, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(batches)
            n_batches += 1
    return n_batches / (time.perf_counter() - start)


def measure_checkpoint(config: PatchTrainingConfig, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of a checkpoint of a config's run in the temporary directory, and seconds of restoring it."""
    bank = PatchBank.empty(config.n_patches, config.patch_shape) if config.n_patches else None
    state = tf.train.Checkpoint(step=create_step(config, create_model(config), bank), record=RunRecord(config.to_values(), data_sha256=""))
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(directory, keep=config.checkpoints_to_keep)
        save = Stopwatch(checkpoints.save, state)
        save.measure(repeats)
        newest = pathlib.Path(checkpoints.paths()[0])
        n_bytes = sum(file.stat().st_size for file in newest.parent.glob(f"{newest.name}.*"))
        restore_seconds, _ = timed(checkpoints.restore, state)
    return {"checkpoint_seconds": save.median, "checkpoint_bytes": n_bytes, "restore_seconds": restore_seconds}
