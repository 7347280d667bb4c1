"""The ResNet of the original: post-activation blocks, weight-standardized convolutions, strip normalization."""

import math
import zlib

import keras

from mat.models.convolutional import StandardizedConv2D
from mat.models.groupnormalization import StripNormalization
from mat.models.pooling import pool_size

GROUPS = 8
EPSILON = 1e-5
DATA_FORMAT = {"data_format": "channels_last"}  # said to every layer that would else take it from the user's Keras settings


@keras.saving.register_keras_serializable(package="mat")
class FeatureMapNormalization(keras.layers.GroupNormalization):
    """Layer normalization of feature maps, over height, width and channels: group normalization with one group.

    A class of its own because Keras' `.weights.h5` files tell layers apart by their class alone.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"groups": 1} | kwargs)


NORMALIZATIONS = {
    "strip": ("group_normalization", lambda **kwargs: StripNormalization(GROUPS, EPSILON, **kwargs)),
    "group": ("channel_group_normalization", lambda **kwargs: keras.layers.GroupNormalization(GROUPS, epsilon=EPSILON, **kwargs)),
    "batch": ("batch_normalization", lambda **kwargs: keras.layers.BatchNormalization(epsilon=EPSILON, **kwargs)),
    "layer": ("layer_normalization", lambda **kwargs: FeatureMapNormalization(epsilon=EPSILON, **kwargs)),
    "none": ("none", None),
}


class _Layers:
    """Makes the layers of one model, named as the original's weights file names them: by kind, in order of creation."""

    def __init__(self, normalization, dtype, seed):
        self.normalization = normalization
        self.dtype = dtype
        self.seed = seed
        self.counts = {}

    def name(self, kind):
        """The next name of a kind: `conv2d`, `conv2d_1`, ..."""
        count = self.counts[kind] = self.counts.get(kind, -1) + 1
        return kind if count == 0 else f"{kind}_{count}"

    def initializer(self, name):
        """He-normal with a seed of the layer's own; equal seeds would give kernels of equal shape equal values."""
        return keras.initializers.HeNormal(seed=zlib.crc32(f"{self.seed}/{name}".encode()))

    def conv(self, x, filters, kernel_size, strides=1):
        """A convolution; kernels larger than 1x1 are standardized."""
        name = self.name("conv2d")
        arguments = {"strides": strides, "kernel_initializer": self.initializer(name), "name": name, "dtype": self.dtype}
        if kernel_size == 1:
            return keras.layers.Conv2D(filters, kernel_size, padding="same", **DATA_FORMAT, **arguments)(x)
        return StandardizedConv2D(filters, kernel_size, **arguments)(x)

    def norm(self, x):
        """The chosen normalization."""
        kind, layer = NORMALIZATIONS[self.normalization]
        return x if layer is None else layer(name=self.name(kind), dtype=self.dtype)(x)

    def relu(self, x):
        """A ReLU."""
        return keras.layers.Activation("relu", name=self.name("activation"), dtype=self.dtype)(x)

    def add(self, x, y):
        """The sum that ends a residual block."""
        return keras.layers.Add(name=self.name("add"), dtype=self.dtype)([x, y])

    def logits(self, x, n_classes):
        """Pooling and the dense layer, up to logits."""
        x = keras.layers.AveragePooling2D(pool_size(x.shape[1]), name="average_pooling2d", dtype=self.dtype, **DATA_FORMAT)(x)
        x = keras.layers.Flatten(name="flatten", dtype=self.dtype, **DATA_FORMAT)(x)
        dense = keras.layers.Dense(n_classes, kernel_initializer=self.initializer("dense"), name="dense", dtype=self.dtype)
        # Where the original has its softmax stand the logits, in float32 under every precision.
        return keras.layers.Activation("linear", name=self.name("activation"), dtype="float32")(dense(x))


def create_resnet(*, image_size, n_classes, depth, width, n_stacks, normalization, dtype="float32", seed=0):
    """The original's `resnet_v1` as a Keras model that gives logits.

    Args:
        image_size: height and width of the images; the last feature map, ceil(image_size / 2^(n_stacks - 1)), must be at least 8x8. It
            is pooled in cells of at least 8x8 that cover it as a whole, see `pool_size`.
        n_classes: number of logits.
        depth: 6 n + 2 for n blocks in each of the original's three-stack networks: n = (depth - 2) // 6 blocks a stack here too.
        width: 16 * width filters in the first stack, doubled in each next one.
        n_stacks: number of stacks; each but the first starts with stride 2.
        normalization: strip | group | batch | layer | none.
        dtype: float32 | mixed_bfloat16, a Keras dtype policy.
        seed: seed of the initial weights.

    Returns:
        keras.Model: float images [B, H, W, 3] in [0, 1] -> logits float32 [B, n_classes].
    """
    layers = _Layers(normalization, dtype, seed)
    filters = 16 * width
    inputs = keras.Input((image_size, image_size, 3), dtype="float32", name="input_1")
    x = layers.relu(layers.norm(layers.conv(inputs, filters, 3)))
    for stack in range(n_stacks):
        for block in range((depth - 2) // 6):
            downsample = stack > 0 and block == 0
            y = layers.relu(layers.norm(layers.conv(x, filters, 3, strides=2 if downsample else 1)))
            y = layers.conv(y, filters, 3)
            if downsample:
                x = layers.conv(x, filters, 1, strides=2)
            x = layers.relu(layers.add(x, layers.norm(y)))
        filters *= 2
    return keras.Model(inputs, layers.logits(x, n_classes), name="resnet_v1")


def forward_flops(model):
    """Multiplications and additions of the convolutions and the dense layer in a forward pass of one image."""
    flops = 0
    for layer in model.layers:
        if isinstance(layer, (StandardizedConv2D, keras.layers.Conv2D, keras.layers.Dense)):
            positions = math.prod(layer.output.shape[1:-1])
            flops += 2 * positions * math.prod(layer.kernel.shape)
    return flops
