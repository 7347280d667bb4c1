"""The style of this program's pictures, and PNG files of them, drawn with matplotlib (the extra `plots`)."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mat.cli.errors import UserError

BLUE, RED = "#2a6fbb", "#c0392b"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names may have dollar signs
}


@contextlib.contextmanager
def picture_style() -> Iterator[None]:
    """Within this block figures are drawn in the style of this program.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


@contextlib.contextmanager
def required_picture_style(user: str) -> Iterator[None]:
    """As `picture_style`, for a `user` that cannot do without.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        with picture_style():
            yield
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise UserError(f"{user} needs matplotlib, which is not installed. Install it: pip install matplotlib") from None


def png(figure: Any, *, dpi: int = 120) -> bytes:
    """A matplotlib figure as the content of a PNG file: equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def gallery(panels: Sequence[tuple[Any, str, str]], *, n_columns: int, width: float, height: float, title: str = "") -> Any:
    """A figure of images in rows.

    Args:
        panels: for each image, float [H, W, 3] in [0, 1], what stands over it, and the color of that.
        n_columns: images in a row.
        width: inches of an image with its margins; `height` likewise.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(width * n_columns, height * n_rows))
    figure.suptitle(title, fontsize=9)
    for axes in figure.subplots(n_rows, n_columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (image, text, color) in zip(figure.axes, panels, strict=False):
        axes.imshow(image, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(text, fontsize=8, color=color)
    return figure


def cut(name: str, longest: int, *, middle: bool = False) -> str:
    """A name in at most so many characters, without its end or its middle where it is longer."""
    n_last = (longest - 1) // 2 if middle else 0
    return name if len(name) <= longest else f"{name[: longest - 1 - n_last]}…{name[len(name) - n_last :]}"
