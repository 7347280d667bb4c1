"""The console: what is held back is shown when it is needed, and terminals, pipes and odd environments are told apart."""

import os
import pathlib
import pty
import re
import signal
import subprocess
import sys

import pytest

from mat.cli.console import quiet_stderr

ROOT = pathlib.Path(__file__).parent.parent


def run(code, **options):
    """A finished Python process that ran a program text, with its output as text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=60, check=False, **options)


HOLD = """
import os
from mat.cli.console import quiet_stderr
with quiet_stderr():
    os.write(2, b"the reason\\n" * 100_000)  # more than a pipe takes
    {end}
os.write(2, b"after\\n")
"""


@pytest.mark.parametrize(
    ("end", "status", "shown"),
    [
        ("os.abort()", -signal.SIGABRT, 100_000),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, 100_000),
        ("raise ImportError('no library')", 1, 100_000),
        ("raise KeyboardInterrupt", -signal.SIGINT, 0),
        ("pass", 0, 0),
    ],
)
def test_what_is_held_back_is_shown_if_the_process_dies_or_fails(end, status, shown):
    process = run(HOLD.format(end=end))
    assert process.returncode == status
    assert process.stderr.count("the reason\n") == shown
    assert process.stderr.endswith("after\n") == (status == 0)
    assert ("ImportError: no library" in process.stderr.splitlines()[-1]) == (status == 1)


def test_standard_error_is_as_before_afterwards(capfd):
    with quiet_stderr():
        os.write(2, b"greetings\n")
    os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"


STYLED = """
from mat.cli.console import can_redraw, console
from mat.cli.progress import ProgressLine
console.print("bold", style="bold")
with ProgressLine(2) as line:
    line.update(1, "half")
print(can_redraw())
"""


def test_a_pipe_gets_plain_text_whatever_the_environment_says():
    odd = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "0", "LINES": "\u00b2"}
    assert run(STYLED, env=os.environ | odd).stdout == "bold\nFalse\n"
    assert run(STYLED, env=os.environ | odd | {"COLUMNS": "\u00b2"}).stdout == "bold\nFalse\n"


@pytest.mark.parametrize(
    ("environment", "redraws", "colors"),
    [({"TERM": "xterm"}, True, True), ({"TERM": "xterm", "NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
)
def test_terminals_get_what_they_can_show(environment, redraws, colors):
    terminal, writer = pty.openpty()
    surroundings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}  # also an empty one counts in old versions
    process = run(STYLED, stdout=writer, env=surroundings | environment)
    os.close(writer)
    output = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert process.stderr == ""
    assert output.endswith(f"{redraws}\r\n")
    assert ("\x1b[?25l" in output) == redraws
    assert bool(re.search(r"\x1b\[[39]\d", output)) == colors


GONE = """
import os, sys
from mat.cli.console import console
from mat.cli.progress import ProgressLine
with ProgressLine(2) as line:
    os.write(2, b"ready\\n")
    sys.stdin.readline()
    for done in range(3):
        line.update(done, "on")
        line._live.refresh()
        console.print("line")
"""


def test_a_terminal_that_is_gone_ends_nothing():
    terminal, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", GONE],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert process.stderr.readline() == "ready\n"
    os.close(terminal)
    assert process.communicate("go on\n", timeout=60)[1] == ""
    assert process.returncode == 0
