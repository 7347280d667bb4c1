"""Meta adversarial training (MAT) against universal patches, arXiv:2101.11453."""

__version__ = "0.1.0"
