"""Package metadata. The dependencies and their tested ranges are in requirements.txt."""

import pathlib
import re

from setuptools import find_packages, setup

root = pathlib.Path(__file__).parent
requirements = [line for line in (root / "requirements.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")]
version = re.search(r'__version__ = "(.+)"', (root / "mat" / "__init__.py").read_text("utf-8")).group(1)

PLOTS = ["matplotlib>=3.8,<4"]

setup(
    name="meta-adversarial-training",
    version=version,
    description="Meta adversarial training (MAT) against universal patches, in TensorFlow 2",
    long_description=(root / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="AGPL-3.0-only",
    classifiers=["Operating System :: POSIX :: Linux", "Operating System :: MacOS"],
    packages=find_packages(include=["mat", "mat.*"]),
    python_requires=">=3.10,<3.14",
    install_requires=requirements,
    extras_require={"plots": PLOTS, "dev": [*PLOTS, "pytest>=8,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7", "ruff>=0.9,<1"]},
    entry_points={"console_scripts": ["mat-train=mat.train:main", "mat-evaluate=mat.evaluate:main"]},
)
