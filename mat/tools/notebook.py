"""docs/python.ipynb: docs/python.md as a Jupyter notebook, its Python blocks as cells. The last line of a cell is shown by the notebook.

python -m mat.tools.notebook
"""

import json
import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_SETUP = 'import os\n\nos.chdir("..")  # the paths below are those of the checkout\n'


def python_blocks(text: str) -> list[str]:
    """The Python blocks of a Markdown text."""
    return _BLOCK.findall(text)


def notebook_of(text: str) -> str:
    """The notebook, as JSON, of a Markdown text with Python blocks."""
    cells = [_cell("code", 0, _SETUP)]
    for number, part in enumerate(_BLOCK.split(text), start=1):  # text and code take turns
        if part.strip():
            cells.append(_cell("markdown" if number % 2 else "code", number, part))
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, number: int, text: str) -> dict:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


if __name__ == "__main__":
    (DOCS / "python.ipynb").write_text(notebook_of((DOCS / "python.md").read_text("utf-8")), "utf-8")
