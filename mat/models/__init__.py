"""The network: `create_model` makes it from a config, `load_weights` and `save_weights` read and write its weights."""

from mat.models.resnet import create_resnet
from mat.models.weights import load_weights, save_weights

__all__ = ["create_model", "load_weights", "save_weights"]


def create_model(config):
    """The network that a `PatchTrainingConfig` describes, freshly initialized from its seed.

    Returns:
        keras.Model: float images [B, H, W, 3] in [0, 1] -> logits float32 [B, n_classes].
    """
    return create_resnet(
        image_size=config.image_size,
        n_classes=config.n_classes,
        depth=config.depth,
        width=config.width,
        n_stacks=config.n_stacks,
        normalization=config.normalization,
        precision=config.precision,
        seed=config.seed,
    )
