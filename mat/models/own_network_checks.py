"""Checks of own networks: whether one takes images and gives logits, told in words where it does not."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.models.own_network_source import reason
from mat.models.prepared import all_layers

_LARGEST_BYTE_SCALE = 0.02  # of a Rescaling layer that takes 0..255, such as 1/255 or 1/127.5
_LARGEST_UNIT_MEAN = 2.0  # of a Normalization layer that takes other images than those of 0..255
_SUM_TOLERANCE = 1e-2  # of probabilities, which may be in bfloat16


def check_trainable(model: keras.Model, name: str) -> None:
    """Refuse to train a network without trainable weights, or with some that are not float32, in a `UserError`."""
    if not model.trainable_variables:
        raise UserError(f"{name}: has no trainable weights. Set trainable = True in its layers, and save it again")
    if others := {variable.dtype for variable in model.trainable_variables} - {"float32"}:
        remedy = "Make it with the dtype policy float32 or mixed_bfloat16"
        raise UserError(f"{name}: its weights are {' and '.join(sorted(others))}, and training keeps them in float32. {remedy}")


def check_shareable(model: keras.Model, name: str, *, n_replicas: int, batch_size: int) -> None:
    """Refuse, in a `UserError`, to share batches of a network among replicas whose batch normalization would compute something wrong."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if n_replicas > 1 and any(layer.synchronized for layer in layers):
        remedy = "Make them with synchronized=False, or set distribution: none"
        raise UserError(f"{name}: has layers with synchronized=True, which does not work within the compiled step. {remedy}")
    if batch_size % n_replicas and layers:
        even = n_replicas * max(1, batch_size // n_replicas)
        raise UserError(
            f"batch_size: {batch_size} is not shared evenly by {n_replicas} replicas, and batch normalization would count the images that "
            f"fill up the last shares. Set batch_size: {even}, or distribution: none"
        )


def check_inputs(model: keras.Model, image_size: int, input_range: str, name: str) -> None:
    """Refuse a model that tells by its inputs or its first layers that it takes something else than images of this size and range."""
    try:
        inputs = model.inputs
    except (AttributeError, ValueError):  # not built yet, or of a class of its own
        inputs = []
    if len(inputs) > 1:
        raise UserError(f"{name}: takes {len(inputs)} inputs, and an image is one. Give a network of one input")
    for shape in (tuple(each.shape) for each in inputs):
        if len(shape) != 4 or shape[3] not in (3, None):
            first = ". It has the channels first: build it with data_format='channels_last'" if shape[1:2] == (3,) else ""
            raise UserError(f"{name}: takes inputs {_shape_text(shape)}, not images [B, H, W, 3]{first}. Give a network of RGB images")
        if None not in shape[1:3] and shape[1:3] != (image_size, image_size):
            size = f"images of {shape[1]}x{shape[2]} pixels, and image_size is {image_size}"
            remedy = f"Set image_size: {shape[1]}" if shape[1] == shape[2] else "Give a network of square images"
            raise UserError(f"{name}: takes {size}. {remedy}")
    if input_range != "0..255" and (layer := _first_of_bytes(model)):
        raise UserError(
            f"{name}: its layer {layer} takes images of 0..255, and input_range is {input_range}. Set input_range: 0..255 (--input-range "
            "0..255), or build the network without that layer (include_preprocessing=False in keras.applications)"
        )


def _first_of_bytes(model):
    """The name of a layer before all weights that takes 0..255: Rescaling such as by 1/255, or Normalization by means of bytes."""
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Rescaling):
            return layer.name if np.max(np.abs(layer.scale)) < _LARGEST_BYTE_SCALE else None
        if isinstance(layer, keras.layers.Normalization):
            mean = getattr(layer, "mean", None)
            return layer.name if mean is not None and np.max(keras.ops.convert_to_numpy(mean)) > _LARGEST_UNIT_MEAN else None
        if layer.trainable_weights and not all_layers(layer):
            return None
    return None


def check_shape(outputs: Any, n_classes: int | None, name: str) -> None:
    """Refuse outputs that are not [B, n_classes]; None for any number from 2 on."""
    if not isinstance(outputs, keras.KerasTensor):
        received = f"a {type(outputs).__name__} of {len(outputs)} outputs"
        raise UserError(f"{name}: gives {received}. Give a network whose one output, not in a list, is the logits of the classes")
    shape = tuple(outputs.shape)
    if len(shape) != 2:
        remedy = "Build it with its classifier (include_top=True in keras.applications), or add GlobalAveragePooling2D and Dense(n_classes)"
        raise UserError(f"{name}: gives {_shape_text(shape)}, features and not logits [B, n_classes]. {remedy}")
    n_classes = n_classes or max(2, shape[1] or 0)
    if shape[1] != n_classes:
        remedy = f"Set n_classes: {shape[1]}" if shape[1] and shape[1] > 1 else "Two classes need two outputs"
        remedy += f", or give the network {n_classes} outputs (classes={n_classes} in keras.applications)"
        raise UserError(f"{name}: gives {shape[1]} outputs, and n_classes is {n_classes}. {remedy}")


def check_values(network: keras.Model, logits: bool, name: str) -> None:
    """Refuse a network that, on a few images, gives NaN, gives something else than it is said to give, or has no gradient."""
    size = network.input_shape[1]
    noise = np.random.default_rng(0).random((2, size, size, 3), np.float32)
    images = np.concatenate([noise, np.zeros_like(noise[:1]), np.ones_like(noise[:1])])

    @tf.function(autograph=False)
    def compute(images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            outputs = network(images, training=False)
        return outputs, tape.gradient(outputs, images)

    try:
        outputs, gradients = compute(tf.constant(images))
    except (tf.errors.ResourceExhaustedError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be computed on images ({reason(error)}). Mend the network") from None
    outputs = outputs.numpy()
    if not np.all(np.isfinite(outputs)):
        raise UserError(f"{name}: gives NaN or infinity on images in [0, 1]. Give other weights, or the input_range that it takes")
    if gradients is None:
        remedy = "Give a network that is differentiable, without rounding or casts to whole numbers"
        raise UserError(f"{name}: its outputs have no gradient with respect to the image. {remedy}")
    sums_to_one = np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=_SUM_TOLERANCE)
    if logits and sums_to_one:
        raise UserError(
            f"{name}: gives probabilities, as of a softmax, and not logits. Build it without (classifier_activation=None in "
            "keras.applications, no activation in the last Dense layer), or set logits: false, which takes their logarithms"
        )
    activations = [layer.activation for layer in all_layers(network) if hasattr(layer, "activation")]
    if not sums_to_one and activations[-1:] == [keras.activations.sigmoid] and np.all((outputs >= 0) & (outputs <= 1)):
        remedy = "Build it without (activation=None in the last layer): the same classes win, and gradients do not vanish"
        raise UserError(f"{name}: gives a probability for each class by itself, as of a sigmoid, and not logits. {remedy}")
    if not logits and not sums_to_one:
        raise UserError(f"{name}: logits: false, and its outputs are no probabilities, which sum to 1. Set logits: true")


def _shape_text(shape):
    return f"[{', '.join('B' if i == 0 else 'any' if size is None else str(size) for i, size in enumerate(shape))}]"
