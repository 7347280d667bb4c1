"""What training takes of a network, layers inside of other layers included: convolution kernels, regularizers, gradients, cost."""

import logging

import keras
import tensorflow as tf

from mat.models.convolutional import StandardizedConv2D
from mat.models.prepared import all_layers

_CONVOLUTIONS = (
    *(StandardizedConv2D, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)
_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")  # attributes; separable convolutions have the latter two


def convolution_kernels(model: keras.Model) -> list[keras.Variable]:
    """The trainable kernels of convolutions of every kind, depthwise, separable and transposed ones too."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, _CONVOLUTIONS)]
    kernels = [getattr(layer, name) for layer in layers for name in _KERNELS if hasattr(layer, name)]
    return [kernel for kernel in kernels if kernel.trainable]


def regularization(model: keras.Model) -> tf.Tensor:
    """The sum of the regularizers that weights of an own network have, a scalar; those of the ResNet have none."""
    return sum((variable.regularizer(variable) for variable in model.trainable_variables if variable.regularizer is not None), 0.0)


def dense_gradients(tape: tf.GradientTape, loss: tf.Tensor, variables: list[keras.Variable]) -> list[tf.Tensor]:
    """The gradients of a loss as tensors in the shapes of the variables, zeros for those that it does not depend on."""
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def random_states(model: keras.Model) -> list[tf.Variable]:
    """The states that layers such as dropout draw from, which are no weights."""
    weights = {id(weight) for weight in model.non_trainable_weights}
    return [variable.value for variable in model.non_trainable_variables if id(variable) not in weights]


def forward_flops(model: keras.Model) -> int:
    """Multiplications and additions of convolutions and matrix products in a forward pass of one image; einsums are not counted."""
    forward = tf.function(lambda images: model(images, training=False), autograph=False)
    graph = forward.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]])).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    products = builder(builder.float_operation()).with_accounted_types([".*Conv.*", ".*MatMul.*"]).with_empty_output().build()
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the profiler calls what TensorFlow has deprecated
    try:
        return tf.compat.v1.profiler.profile(graph, options=products).total_float_ops
    finally:
        logger.setLevel(level)
