"""The network: `create_model` makes it from a config, `load_weights` and `save_weights` read and write its weights."""

import os

__all__ = ["create_model", "load_weights", "save_weights"]

if not os.environ.get("KERAS_BACKEND"):  # the user's keras.json may name another, which then does not count
    os.environ["KERAS_BACKEND"] = "tensorflow"


def __getattr__(name):
    # Imported when first asked for: `python -m mat.models.weights` passes here, and must find its module not yet imported.
    if name not in ("load_weights", "save_weights"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mat.models.weights import load_weights, save_weights

    return {"load_weights": load_weights, "save_weights": save_weights}[name]


def create_model(config):
    """The network that a `PatchTrainingConfig` describes, freshly initialized from its seed.

    Returns:
        keras.Model: float images [B, H, W, 3] in [0, 1] -> logits float32 [B, n_classes].
    """
    from mat.models.resnet import create_resnet

    return create_resnet(
        image_size=config.image_size,
        n_classes=config.n_classes,
        depth=config.depth,
        width=config.width,
        n_stacks=config.n_stacks,
        normalization=config.normalization,
        dtype=config.dtype,
        seed=config.seed,
    )
