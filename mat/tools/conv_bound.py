"""The convolutions of a model alone: what the time of a training step is measured against.

Shapes: `B` images a batch, `F` trials, `K` I-FGSM iterations.
"""

import math
import statistics
import time

import keras
import tensorflow as tf

from mat.models.convolutional import StandardizedConv2D

CALLS = 3  # of each convolution in a round


class Convolutions:
    """The convolutions of a model as the framework's bare operations, forward, at the model's shapes, batch and dtype.

    Convolutions of equal shape are timed once.

    Args:
        model: a `keras.Model` of this package.
        batch_size: B.
        dtype: float32 | mixed_bfloat16, a Keras dtype policy.
    """

    def __init__(self, model, batch_size, dtype):
        self.batch_size = batch_size
        self.dtype = tf.as_dtype(keras.DTypePolicy(dtype).compute_dtype)
        self.layers = [layer for layer in model.layers if isinstance(layer, (StandardizedConv2D, keras.layers.Conv2D))]
        self.functions = {}
        for layer in self.layers:
            if self._shapes(layer) not in self.functions:
                self.functions[self._shapes(layer)] = self._function(*self._shapes(layer))
        self.times = {shapes: [] for shapes in self.functions}

    def _shapes(self, layer):
        """Input [H, W, C], kernel [h, w, C, filters] and stride of a layer, hashable."""
        strides = layer.strides if isinstance(layer.strides, int) else layer.strides[0]
        return tuple(layer.input.shape[1:]), tuple(layer.kernel.shape), strides

    def _function(self, input_shape, kernel_shape, strides):
        shapes = [self.batch_size, *input_shape], kernel_shape
        inputs, kernel = (tf.Variable(tf.cast(tf.random.stateless_normal(shape, [0, 0]), self.dtype)) for shape in shapes)
        function = tf.function(lambda: tf.nn.conv2d(inputs, kernel, strides, "SAME"), autograph=False).get_concrete_function()
        seconds_of(function)  # warm-up
        return function

    def measure(self):
        """One round: time every convolution a few times."""
        for shapes, function in self.functions.items():
            self.times[shapes] += [seconds_of(function) for _ in range(CALLS)]

    def equivalents(self, n_trials, n_iterations):
        """How many forward passes each layer's work in a step is worth, a list of integers in the order of the layers.

        Forward F + K + 1, input gradient K + 1 (K in the first layer, as OPT needs none there), weight gradient 1; no forward pass for
        SELECT with F = 1, which evaluates nothing.
        """
        forward = (0 if n_trials == 1 else n_trials) + n_iterations + 1
        return [forward + n_iterations + (i > 0) + 1 for i in range(len(self.layers))]

    def bound_seconds(self, equivalents):
        """What a step takes whose every pass is as fast as the bare forward convolution and that does nothing else."""
        return sum(n * self._median(layer) for n, layer in zip(equivalents, self.layers, strict=True))

    def gflop(self, equivalents):
        """Multiplications and additions of the convolutions in a step, in 1e9."""
        return sum(n * self._gflop(layer) for n, layer in zip(equivalents, self.layers, strict=True))

    def report(self, equivalents):
        """Name, shapes, seconds and GFLOP/s of each layer alone."""
        return [
            {
                "name": layer.name,
                "input": self._shapes(layer)[0],
                "kernel": self._shapes(layer)[1],
                "strides": self._shapes(layer)[2],
                "seconds": self._median(layer),
                "gflops": self._gflop(layer) / self._median(layer),
                "forward_equivalents": n,
            }
            for n, layer in zip(equivalents, self.layers, strict=True)
        ]

    def _median(self, layer):
        return statistics.median(self.times[self._shapes(layer)])

    def _gflop(self, layer):
        return 2e-9 * self.batch_size * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)


def seconds_of(function, *arguments):
    """Seconds of one call, until the device is done."""
    start = time.perf_counter()
    function(*arguments)
    tf.test.experimental.sync_devices()
    return time.perf_counter() - start
