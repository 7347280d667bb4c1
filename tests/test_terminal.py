"""Console output, progress and stop signals: in terminals, in pipes, and where the reader is gone."""

import contextlib
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from mat.cli import progress
from mat.cli.errors import StoppedError
from mat.cli.signals import in_command, noted_signals, raised_signals

ROOT = pathlib.Path(__file__).parent.parent


def start(code, **options):
    """A Python process that runs a program text."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def run(code, stdout=subprocess.PIPE, **options):
    """(exit status, output, errors) of a Python process that ran a program text."""
    process = start(code, stdout=stdout, **options)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


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
        ("raise ImportError('no library')", 1, 100_000),
        ("pass", 0, 0),
    ],
)
def test_what_is_held_back_is_shown_if_the_process_dies_or_fails(end, status, shown):
    returncode, _, errors = run(HOLD.format(end=end))
    assert returncode == status
    assert errors.count("the reason\n") == shown
    assert errors.endswith("after\n") == (status == 0)
    assert ("ImportError: no library" in errors.splitlines()[-1]) == (status == 1)


STYLED = """
from mat.cli.console import console, print_facts, print_table
from mat.cli.progress import ProgressLine
print_table("bold :smile:", ["", "[name]"], [["1", 300 * "x "], ["22", "y"]])
print_facts("facts", {"name": 100 * "z"})
with ProgressLine(2) as line:
    line.show(1, "half")
print(console.is_interactive)
"""
PLAIN = f"bold :smile:\n      [name]\n  1   {'x ' * 299}x\n  22  y\nfacts\n  name  {'z' * 100}\nFalse\n"


def test_a_pipe_gets_plain_text_whatever_the_environment_says():
    odd = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "0", "LINES": "\u00b2"}
    assert run(STYLED, env=os.environ | odd) == (0, PLAIN, "")


@pytest.mark.parametrize(
    ("environment", "redraws", "colors"),
    [({"TERM": "xterm"}, True, True), ({"TERM": "xterm", "NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
)
def test_terminals_get_what_they_can_show(environment, redraws, colors):
    terminal, writer = pty.openpty()
    surroundings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}  # also an empty one counts in old versions
    assert run(STYLED, stdout=writer, env=surroundings | environment) == (0, None, "")
    os.close(writer)
    output = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert output.endswith(f"{redraws}\r\n")
    assert ("\x1b[?25l" in output) == redraws
    assert bool(re.search(r"\x1b\[[39]\d", output)) == colors
    assert "".join(line + "\r\n" for line in PLAIN.splitlines()[1:4]) in output  # no cell is wrapped or cut


GONE = """
import os, sys
from mat.cli.console import console
from mat.cli.progress import ProgressLine
with ProgressLine(2) as line:
    console.print("ready")
    sys.stdin.readline()
    for done in range(3):
        line.show(done, "on")
        line._live.refresh()
        console.print(20_000 * "line\\n")
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize("channel", [os.pipe, pty.openpty])
def test_output_that_nobody_reads_ends_nothing(channel):
    reader, writer = channel()
    environment = os.environ | {"TERM": "xterm"}
    process = start(GONE, env=environment, stdin=subprocess.PIPE, stdout=writer)
    os.close(writer)
    assert os.read(reader, 1000)
    os.close(reader)
    assert process.communicate("go on\n", timeout=60)[1] == "went on\n"
    assert process.returncode == 0


def test_output_that_is_closed_ends_nothing():
    assert run("from mat.cli.console import console; console.print(1)", preexec_fn=lambda: os.close(1)) == (0, "", "")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (18_725, "5 h 12 min")])
def test_durations_are_rounded(seconds, text):
    assert progress.duration(seconds) == text


def test_training_progress_in_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_LINE_SECONDS", 0)
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 1000)
    with progress.TrainingProgress(n_epochs=2, steps_per_epoch=10, batch_size=4, first_step=3) as training:
        for done in range(4, 21):
            if training.due(done):
                training.update(done, 1.5, 0.25)
            if done == 10:
                training.end_epoch(0, loss=1.5, accuracy=0.25, validation_accuracy=0.5)
    state, speed = r"loss 1.500  accuracy 0.250", r"\d+ images/s"
    expected = [
        rf"epoch 1/2  step 4/10  {state}  {speed}",
        rf"epoch 1/2  {state} \(training\)  validation accuracy 0.500 \(clean\)  \d s",
        rf"epoch 2/2  step 3/10  {state}  {speed}  \d s left",
        r"First step 0.\d s with tracing, then 0.\d{3} s a step: about \d s to go, until \d\d:\d\d",
    ]
    assert re.fullmatch("\n".join(expected) + "\n", capsys.readouterr().out)
    assert training.images_per_second > 0


def test_work_that_took_no_time_does_not_count_for_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress, "_PLAIN_LINE_SECONDS", 0)
    with progress.WorkProgress(100) as work:
        work._live.get_time = lambda: now[0]
        for i in range(3):
            work.advance(10, f"part {i}")
            work.skip(5)
            now[0] += 10
    assert capsys.readouterr().out.splitlines() == ["10%  part 0", "25%  part 1  1 min 15 s left", "40%  part 2  1 min 00 s left"]


@pytest.fixture(autouse=True)
def hangup_is_not_ignored():
    """As under nohup it would be, in these tests and in the processes that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def of_a_command():
    """Within the block the process is a command's."""
    token = in_command.set(True)
    yield
    in_command.reset(token)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_answered_and_handlers_are_given_back(capsys, number):
    before = signal.getsignal(number)
    with of_a_command(), noted_signals() as request:
        assert request.received == 0
        for each in (number, signal.SIGTERM):
            os.kill(os.getpid(), each)
            assert request.received == number
    assert signal.getsignal(number) == before
    assert capsys.readouterr().out.count(f"{number.name}: stopping after this step; Ctrl-C again") == 1


def test_signals_are_raised_where_nothing_is_to_finish():
    with pytest.raises(StoppedError, match="saved") as stop, raised_signals("saved"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_status == 143


def test_an_ignored_hangup_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with noted_signals() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.received == 0


BUSY = """
import hashlib
from mat.cli.signals import in_command, noted_signals
in_command.set(True)
with noted_signals():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code, like a compiled step
"""


@pytest.mark.parametrize("reader_is_gone", [False, True])
def test_a_second_ctrl_c_ends_a_process_that_is_busy_in_native_code(reader_is_gone):
    process = start(BUSY, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert "SIGINT: stopping after this step" in process.stdout.readline()
    time.sleep(0.5)
    assert process.poll() is None
    if reader_is_gone:
        process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert reader_is_gone or "Ended at once" in process.stderr.read()
