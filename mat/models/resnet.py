"""The ResNet of the original: post-activation blocks, weight-standardized convolutions, strip normalization."""

import collections
import functools
import zlib
from typing import Any

import keras

from mat.models.convolutional import StandardizedConv2D
from mat.models.groupnormalization import StripNormalization
from mat.models.pooling import pool_size

GROUPS = 8
VARIANCE_EPSILON = 1e-5  # of every normalization
DATA_FORMAT = {"data_format": "channels_last"}  # said to every layer that would else take it from the user's Keras settings


@keras.saving.register_keras_serializable(package="mat")
class FeatureMapNormalization(keras.layers.GroupNormalization):
    """Layer normalization of feature maps, over height, width and channels, as group normalization with one group.

    A class of its own because Keras' `.weights.h5` files tell layers apart by their class alone.
    """


_NORMALIZATIONS: dict[str, tuple[str, Any]] = {
    "group": ("channel_group_normalization", functools.partial(keras.layers.GroupNormalization, GROUPS, epsilon=VARIANCE_EPSILON)),
    "batch": ("batch_normalization", functools.partial(keras.layers.BatchNormalization, epsilon=VARIANCE_EPSILON)),
    "layer": ("layer_normalization", functools.partial(FeatureMapNormalization, 1, epsilon=VARIANCE_EPSILON)),
}


class _Layers:
    """Makes the layers of one model, named as the original's weights file names them: by kind, numbered in order of creation."""

    def __init__(self, normalization: str, dtype: str, seed: int) -> None:
        self.normalization, self.dtype, self.seed = normalization, dtype, seed
        self.counts: collections.Counter[str] = collections.Counter()

    def options(self, kind: str) -> dict[str, Any]:
        """Name (`conv2d`, `conv2d_1`, ...) and dtype of the next layer of a kind."""
        count = self.counts[kind]
        self.counts[kind] += 1
        return {"name": f"{kind}_{count}" if count else kind, "dtype": self.dtype}

    def initializer(self, name: str) -> keras.Initializer:
        """He-normal with a seed of the layer's own; equal seeds would give kernels of equal shape equal values."""
        return keras.initializers.HeNormal(seed=zlib.crc32(f"{self.seed}/{name}".encode()))

    def conv(self, x: keras.KerasTensor, filters: int, kernel_size: int, strides: int = 1) -> keras.KerasTensor:
        """A convolution; kernels larger than 1x1 are standardized."""
        options = self.options("conv2d")
        options |= {"strides": strides, "kernel_initializer": self.initializer(options["name"])}
        if kernel_size == 1:
            return keras.layers.Conv2D(filters, kernel_size, padding="same", **DATA_FORMAT, **options)(x)
        return StandardizedConv2D(filters, kernel_size, **options)(x)

    def norm_relu(self, x: keras.KerasTensor, shortcut: keras.KerasTensor | None = None) -> keras.KerasTensor:
        """The chosen normalization, the sum with the shortcut if there is one, and the ReLU; strip normalization does all three at once."""
        if self.normalization == "strip":
            x = StripNormalization(GROUPS, VARIANCE_EPSILON, relu=True, **self.options("group_normalization"))(x, shortcut)
            for kind in ("activation",) if shortcut is None else ("add", "activation"):
                x = keras.layers.Identity(**self.options(kind))(x)  # the original's files list them among the layers
            return x
        if self.normalization != "none":
            kind, layer = _NORMALIZATIONS[self.normalization]
            x = layer(**self.options(kind))(x)
        if shortcut is not None:
            x = keras.layers.Add(**self.options("add"))([shortcut, x])
        return keras.layers.Activation("relu", **self.options("activation"))(x)

    def logits(self, x: keras.KerasTensor, n_classes: int) -> keras.KerasTensor:
        """Average pooling and the dense layer, in place of the original's softmax the logits, float32 under every precision."""
        x = keras.layers.AveragePooling2D(pool_size(x.shape[1]), **DATA_FORMAT, **self.options("average_pooling2d"))(x)
        x = keras.layers.Flatten(**DATA_FORMAT, **self.options("flatten"))(x)
        x = keras.layers.Dense(n_classes, kernel_initializer=self.initializer("dense"), **self.options("dense"))(x)
        return keras.layers.Activation("linear", **self.options("activation") | {"dtype": "float32"})(x)


def create_resnet(
    *, image_size: int, n_classes: int, depth: int, width: int, n_stacks: int, normalization: str, dtype: str = "float32", seed: int = 0
) -> keras.Model:
    """The original's `resnet_v1`: float images [B, H, W, 3] in [0, 1] -> logits float32 [B, n_classes].

    Args:
        image_size: height and width; the last feature map must be at least 8x8, see `mat.models.pooling`.
        depth: 6 n + 2 for n blocks in each of the original's three-stack networks: n = (depth - 2) // 6 blocks a stack here too.
        width: 16 * width filters in the first stack, doubled in each next one.
        n_stacks: each stack but the first starts with stride 2.
        normalization: strip | group | batch | layer | none.
        dtype: float32 | mixed_bfloat16, a Keras dtype policy.
    """
    layers = _Layers(normalization, dtype, seed)
    filters = 16 * width
    inputs = keras.Input((image_size, image_size, 3), dtype="float32", name="input_1")
    x = layers.norm_relu(layers.conv(inputs, filters, 3))
    for stack in range(n_stacks):
        for block in range((depth - 2) // 6):
            downsample = stack > 0 and block == 0
            y = layers.norm_relu(layers.conv(x, filters, 3, strides=2 if downsample else 1))
            y = layers.conv(y, filters, 3)
            if downsample:
                x = layers.conv(x, filters, 1, strides=2)
            x = layers.norm_relu(y, shortcut=x)
        filters *= 2
    return keras.Model(inputs, layers.logits(x, n_classes), name="resnet_v1")
