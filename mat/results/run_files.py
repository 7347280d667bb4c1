"""The names of a training run's files, for those that write and those that read them."""

import pathlib
import re

CONFIG_FILE = "config.yaml"
LOG_FILE = "log.csv"
BANK_FILE = "patches.npz"
BANK_PICTURE = "patches.png"
NETWORK_FILE = "network.keras"  # the whole own network after the last epoch
WEIGHTS_NAMES = ("tiny_imagenet_weights_{}.h5", "network_{}.weights.h5")  # by epoch, of the ResNet and of an own network
LOG_COLUMNS = {"Epoch": "epoch", "Train Loss": "loss", "Train Accuracy": "accuracy", "Valid Accuracy": "validation_accuracy"}
ROBUST_COLUMN = {"Robust Accuracy": "robust_accuracy"}  # empty but in the epochs that were evaluated


def weights_name(epoch: int, *, own_network: bool = False) -> str:
    """The name of the weights file of an epoch, counted from 0: of the ResNet the original's, also for other data."""
    return WEIGHTS_NAMES[own_network].format(f"{epoch:03d}")


def weights_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The weights files of a run by their names, the newest last; copies under other names do not count."""
    pattern = re.compile("|".join(re.escape(name).replace(r"\{\}", r"(\d+)") for name in WEIGHTS_NAMES))
    found = [(int(match[1] or match[2]), path) for path in directory.glob("*.h5") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
