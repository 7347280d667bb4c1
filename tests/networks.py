"""Networks that tests give to the program as a user does, by name: `network: tests.networks:vit`."""

import functools

import keras
from keras import layers


def small(image_size, n_classes, activation=None, regularizer=None):
    """A few convolutions of several kinds, batch normalization and dropout."""
    images = keras.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, kernel_regularizer=regularizer)(images)
    x = layers.BatchNormalization(momentum=0.5)(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, layers.Dense(n_classes, activation=activation)(x))


softmax = functools.partial(small, activation="softmax")
regularized = functools.partial(small, regularizer="l2")


@keras.saving.register_keras_serializable(package="tests")
class Positions(layers.Layer):
    """Adds a learned vector to each token; an embedding, whose gradients are slices."""

    def build(self, input_shape):
        self.embedding = layers.Embedding(input_shape[1], input_shape[2])
        self.embedding.build(())

    def call(self, tokens):
        return tokens + self.embedding(keras.ops.arange(tokens.shape[1]))


def vit(image_size, n_classes, patch=4, width=16):
    """A vision transformer of two blocks."""
    images = keras.Input((image_size, image_size, 3))
    x = layers.Reshape((-1, width))(layers.Conv2D(width, patch, strides=patch)(images))
    x = Positions()(x)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, width // 2, dropout=0.1)(y, y)
        y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(images, layers.Dense(n_classes)(x))


def dense(image_size, n_classes):
    """A network without a convolution, that is built when it is first called."""
    return keras.Sequential([layers.Flatten(), layers.Dense(n_classes)])


def nested(image_size, n_classes):
    """A classifier on top of another model, which is frozen."""
    backbone = small(image_size, 6)
    backbone.trainable = False
    images = keras.Input((image_size, image_size, 3))
    return keras.Model(images, layers.Dense(n_classes)(keras.Sequential([backbone, layers.ReLU()])(images)))


class OwnClass(keras.Model):
    """A subclass of `keras.Model`, with blocks in lists, that Keras cannot make again."""

    def __init__(self, n_classes):
        super().__init__()
        self.blocks = [layers.Conv2D(4, 3, strides=2), layers.BatchNormalization()]
        self.head = layers.Dense(n_classes)

    def get_config(self):
        raise NotImplementedError

    def call(self, images):
        for block in self.blocks:
            images = block(images)
        return self.head(keras.ops.mean(images, axis=(1, 2)))


def own_class(image_size, n_classes):
    """An instance of a class of the user's own."""
    return OwnClass(n_classes)


def application(name, image_size, n_classes):
    """A network of keras.applications, with random weights."""
    shape = (image_size, image_size, 3)
    arguments = {} if name == "ResNet50V2" else {"include_preprocessing": False}
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=shape, classes=n_classes, classifier_activation=None, **arguments)


mobile_net = functools.partial(application, "MobileNetV3Small")
resnet50 = functools.partial(application, "ResNet50V2")
efficient_net = functools.partial(application, "EfficientNetV2B0")
conv_next = functools.partial(application, "ConvNeXtTiny")


# What is refused.


def raises(image_size, n_classes):
    """A function with a bug."""
    return {}["missing"]


def nothing(image_size, n_classes):
    """A function that forgets to return its model."""
    small(image_size, n_classes)


def other_arguments(size):
    """A function that cannot be called with the names of the arguments."""


def two_inputs(image_size, n_classes):
    """A network of two images."""
    images = [keras.Input((image_size, image_size, 3)) for _ in range(2)]
    return keras.Model(images, layers.Dense(n_classes)(layers.GlobalAveragePooling2D()(layers.Add()(images))))


def two_outputs(image_size, n_classes):
    """A network with an auxiliary output."""
    images = keras.Input((image_size, image_size, 3))
    x = layers.Flatten()(images)
    return keras.Model(images, [layers.Dense(n_classes)(x), layers.Dense(2)(x)])


def gray(image_size, n_classes):
    """A network of one channel."""
    return keras.Sequential([keras.Input((image_size, image_size, 1)), layers.Flatten(), layers.Dense(n_classes)])


def channels_first(image_size, n_classes):
    """A network in the layout of other frameworks."""
    return keras.Sequential([keras.Input((3, image_size, image_size)), layers.Flatten(), layers.Dense(n_classes)])


def larger(image_size, n_classes):
    """A network of images of another size."""
    return small(image_size + 8, n_classes)


def oblong(image_size, n_classes):
    """A network of images that are not square."""
    return keras.Sequential([keras.Input((image_size, 2 * image_size, 3)), layers.Flatten(), layers.Dense(n_classes)])


def features(image_size, n_classes):
    """A network without its classifier."""
    return keras.Sequential([keras.Input((image_size, image_size, 3)), layers.Conv2D(n_classes, 3)])


def more_classes(image_size, n_classes):
    """A network of other classes."""
    return small(image_size, n_classes + 3)


def sigmoid(image_size, n_classes):
    """A network of one output for two classes."""
    return small(image_size, 1, activation="sigmoid")


def sigmoids(image_size, n_classes):
    """A network of classes that do not exclude each other."""
    return small(image_size, n_classes, activation="sigmoid")


def logarithms(image_size, n_classes):
    """A network that gives NaN on black images."""
    images = keras.Input((image_size, image_size, 3))
    x = layers.Flatten()(keras.ops.log(images) * 0)
    return keras.Model(images, layers.Dense(n_classes)(x))


def rounding(image_size, n_classes):
    """A network without gradients."""
    images = keras.Input((image_size, image_size, 3))
    x = keras.ops.cast(keras.ops.cast(255 * images, "uint8"), "float32")
    return keras.Model(images, layers.Dense(n_classes)(layers.Flatten()(x)))


def bytes_rescaled(image_size, n_classes):
    """A network of images of 0..255."""
    return keras.Sequential([keras.Input((image_size, image_size, 3)), layers.Rescaling(1 / 127.5, -1), small(image_size, n_classes)])


def bytes_normalized(image_size, n_classes):
    """A network of images of 0..255, normalized in a model inside."""
    normalization = layers.Normalization(mean=[123.7, 116.3, 103.5], variance=[3409.0, 3262.0, 3291.0])
    inner = keras.Sequential([keras.Input((image_size, image_size, 3)), layers.RandomFlip(), normalization, layers.Conv2D(4, 3)])
    return keras.Sequential([inner, layers.Flatten(), layers.Dense(n_classes)])


def frozen(image_size, n_classes):
    """A network that cannot be trained."""
    model = small(image_size, n_classes)
    model.trainable = False
    return model


def bfloat16(image_size, n_classes):
    """A network with weights in bfloat16."""
    keras.config.set_dtype_policy("bfloat16")
    return small(image_size, n_classes)
