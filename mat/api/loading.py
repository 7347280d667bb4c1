"""Trained networks and picture files from Python."""

import os
import pathlib
from typing import Any

import keras
import numpy as np

from mat.api.session import Config, read_config, session
from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.metadata import trained_classes
from mat.data.picture_files import read_picture
from mat.data.splits import class_names
from mat.data.tiny_imagenet import validation_image
from mat.models import create_model, load_weights
from mat.results.run_files import CONFIG_FILE, weights_files
from mat.robustness.classifier_config import read_classifier

Path = str | os.PathLike[str]


def load(path: Path, config: Config | None = None, **keys: Any) -> keras.Model:
    """A trained network with its weights: float images [B, H, W, 3] in [0, 1] -> logits float32 [B, n_classes].

    Args:
        path: the result directory of a run, of which the newest weights are taken; a weights file; or a whole model, `FILE.keras`.
        config: the config of the network; by default the `config.yaml` beside the weights. A whole model needs none.
        keys: replace those of the config, as `input_range="0..255"` for a whole model.

    Returns:
        A Keras model with the attribute `class_names`, a list in the order of the logits.

    Raises:
        UserError: there is no such network, or it does not fit the config.

    Example:
        >>> import mat
        >>> model = mat.load("results/example")
        >>> image = mat.read_image("docs/demo.png", 32)
        >>> model.predict(image[None], verbose=0).shape
        (1, 10)
    """
    with session():
        found, weights = find_network(path, keys, config)
        model = create_model(found)
        if weights is not None:
            load_weights(model, weights)
    listed = trained_classes(weights or path)
    model.class_names = listed if len(listed) == found.n_classes else class_names(found.data_dir, found.n_classes)
    return model


def find_network(path: Path, keys: dict[str, Any], config: Config | None = None) -> tuple[PatchTrainingConfig, pathlib.Path | None]:
    """The config of the network that `load` gives, and its weights file; None for a whole model, which the config names."""
    if not isinstance(path, (str, os.PathLike)):
        kind = f"{type(path).__module__}.{type(path).__qualname__}"
        raise UserError(f"a network is a keras.Model (of Keras {keras.__version__}, not tf_keras) or the path of one. Received: a {kind}")
    path = pathlib.Path(path)
    beside = path.with_name(CONFIG_FILE)  # of the run that wrote the file: its weights, in the network that the run trained
    if path.suffix == ".keras" and config is None and not beside.is_file():
        return read_classifier({"network": str(path), "data_dir": str(path.parent), **keys}), None  # not the data of another network
    if not path.exists():
        raise UserError(f"{path}: no such file. Give the result directory of a run, a weights file or a .keras file")
    if path.is_dir():
        files = weights_files(path)
        if not files:
            raise UserError(f"{path}: no weights of a run in it. Give the result directory of a run, a weights file or a .keras file")
        path, beside = files[-1], path / CONFIG_FILE
    if config is None and not beside.is_file():
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which would tell what network it is of. Give config")
    return read_config(beside if config is None else config, keys), path


def read_image(path: Path, image_size: int) -> np.ndarray:
    """A picture file as a network of this program sees it: as viewers show it, its central square resized.

    Args:
        path: a file that Pillow can read.
        image_size: height and width of the result, pixels.

    Returns:
        float32 [image_size, image_size, 3] in [0, 1].

    Raises:
        UserError: the file cannot be read.

    Example:
        >>> import mat
        >>> mat.read_image("docs/demo.png", 32).shape
        (32, 32, 3)
    """
    try:
        picture = read_picture(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no picture: {error}. Give a JPEG, PNG or another picture file") from None
    return validation_image(np.asarray(picture), image_size).numpy()
