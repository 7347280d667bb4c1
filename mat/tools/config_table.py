"""The table of config keys in docs/configuration.md: `python -m mat.tools.config_table` writes it anew from the config's fields."""

import pathlib

from mat.config import PatchTrainingConfig

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def with_table(document: str) -> str:
    """The document with the table of all keys between its two markers."""
    before, _, rest = document.partition(BEGIN)
    rows = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in PatchTrainingConfig.key_table()]
    table = "\n".join([BEGIN, "| key | default | meaning |", "|---|---|---|", *rows, END])
    return before + table + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8")), "utf-8")
