"""Credible intervals of accuracies: equal-tailed 95 % intervals of the Beta posterior under the Jeffreys prior."""

import numpy as np

_TAIL = np.float64(1 - 0.95) / 2
_PRIOR = 0.5  # both parameters of the Jeffreys prior
_NORMAL_QUANTILE = 1.959964  # of the probability 1 - _TAIL


def accuracy_interval(n_correct: int | np.ndarray, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), float64 in [0, 1] in the shape of `n_correct`; low is 0 where no image is correct and high is 1 where all are.

    Reference: Brown, Cai and DasGupta, Interval Estimation for a Binomial Proportion, Statistical Science 16 (2), 2001.
    """
    from tensorflow_probability import distributions  # takes most of a second to import

    n_correct = np.asarray(n_correct, np.float64)
    posterior = distributions.Beta(n_correct + _PRIOR, n_images - n_correct + _PRIOR)
    low, high = posterior.quantile(_TAIL).numpy(), posterior.quantile(1 - _TAIL).numpy()
    return np.where(n_correct == 0, 0.0, low), np.where(n_correct == n_images, 1.0, high)


def images_needed(n_correct: int, n_images: int, width: float) -> int:
    """About how many images would make the interval this wide, by the normal approximation at the posterior's mean."""
    accuracy = (n_correct + _PRIOR) / (n_images + 2 * _PRIOR)
    return int(np.ceil(4 * _NORMAL_QUANTILE**2 * accuracy * (1 - accuracy) / width**2))


def interval_text(estimate: dict) -> str:
    """An accuracy of a report with its interval: `28.1% (25.4% to 30.9%)`."""
    return f"{estimate['accuracy']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"
