"""The result directory of a run: what is written, where, and how it replaces what was there."""

import contextlib
import shlex

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable, exclusive_lock, is_occupied, npz, replace_file
from mat.models import save_weights
from mat.results.checkpoints import Checkpoints
from mat.results.events import Events

CONFIG = "config.yaml"
LOG = "log.csv"
LOG_COLUMNS = {"Epoch": "epoch", "Train Loss": "loss", "Train Accuracy": "accuracy", "Valid Accuracy": "validation_accuracy"}
ROBUST_COLUMN = {"Robust Accuracy": "robust_accuracy"}  # empty but in the epochs that were evaluated
EVENT_TAGS = {
    "train/loss": "loss",
    "train/accuracy": "accuracy",
    "validation/accuracy": "validation_accuracy",
    "learning_rate": "learning_rate",
}
PATCHES = "patches.npz"
PATCHES_PICTURE = "patches.png"
CHECKPOINTS = "checkpoints"
LOCK = "lock"
EVENTS = "events"

MAX_PATCHES_SHOWN = 1000
MAX_PATCHES_IN_EVENTS = 64
CELL = 48  # pixels: small patches are enlarged towards it in the picture


class ResultDirectory:
    """`base_result_dir/unique_name` of a config.

    Nothing but the lock is written before `opened`; the constructor only finds out whether the run may use the directory.

    Args:
        config: the run's config.
        resume: whether to continue the run that is in the directory.

    Raises:
        UserError: the directory holds something other than logs and `resume` is not set, it cannot be made, or another process trains
            into it.
    """

    def __init__(self, config, *, resume=False):
        self.path = config.result_dir
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS, keep=config.checkpoints_to_keep)
        self.events = None
        self._config = config
        self._resume = resume
        self._robust = config.robust_evaluation != "none"
        self.resume_config = self.path / CONFIG  # what --resume is to be given
        try:
            if not resume and is_occupied(self.path):
                raise self._exists()
            check_writable(self.path, "Change base_result_dir or unique_name")
            if (self.path / CHECKPOINTS).is_dir():
                with self.held():
                    pass
            self._seen = self.checkpoints.paths()
        except OSError as error:
            place = error.filename or self.path
            raise UserError(f"{place}: cannot be used: {error.strerror}. Mend that, or change base_result_dir") from None

    def _exists(self):
        resumable = f", or continue its run with: {self.resume_command}" if (self.path / CONFIG).exists() else ""
        return UserError(
            f"{self.path}: this result directory exists already (base_result_dir and unique_name). Choose another unique_name, put "
            f"{{date}} or {{id}} into it, remove the directory{resumable}"
        )

    @property
    def resume_command(self):
        """The command that continues the run."""
        return f"python mat/train.py {shlex.quote(str(self.resume_config))} --resume"

    def held(self):
        """Within this block no other process trains into the directory.

        Raises:
            UserError: another one does already.
            OSError: the lock file cannot be made.
        """
        return exclusive_lock(self.path / CHECKPOINTS / LOCK, "Wait for that run to end, or choose another unique_name")

    @contextlib.contextmanager
    def opened(self, rows):
        """Make the directory, hold it, and bring config, log and events to the state after the epochs of `rows`, as of `write_log`.

        Raises:
            UserError: another process made the directory, holds it, or trained into it since this object was made.
            OSError: a file cannot be written.
        """
        if not self._resume and is_occupied(self.path):
            raise self._exists()
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        with self.held():
            if self.checkpoints.paths() != self._seen:
                raise UserError(f"{self.path}: another process has continued this run in the meantime. Run the same command again")
            self._config.to_yaml(self.path / CONFIG)
            self.write_log(rows)
            self.events = Events(self.path / EVENTS, n_epochs=len(rows))
            for row in rows:  # what a damaged file lost
                self.write_events(row)
            yield

    def leftovers(self):
        """What there is of a run whose checkpoints are gone: its newest weights file, or None.

        The first epoch's does not count: a run that was killed while it saved that epoch writes it again.
        """
        files = sorted(self.path.glob("tiny_imagenet_weights_*.h5"), key=lambda path: (len(path.name), path.name))
        return files[-1] if files and files[-1] != self.weights_path(0) else None

    def write_log(self, rows):
        """Write `log.csv` as a whole, in the original's format.

        Args:
            rows: a dict for each complete epoch, in their order: the values of `LOG_COLUMNS`, and where measured of `ROBUST_COLUMN`.
        """
        columns = LOG_COLUMNS
        if self._robust or any("robust_accuracy" in row for row in rows):
            columns = columns | ROBUST_COLUMN
        lines = [";".join(f"{row[key]:.3f}" if key in row else "" for key in columns.values()) for row in rows]
        replace_file(self.path / LOG, "".join(f"{line}\r\n" for line in [";".join(columns), *lines]).encode())

    def write_events(self, row, **scalars):
        """Write an epoch to the TensorBoard events: its row, as of `write_log`, and other `scalars`."""
        self.events.write(row["epoch"], {tag: row[key] for tag, key in EVENT_TAGS.items() if key in row} | scalars)

    def save_weights(self, model, epoch):
        """Write the weights after an epoch, counted from 0."""
        save_weights(model, self.weights_path(epoch))

    def weights_path(self, epoch):
        """The weights file of an epoch, counted from 0: the original's name, also for other data."""
        return self.path / f"tiny_imagenet_weights_{epoch:03d}.h5"

    def save_patches(self, bank, epoch):
        """Write the bank as `patches.npz`, as the picture `patches.png` and, its first patches, as an image of the events."""
        patches = bank.patches.numpy()
        arrays = npz(patches=patches, targets=bank.targets.numpy(), step_sizes=bank.step_sizes.numpy())
        replace_file(self.path / PATCHES, arrays)
        try:
            replace_file(self.path / PATCHES_PICTURE, tf.io.encode_png(patch_grid(patches[:MAX_PATCHES_SHOWN])).numpy())
        except OSError as error:  # only a picture
            console.print(f"{error.filename}: cannot be written: {error.strerror}; going on without it")
        self.events.write(epoch, {}, {"patches": patch_grid(patches[:MAX_PATCHES_IN_EVENTS])})


def patch_grid(patches):
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
