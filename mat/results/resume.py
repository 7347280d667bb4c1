"""Checks before a run is resumed or extended: same config, same data, a version that computes the same."""

from typing import Any

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.devices import tensorfloat32_is_fast
from mat.cli.errors import UserError
from mat.cli.text import format_value
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.models.pooling import SMALLEST_POOL, last_feature_map
from mat.results.run_directory import ResultDirectory
from mat.results.run_files import CONFIG_FILE


def read_record(directory: ResultDirectory, config: PatchTrainingConfig, *, extend: int | None = None) -> dict[str, Any] | None:
    """The record of the run in a result directory, of its newest readable checkpoint; None where the run starts afresh.

    Args:
        directory: where the checkpoints are.
        config: of the run; its `n_epochs` may be what it was before the run was extended.
        extend: to how many epochs the run shall be extended.

    Raises:
        UserError: it is the run of another config or version, its checkpoints are damaged or gone, or cannot be read; or it cannot be
            extended.
    """
    try:
        record = directory.checkpoints.read_record()
    except OSError as error:
        raise directory.unusable_error(error) from None
    if record is not None:
        try:
            saved = PatchTrainingConfig(**record["config"])
        except UserError as error:
            raise UserError(f"{directory.path}: its run is of another version of this program ({error})") from None
        extensions = record.get("extensions", [])
        if any(config.n_epochs == n_epochs for n_epochs in (extend, *(earlier for _, earlier in extensions))):
            config = config.replace(n_epochs=saved.n_epochs)
        _check_same_config(directory, saved, config)
        if extend is not None and (extend < saved.n_epochs or (extend == saved.n_epochs and not extensions)):
            raise UserError(
                f"{directory.path}: this run has n_epochs: {saved.n_epochs}, and --extend must be more. Received: {extend}. To go on with "
                f"the run as it is: {directory.resume_command}"
            )
        return record
    if weights := directory.newest_weights():
        raise UserError(
            f"{directory.path}: has the results of a run and no checkpoint to resume from. Remove the directory to start afresh, or go on "
            f"under another unique_name with initial_weights: {weights}"
        )
    if extend is not None:
        raise UserError(f"{directory.path}: there is no run to extend to {extend} epochs. Train it first, without --extend")
    if (path := directory.path / CONFIG_FILE).exists():
        _check_same_config(directory, PatchTrainingConfig.from_yaml(path), config)
    console.print(f"{directory.path}: no checkpoint to resume from; starting afresh")
    return None


def _check_same_config(directory: ResultDirectory, saved: PatchTrainingConfig, config: PatchTrainingConfig) -> None:
    """Refuse to go on with another config than the one that is saved."""
    if different := saved.differences(config):
        was = ", ".join(f"{key}: {format_value(value)}" for key, value, _ in different)
        given = ", ".join(f"{key}: {format_value(value)}" for key, _, value in different)
        longer = [key for key, *_ in different] == ["n_epochs"] and config.n_epochs > saved.n_epochs
        remedy = f", or make it longer with --extend {config.n_epochs}" if longer else ""
        raise UserError(f"{directory.path}: this run has {was}, and the config has {given}. Resume with the run's own config{remedy}")


def restore(
    directory: ResultDirectory,
    config: PatchTrainingConfig,
    state: tf.train.Checkpoint,
    record: dict[str, Any],
    splits: tuple[Records, Records],
) -> None:
    """Set `state` to the newest usable checkpoint.

    Args:
        directory: where the checkpoints are.
        config: the run's config.
        state: what is set; its `record` is this process's `RunRecord`.
        record: of `read_record`.
        splits: the training and the validation data.

    Raises:
        UserError: the run was begun with other data, another file of an own network, or by a version that computes something else; or no
            checkpoint is whole.
    """
    if record["data_sha256"] != state.record.data_sha256:
        raise UserError(
            f"{config.data_dir}: not the data that the run in {directory.path} was begun with. Give data_dir that data, or train under "
            "another unique_name"
        )
    if record.get("network_git_blob") != state.record.network_git_blob:
        raise UserError(f"{config.network}: not the file that the run in {directory.path} was begun with. Give network that file again")
    try:
        directory.checkpoints.restore(state)
    except OSError as error:
        raise directory.unusable_error(error) from None
    _check_version(directory, config, record["versions"]["mat"], np.concatenate([records.sizes for records in splits]))
    if record["versions"]["tensorflow"] != tf.__version__:
        console.print(
            f"The checkpoint was written with TensorFlow {record['versions']['tensorflow']}, this is {tf.__version__}: results may "
            "differ in their last digits from those of an uninterrupted run"
        )


def _check_version(directory: ResultDirectory, config: PatchTrainingConfig, version: str, sizes: np.ndarray) -> None:
    """Refuse a run of a version that computed something else on images of these sizes, integers [N, 2].

    Before 0.4, images were squeezed into squares for validation, and shrunk without smoothing. The network of 0.1 cropped what it pooled
    to multiples of 8; its float32 may also have been TensorFloat-32, on GPUs from Ampere on.
    """
    resized_otherwise = np.any(sizes[:, 0] != sizes[:, 1]) or np.any(sizes > config.image_size)
    if version.startswith(("0.1.", "0.2.", "0.3.")) and resized_otherwise:
        raise UserError(
            f"{directory.path}: its run is of version {version}, which squeezed images into squares and left out pixels where it shrank "
            "them. Train anew under another unique_name"
        )
    if not version.startswith("0.1."):
        return
    if last_feature_map(config.image_size, config.n_stacks) % SMALLEST_POOL:
        raise UserError(
            f"{directory.path}: its run is of version {version}, which left out a part of images of image_size: {config.image_size} with "
            f"n_stacks: {config.n_stacks}. Train anew under another unique_name"
        )
    if config.precision == "float32" and tensorfloat32_is_fast() is not False:
        console.print(f"The run was begun by version {version}, whose float32 was TensorFloat-32 on this device; now it is float32")
