"""Console output, aligned tables, and standard error kept quiet while a library starts."""

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table


class _Output:
    """Standard output. Once its reader is gone (a closed pipe or terminal) text is dropped, so that a run of hours goes on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        """Write and flush text, without the spaces that fill up the last column of tables."""
        try:
            sys.stdout.write(re.sub(" +\n", "\n", text))
            sys.stdout.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # not a full disk, which may have space again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return len(text)

    def flush(self) -> None:
        """Nothing is left to flush."""


# Of the environment neither FORCE_COLOR, which notebooks set for pipes too, nor COLUMNS, which need not be a width.
_ENVIRONMENT = {name: os.environ[name] for name in ("TERM", "COLORTERM", "NO_COLOR") if name in os.environ}
_FILE: Any = _Output() if sys.stdout else None  # None: closed by the shell
console = Console(file=_FILE, force_jupyter=False, highlight=False, markup=False, emoji=False, soft_wrap=True, _environ=_ENVIRONMENT)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a title and, below it, rows in aligned columns, under a header unless all its names are empty."""
    table = Table(*header, box=None, padding=(0, 0, 0, 2), show_header=any(header), header_style="")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(title, style="bold")
    console.print(Segments(console.render(table, console.options.update(max_width=1_000_000))))  # no cell is wrapped or cut


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """Print a title and, aligned below it, names and values."""
    print_table(title, ["", ""], facts.items())


def notebook_output() -> Any:
    """A text output below the cell of a Jupyter notebook, whose `update` replaces what it shows; None outside of notebooks."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error, such as TensorFlow's greetings; shown if the block fails or the process dies.

    Another process holds it, so that an abort in native code, as on a CPU without AVX, does not lose the reason.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    saved = os.dup(2)
    command = [sys.executable, "-ISc", "import sys; text = sys.stdin.buffer.read(); sys.stderr.buffer.write(text)"]
    # start_new_session: signals of the terminal, or of a job's end, do not reach it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as holder:
        try:
            os.dup2(holder.stdin.fileno(), 2)  # type: ignore[union-attr]
            yield
            holder.kill()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
