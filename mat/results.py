"""The result directory of a run: what is written, where, and how it replaces what was there."""

import numpy as np
import tensorflow as tf

from mat.config import PatchTrainingConfig
from mat.errors import UserError
from mat.files import check_writable, npz, replace_file
from mat.models import save_weights

CONFIG = "config.yaml"
LOG = "log.csv"
LOG_COLUMNS = ("Epoch", "Train Loss", "Train Accuracy", "Valid Accuracy")
ROBUST_COLUMN = "Robust Accuracy"  # empty but in the epochs that were evaluated
PATCHES = "patches.npz"
PATCHES_PICTURE = "patches.png"
CHECKPOINTS = "checkpoints"
EVENTS = "events"
CHECKPOINTS_TO_KEEP = 2

MAX_PATCHES_SHOWN = 1000
MAX_PATCHES_IN_EVENTS = 64
CELL = 48  # pixels: small patches are enlarged towards it in the picture


class ResultDirectory:
    """`base_result_dir/unique_name` of a config.

    Nothing is written before `create`; the constructor only finds out whether the run may use the directory.

    Args:
        config: the run's config.
        resume: whether to continue the run that is in the directory.

    Raises:
        UserError: the directory exists and `resume` is not set, cannot be made, or holds the run of another config.
    """

    def __init__(self, config, *, resume=False):
        self.path = config.result_dir
        self._config = config
        self._robust = config.robust_evaluation != "none"
        if self.path.exists() and not resume:
            raise UserError(
                f"{self.path}: this result directory exists already (base_result_dir and unique_name). Choose another unique_name, put "
                "{date} or {id} into it, remove the directory, or continue its run with: "
                f"python mat/train.py {self.path / CONFIG} --resume"
            )
        check_writable(self.path, "Change base_result_dir or unique_name")
        if resume and (self.path / CONFIG).exists():
            _check_same(PatchTrainingConfig.from_yaml(self.path / CONFIG), config, self.path / CONFIG)

    @property
    def checkpoint(self):
        """Path prefix of the newest checkpoint, or None."""
        return tf.train.latest_checkpoint(str(self.path / CHECKPOINTS))

    def create(self, state):
        """Make the directory and write `config.yaml`; `state` is the `tf.train.Checkpoint` that `save_checkpoint` writes."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._config.to_yaml(self.path / CONFIG)
        self._checkpoints = tf.train.CheckpointManager(state, str(self.path / CHECKPOINTS), max_to_keep=CHECKPOINTS_TO_KEEP)
        self._events = tf.summary.create_file_writer(str(self.path / EVENTS))

    def restart_log(self, n_epochs):
        """Write `log.csv` anew with its header and the first `n_epochs` epochs that it has now."""
        path = self.path / LOG
        rows = path.read_text().splitlines()[1 : n_epochs + 1] if n_epochs else []
        columns = (*LOG_COLUMNS, ROBUST_COLUMN) if self._robust else LOG_COLUMNS
        rows = [row + ";" * (len(columns) - 1 - row.count(";")) for row in rows]  # of a run begun without the last column
        replace_file(path, "\r\n".join([";".join(columns), *rows, ""]).encode())

    def log_epoch(self, epoch, *, loss, accuracy, validation_accuracy, **scalars):
        """Append an epoch to `log.csv`, in the original's format, and write it and other `scalars` to the TensorBoard events."""
        with open(self.path / LOG, "a", newline="\r\n") as log:
            values = [f"{value:.3f}" for value in (epoch, loss, accuracy, validation_accuracy)]
            log.write(";".join([*values, ""] if self._robust else values) + "\n")
        scalars = {"train/loss": loss, "train/accuracy": accuracy, "validation/accuracy": validation_accuracy} | scalars
        with self._events.as_default(step=epoch):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        self._events.flush()

    def log_robust_accuracy(self, epoch, accuracy):
        """Write the robust accuracy after an epoch beside its clean one, in `log.csv` and the TensorBoard events."""
        path = self.path / LOG
        header, *rows = [line.split(";") for line in path.read_text().splitlines()] if path.exists() else [[]]
        if len(rows) <= epoch or any(len(row) != len(header) for row in rows):
            raise UserError(
                f"{path}: has no whole row of epoch {epoch} to write the robust accuracy to ({accuracy:.3f}). Mend or remove it"
            )
        if ROBUST_COLUMN not in header:  # the run was begun without
            header.append(ROBUST_COLUMN)
            rows = [[*row, ""] for row in rows]
        rows[epoch][header.index(ROBUST_COLUMN)] = f"{accuracy:.3f}"
        replace_file(path, "".join(";".join(row) + "\r\n" for row in [header, *rows]).encode())
        with tf.summary.create_file_writer(str(self.path / EVENTS)).as_default(step=epoch):
            tf.summary.scalar("validation/robust_accuracy", accuracy)

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
        replace_file(self.path / PATCHES_PICTURE, tf.io.encode_png(patch_grid(patches[:MAX_PATCHES_SHOWN])).numpy())
        with self._events.as_default(step=epoch):
            tf.summary.image("patches", patch_grid(patches[:MAX_PATCHES_IN_EVENTS])[np.newaxis])
        self._events.flush()

    def save_checkpoint(self, epoch):
        """Write the state as a checkpoint and forget all but the newest ones."""
        self._checkpoints.save(epoch)


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


def _check_same(saved, config, path):
    """Refuse to continue a run under another config."""
    for key, value in vars(saved).items():
        if key not in ("base_result_dir", "unique_name") and value != (given := getattr(config, key)):
            raise UserError(f"{path}: this run has {key}: {value}, and --resume was given {key}: {given}. Resume with the run's own config")
