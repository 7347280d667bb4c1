"""Own networks: a Keras model from a file or a function, wrapped so that it takes images in [0, 1] and gives logits."""

from typing import Any

import keras

from mat.cli.errors import UserError
from mat.models.own_network_checks import check_inputs, check_shape, check_values
from mat.models.own_network_source import call_function, checked_model, load_file, reason, seeded

INPUT_RANGES: dict[str, dict[str, Any]] = {  # name: scale and offset of images in [0, 1]
    "0..1": {},
    "0..255": {"scale": 255.0},
    "-1..1": {"scale": 2.0, "offset": -1.0},
    # Mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) of ImageNet's channels, as torchvision's networks were trained with.
    "imagenet": {"scale": [1 / 0.229, 1 / 0.224, 1 / 0.225], "offset": [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]},
}
_WRAPPER = "own_network"  # the name of models that `wrap_model` makes
SMALLEST_PROBABILITY = 1e-37  # whose logarithm is finite in float32


def create_network(
    network: str,
    *,
    image_size: int,
    n_classes: int,
    input_range: str = "0..1",
    logits: bool = True,
    safe_mode: bool = True,
    fresh_weights: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """The network of a file or of a function, wrapped as by `wrap_model`; the random draws of its making come from `seed`.

    Args:
        network: a `.keras` file, or `package.module:function`, which is called with `image_size` and `n_classes` and returns a model.
        safe_mode: refuse files that would run code of their own.
        fresh_weights: initialize the weights anew.
        dtype: the dtype policy under which a function is called; a file's layers have their own.

    Raises:
        UserError: there is no such network, it cannot be loaded or made, or it does not fit, see `wrap_model`.
    """
    with seeded(f"{seed}/network"):  # wrapping builds what was not built
        if network.endswith(".keras"):
            model = load_file(network, safe_mode=safe_mode)
        else:
            model = call_function(network, image_size=image_size, n_classes=n_classes, dtype=dtype)
        if fresh_weights:
            try:
                model = keras.models.clone_model(model)
            except Exception as error:  # of the network's own classes
                remedy = "Let a function make the network anew (network: package.module:function), without fresh_weights"
                raise UserError(f"{network}: fresh_weights: Keras cannot make it again ({reason(error)}). {remedy}") from None
        return wrap_model(model, image_size=image_size, n_classes=n_classes, input_range=input_range, logits=logits, name=network)


def wrap_model(
    model: keras.Model,
    *,
    image_size: int,
    n_classes: int | None = None,
    input_range: str = "0..1",
    logits: bool = True,
    name: str = "the network",
) -> keras.Model:
    """A model of images float32 [B, H, W, 3] in [0, 1] to logits float32 [B, n_classes] around an image classifier, checked on images.

    Args:
        model: the classifier, whose weights the result shares; `inner_model` gives it back.
        image_size: height and width.
        n_classes: of its outputs; None for as many as it has.
        input_range: what it takes: "0..1", "0..255", "-1..1" or "imagenet" (normalized by channel, as torchvision does).
        logits: what it gives: logits, or probabilities, whose logarithms become the logits.
        name: of the network in messages.

    Raises:
        UserError: it does not take such images, or does not give logits or probabilities of `n_classes` classes.
    """
    check_inputs(checked_model(model, name), image_size, input_range, name)
    images = keras.Input((image_size, image_size, 3), dtype="float32", name=f"{model.name}_images")
    inputs: Any = images
    if scaling := INPUT_RANGES[input_range]:
        inputs = keras.layers.Rescaling(**{"scale": 1.0, **scaling}, dtype="float32", name=f"{model.name}_range")(images)
    try:
        outputs = model(inputs)
    except Exception as error:
        size = f"[B, {image_size}, {image_size}, 3]"
        raise UserError(f"{name}: does not take images {size} ({reason(error)}). Give a network that does, or set image_size") from None
    check_shape(outputs, n_classes, name)
    if outputs.dtype != "float32":
        outputs = keras.ops.cast(outputs, "float32")
    check_values(keras.Model(images, outputs), logits, name)
    if not logits:
        outputs = keras.ops.log(keras.ops.maximum(outputs, SMALLEST_PROBABILITY))
    return keras.Model(images, outputs, name=_WRAPPER)


def inner_model(model: keras.Model) -> keras.Model | None:
    """The model that `wrap_model` wrapped; None for any other, such as the ResNet."""
    return next((layer for layer in model.layers if isinstance(layer, keras.Model)), None) if model.name == _WRAPPER else None
