"""What every call from Python shares: the config made from arguments, settings that are set back, interruption."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from mat.cli.devices import restored_settings
from mat.cli.errors import StoppedError, UserError
from mat.cli.paths import literal_name
from mat.cli.yaml_reader import read_mapping
from mat.config import PatchTrainingConfig

Config = str | os.PathLike[str] | dict[str, Any] | PatchTrainingConfig


def read_config(config: Config, keys: dict[str, Any], *, resume: bool = False) -> PatchTrainingConfig:
    """The config of a YAML file, of a dict of keys and values, or another config, with `keys` in place of its own.

    Raises:
        UserError: as `PatchTrainingConfig.from_yaml`.
    """
    if isinstance(config, PatchTrainingConfig):
        values, source = config.to_values() | {"unique_name": literal_name(config.unique_name)}, ""
    elif isinstance(config, dict):
        values, source = dict(config), ""
    else:
        values, source = read_mapping(config), f"{config}: "
    for key, value in keys.items():
        section = values.get(key)
        values[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value
    values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
    try:
        return PatchTrainingConfig.from_values(values, resume=resume)
    except UserError as error:
        raise UserError(f"{source}{error}") from None


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Within the block TensorFlow may be set as the config says, and Ctrl-C raises `KeyboardInterrupt` once what is at hand is saved.

    TensorFlow's warnings are held back: it takes the functions that each call compiles for one that is compiled again and again.
    """
    from tensorflow.python.eager import context  # TensorFlow has no public name for reading the seed

    logger, seed = tf.get_logger(), context.global_seed()
    level = logger.level
    with restored_settings():
        try:
            logger.setLevel(logging.ERROR)
            yield
        except StoppedError as error:
            if error.exit_status == 130:
                raise KeyboardInterrupt(str(error)) from None
            raise
        finally:
            logger.setLevel(level)
            if context.global_seed() != seed:  # networks are made from seeds of their own
                tf.random.set_seed(seed)
