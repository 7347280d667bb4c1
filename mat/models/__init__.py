"""The network: `create_model` makes it from a config, `load_weights` and `save_weights` read and write its weights."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

__all__ = ["create_model", "load_weights", "save_weights"]

if not os.environ.get("KERAS_BACKEND"):  # the user's keras.json may name another, which then does not count
    os.environ["KERAS_BACKEND"] = "tensorflow"


def __getattr__(name: str) -> Any:
    if name not in ("load_weights", "save_weights"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mat.models import weights  # late, as `python -m mat.models.weights` must find its module not yet imported

    return getattr(weights, name)


def create_model(config: Any) -> "keras.Model":
    """The network of a `PatchTrainingConfig`, made from its seed: float images [B, H, W, 3] in [0, 1] -> logits [B, n_classes]."""
    shared = {key: getattr(config, key) for key in ("image_size", "n_classes", "dtype", "seed")}
    if config.network != "resnet":
        from mat.models.own_network import create_network

        keys = ("network", "input_range", "logits", "safe_mode", "fresh_weights")
        return create_network(**shared, **{key: getattr(config, key) for key in keys})
    from mat.models.resnet import create_resnet

    return create_resnet(**shared, **{key: getattr(config, key) for key in ("depth", "width", "n_stacks", "normalization")})
