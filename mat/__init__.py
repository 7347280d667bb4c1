"""Meta adversarial training (MAT) against universal patches, arXiv:2101.11453."""

import sys

if sys.platform == "win32":
    raise ImportError("mat runs on Linux and macOS. On Windows, run it in WSL, the Windows Subsystem for Linux: wsl --install")

__version__ = "0.3.0"
