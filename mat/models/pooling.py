"""Average pooling over the last feature map: the image sizes that it takes, and the size of its cells."""

import math

SMALLEST_POOL = 8  # height and width of the pooled cells, at least; the original's at 64x64


def last_feature_map(image_size: int, n_stacks: int) -> int:
    """Height and width of the network's last feature map: each stack but the first halves it, rounding up."""
    return math.ceil(image_size / 2 ** (n_stacks - 1))


def pool_size(feature_map: int) -> int:
    """Height and width of the pooled cells: the smallest divisor of the feature map's that is at least 8, so that no pixel is left out."""
    if feature_map < SMALLEST_POOL:
        raise ValueError(f"the feature map must be at least {SMALLEST_POOL}x{SMALLEST_POOL}. Received: {feature_map}x{feature_map}")
    return next(size for size in range(SMALLEST_POOL, feature_map + 1) if feature_map % size == 0)
