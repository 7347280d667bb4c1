"""What a count of correct images says about an accuracy."""

import numpy as np

CREDIBILITY = 0.95
JEFFREYS = 0.5  # both parameters of the prior
NORMAL_QUANTILE = 1.959964  # of the probability 1 - (1 - CREDIBILITY) / 2


def accuracy_interval(n_correct, n_images):
    """The equal-tailed 95 % credible interval of an accuracy: quantiles of its Beta posterior under the Jeffreys prior.

    Args:
        n_correct: correctly classified images, an integer or an array of them.
        n_images: images in all, at least 1.

    Returns:
        (low, high), float64 in [0, 1] in the shape of `n_correct`. As is usual for this prior, low is 0 where no image is correct and
        high is 1 where all are.

    Reference:
        Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16 (2), 2001.
    """
    from tensorflow_probability import distributions  # takes most of a second to import

    n_correct = np.asarray(n_correct, np.float64)
    posterior = distributions.Beta(n_correct + JEFFREYS, n_images - n_correct + JEFFREYS)
    tail = np.float64(1 - CREDIBILITY) / 2
    low, high = posterior.quantile(tail).numpy(), posterior.quantile(1 - tail).numpy()
    return np.where(n_correct == 0, 0.0, low), np.where(n_correct == n_images, 1.0, high)


def images_needed(n_correct, n_images, width):
    """About how many images would make the 95 % interval this wide, by the normal approximation at the posterior's mean."""
    accuracy = (n_correct + JEFFREYS) / (n_images + 2 * JEFFREYS)
    return int(np.ceil(4 * NORMAL_QUANTILE**2 * accuracy * (1 - accuracy) / width**2))


def interval_text(estimate):
    """An accuracy of a report with its 95 % interval: `28.1% (25.4% to 30.9%)`."""
    return f"{estimate['accuracy']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"
