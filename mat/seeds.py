"""Seeds of independent random streams.

Every random draw of a run has a seed made of the config's seed, the name of its stream and the index of the step or example,
so that it depends neither on threads nor on what was drawn before.
"""

import zlib

import numpy as np


def stream_seed(seed, name):
    """Seed of the stream `name`: int32 [2], for TensorFlow's stateless draws. `name` is hashed stably, by CRC-32."""
    return np.array([seed, zlib.crc32(name.encode())], np.uint32).view(np.int32)


def generator(seed, name):
    """NumPy generator of the stream `name`, for draws on the host."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
