"""The program from Python: `mat.train`, `mat.evaluate`, `mat.load`, `mat.read_image`, `mat.fit_patch`, `mat.apply_patches`.

The user's fault raises `mat.cli.errors.UserError`, with the message that the commands print. What is set in TensorFlow while a function
runs is set back when it ends. Ctrl-C, in a notebook "interrupt", ends training after the step in hand, with everything saved.
"""

from mat.api.fitting import apply_patches, fit_patch
from mat.api.loading import load, read_image
from mat.api.measuring import evaluate
from mat.api.running import train

__all__ = ["apply_patches", "evaluate", "fit_patch", "load", "read_image", "train"]
