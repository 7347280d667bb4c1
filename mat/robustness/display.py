"""A report in Python: a dict, with the patches and pictures of its directory, that notebooks show."""

import base64
import functools
import html
import os
import pathlib
from typing import Any

import numpy as np

from mat.robustness.checklist import WARNING
from mat.robustness.intervals import interval_text
from mat.robustness.store import FITTED_PATCHES_FILE, read_arrays


class Report(dict):
    """The contents of `report.json` as a dict; a notebook shows the accuracies, the warnings and the pictures.

    Attributes:
        directory: where the evaluation was written.
    """

    def __init__(self, report: dict[str, Any], directory: str | os.PathLike[str]) -> None:
        super().__init__(report)
        self.directory = pathlib.Path(directory)

    @functools.cached_property
    def patches(self) -> dict[str, np.ndarray]:
        """The patches that were fitted, float32 [h, w, 3] in [0, 1], by their names in the report."""
        arrays = read_arrays(self.directory / FITTED_PATCHES_FILE)
        return dict(zip(arrays["names"].tolist(), arrays["patches"], strict=True))

    @property
    def strongest(self) -> np.ndarray:
        """The fitted patch under which the accuracy is lowest, float32 [h, w, 3]."""
        return self.patches[min([*self["grid"], *self["gradient_free"]], key=lambda row: row["accuracy"])["name"]]

    @functools.cached_property
    def pictures(self) -> dict[str, bytes]:
        """The PNG files of the evaluation, such as `examples.png`, by their names."""
        return {path.name: path.read_bytes() for path in sorted(self.directory.glob("*.png"))}

    def _repr_html_(self) -> str:
        robust = self["headline"]["robust"]
        rows = {"clean": self["headline"]["clean"], f"under the worst patch, {robust['name']}": robust}
        cells = [f"<tr><td>{html.escape(name)}</td><td>{interval_text(value)}</td></tr>" for name, value in rows.items()]
        failed = [item["message"] for item in self["checklist"] if item["status"] == WARNING]
        warnings = [f"<p>WARNING: {html.escape(message)}</p>" for message in failed]
        pictures = [f'<p><img src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>' for png in self.pictures.values()]
        return "".join(["<table><tr><th></th><th>accuracy, 95 % interval</th></tr>", *cells, "</table>", *warnings, *pictures])
