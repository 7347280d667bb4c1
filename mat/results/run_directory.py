"""The result directory of a run: its files, and the lock that keeps other processes out."""

import contextlib
import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable, exclusive_lock, is_occupied, npz, replace_file
from mat.cli.text import single_line
from mat.config import PatchTrainingConfig
from mat.data.metadata import CLASSES_FILE
from mat.models import save_weights
from mat.models.own_network import inner_model
from mat.models.own_weights import save_network
from mat.patch import PatchBank
from mat.results.checkpoints import Checkpoints
from mat.results.events import Events
from mat.results.run_files import (
    BANK_FILE,
    BANK_PICTURE,
    CONFIG_FILE,
    LOG_COLUMNS,
    LOG_FILE,
    NETWORK_FILE,
    ROBUST_COLUMN,
    weights_files,
    weights_name,
)

LOCK_FILE = "lock"  # beside the checkpoints
EVENT_TAGS = {
    "train/loss": "loss",
    "train/accuracy": "accuracy",
    "validation/accuracy": "validation_accuracy",
    "learning_rate": "learning_rate",
}
MAX_PATCHES_IN_PICTURE, MAX_PATCHES_IN_EVENTS = 1000, 64
CELL = 48  # pixels: small patches are enlarged towards it in the picture


class ResultDirectory:
    """The directory that a run writes into.

    Nothing is written before `opened`; the constructor only finds out whether the run may use the directory.

    Args:
        path: the directory, `base_result_dir/unique_name` of a config.
        resume: whether to continue the run that is in the directory.
        checkpoints_to_keep: how many checkpoints are kept.
        resume_config: the config file that continues the run; by default the directory's own.
        own_network: whether the weights are those of an own network.

    Raises:
        UserError: the directory holds something other than logs and `resume` is not set, it cannot be made, or another process trains
            into it.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        resume: bool = False,
        checkpoints_to_keep: int = 2,
        resume_config: pathlib.Path | None = None,
        own_network: bool = False,
    ):
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=checkpoints_to_keep)
        self.resume_command = _resume_command(resume_config or path / CONFIG_FILE)
        self._resume = resume
        self._own_network = own_network
        try:
            if not resume and is_occupied(self.path):
                raise self._exists_error()
            check_writable(self.path, "Change base_result_dir or unique_name")
            if (self.checkpoints.directory / LOCK_FILE).exists():
                with self._locked(signed=False):
                    pass
            self._seen = self.checkpoints.paths()
            self.events = Events(path / "events")
        except OSError as error:
            place = error.filename or self.path
            raise UserError(f"{place}: cannot be used: {error.strerror}. Mend that, or change base_result_dir") from None

    def _exists_error(self) -> UserError:
        config = self.path / CONFIG_FILE
        resumable = f", or continue its run with: {_resume_command(config)}" if config.exists() else ""
        return UserError(
            f"{self.path}: this result directory exists already (base_result_dir and unique_name). Choose another unique_name, put "
            f"{{date}} or {{id}} into it, remove the directory{resumable}"
        )

    def _locked(self, *, signed: bool = True) -> contextlib.AbstractContextManager[None]:
        """Within this block no other process trains into the directory; a UserError if one does."""
        path = self.checkpoints.directory / LOCK_FILE
        return exclusive_lock(path, "Wait for that run to end, or choose another unique_name", signed=signed)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the directory and lock it within the block.

        Raises:
            UserError: another process made the directory, trains into it, or did so since this object was made.
            OSError: a file cannot be written.
        """
        if not self._resume and is_occupied(self.path):
            raise self._exists_error()
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.directory.mkdir(exist_ok=True)
        with self._locked():
            if self.checkpoints.paths() != self._seen:
                raise UserError(f"{self.path}: another process has continued this run in the meantime. Run the same command again")
            yield

    def weights_path(self, epoch: int) -> pathlib.Path:
        """The weights file of an epoch, counted from 0."""
        return self.path / weights_name(epoch, own_network=self._own_network)

    def newest_weights(self) -> pathlib.Path | None:
        """The newest weights file; None where there is none, or only the first epoch's, which a run killed while saving writes again."""
        files = weights_files(self.path)
        return files[-1] if files and files[-1] != self.weights_path(0) else None

    def write_log(self, rows: list[dict[str, float]], *, robust: bool = False) -> None:
        """Write `log.csv` as a whole, in the original's format.

        Args:
            rows: a dict for each complete epoch, in their order: the values of `LOG_COLUMNS`, and where measured of `ROBUST_COLUMN`.
            robust: write the column of robust accuracies even if it is empty.
        """
        columns = LOG_COLUMNS
        if robust or any("robust_accuracy" in row for row in rows):
            columns = columns | ROBUST_COLUMN
        lines = [";".join(f"{row[key]:.3f}" if key in row else "" for key in columns.values()) for row in rows]
        replace_file(self.path / LOG_FILE, "".join(f"{line}\r\n" for line in [";".join(columns), *lines]).encode())

    def save_config(self, config: PatchTrainingConfig, *, comment: str = "") -> None:
        """Write the run's config as `config.yaml`, below a `comment` of one line."""
        config.to_yaml(self.path / CONFIG_FILE, comment=comment)

    def save_checkpoint(self, state: tf.train.Checkpoint, *, n_bytes: int, ending: bool = False) -> str:
        """Write a checkpoint of about `n_bytes`; returns its path prefix.

        Where the run is `ending` anyway, it counts more than the values of steps since the last one, which TensorBoard then lacks.

        Raises:
            OSError: it cannot be written, or the events of a run that goes on.
        """
        try:
            self.events.sync()  # a resumed run does not make these steps again
        except OSError as error:
            if not ending:
                raise
            console.print(f"{error.filename}: cannot be written: {error.strerror}; values of steps since the last checkpoint are lost")
        return self.checkpoints.save(state, n_bytes=n_bytes)

    def write_events(self, row: dict[str, float], **scalars: float) -> None:
        """Write an epoch to the TensorBoard events: its row, as of `write_log`, and other `scalars`."""
        self.events.write(int(row["epoch"]), {tag: row[key] for tag, key in EVENT_TAGS.items() if key in row} | scalars)

    def write_step(self, step: int, **values: float) -> None:
        """Write values of a step, counted from 1, to the TensorBoard events; they are on the disk after the next `events.sync`."""
        self.events.write(step, {f"step/{name}": value for name, value in values.items()}, synced=False)

    def save_class_names(self, names: Sequence[str]) -> None:
        """Write the names of the classes, in the order of their labels, for those who use the network without its data."""
        replace_file(self.path / CLASSES_FILE, "".join(f"{name}\n" for name in names).encode())

    def save_weights(self, model: keras.Model, epoch: int) -> None:
        """Write the weights after an epoch, counted from 0."""
        save_weights(model, self.weights_path(epoch))

    def save_network(self, model: keras.Model) -> None:
        """Write a trained own network as a whole, where it is not there yet: Keras writes the date into it. Of the ResNet nothing."""
        path, inner = self.path / NETWORK_FILE, inner_model(model)
        if inner is None or path.exists():
            return
        try:
            save_network(inner, path)
        except OSError:
            raise
        except Exception as error:  # of the network's own classes; its weights are there
            console.print(f"{path}: not written, as Keras cannot save this network ({single_line(str(error))}); its weights are")

    def remove_network(self) -> None:
        """Remove what `save_network` wrote."""
        (self.path / NETWORK_FILE).unlink(missing_ok=True)

    def save_bank(self, bank: PatchBank, epoch: int) -> None:
        """Write the bank as `patches.npz`, as the picture `patches.png` and, its first patches, as an image of the events."""
        patches = bank.patches.numpy()
        arrays = npz(patches=patches, targets=bank.targets.numpy(), step_sizes=bank.step_sizes.numpy())
        replace_file(self.path / BANK_FILE, arrays)
        try:
            replace_file(self.path / BANK_PICTURE, tf.io.encode_png(patch_grid(patches[:MAX_PATCHES_IN_PICTURE])).numpy())
        except OSError as error:  # only a picture
            console.print(f"{error.filename}: cannot be written: {error.strerror}; going on without it")
        self.events.write(epoch, {}, {"patches": patch_grid(patches[:MAX_PATCHES_IN_EVENTS])})

    def unusable_error(self, error: OSError) -> UserError:
        """The message of a file that cannot be read or written."""
        return UserError(f"{error.filename or self.path}: cannot be read or written: {error.strerror or error}. {self.what_is_saved()}")

    def what_is_saved(self) -> str:
        """The newest checkpoint and how the run goes on from it, in words."""
        try:
            paths = self.checkpoints.paths()
        except OSError:
            return f"The checkpoints are out of reach too. When they are back, continue with: {self.resume_command}"
        if not paths:
            return "No checkpoint was written yet"
        return f"The newest checkpoint is {paths[0]}. Continue with: {self.resume_command}"


class FollowerDirectory(ResultDirectory):
    """The result directory as workers other than the chief have it: they read what is there, and write nothing into it."""

    def __init__(self, path: pathlib.Path, *, resume_config: pathlib.Path | None = None, own_network: bool = False):
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=1)
        self.resume_command = _resume_command(resume_config or path / CONFIG_FILE)
        self._own_network = own_network

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The chief makes the directory and locks it."""
        yield

    def save_checkpoint(self, state: tf.train.Checkpoint, **_: Any) -> str:
        """Count the checkpoint that the chief writes: no variable of a run is spread over workers, so that its copies are enough."""
        state.save_counter.assign_add(1)
        return str(self.checkpoints.directory)

    def _write_nothing(self, *_: Any, **__: Any) -> None:
        """In place of what the chief writes."""

    save_config = write_log = write_events = write_step = save_class_names = _write_nothing
    save_weights = save_network = remove_network = save_bank = _write_nothing


def _resume_command(config: pathlib.Path) -> str:
    return f"python mat/train.py {shlex.quote(str(config))} --resume"


def patch_grid(patches: np.ndarray) -> np.ndarray:
    """A picture of patches, row by row in a grid about as wide as high, small ones enlarged.

    Args:
        patches: float32 [P, h, w, 3] in [0, 1], P >= 1.

    Returns:
        uint8 [height, width, 3].
    """
    n_patches, height, width, _ = patches.shape
    scale = max(1, round(CELL / max(height, width)))
    cells = np.round(255 * patches).astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    cells = np.pad(cells, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    n_columns = int(np.ceil(np.sqrt(n_patches)))
    n_rows = -(-n_patches // n_columns)
    cells = np.concatenate([cells, np.full((n_rows * n_columns - n_patches, *cells.shape[1:]), 255, np.uint8)])
    cells = cells.reshape(n_rows, n_columns, *cells.shape[1:])
    return cells.transpose(0, 2, 1, 3, 4).reshape(n_rows * cells.shape[2], n_columns * cells.shape[3], 3)
