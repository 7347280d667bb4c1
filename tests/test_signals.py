"""Stop signals: noted once, answered at once, and a second Ctrl-C that waits for nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mat.cli.errors import StoppedError
from mat.cli.signals import noted_signals, raised_signals

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def hangup_is_not_ignored():
    """As under nohup it would be, in these tests and in the processes that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_noted_answered_and_given_back(capsys, number):
    before = signal.getsignal(number)
    with noted_signals() as request:
        assert request.received == 0
        os.kill(os.getpid(), number)
        assert request.received == number
        os.kill(os.getpid(), signal.SIGTERM)
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
from mat.cli.signals import noted_signals
with noted_signals():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code, like a compiled step
"""


@pytest.mark.parametrize("reader_is_gone", [False, True])
def test_a_second_ctrl_c_ends_a_process_that_is_busy_in_native_code(reader_is_gone):
    process = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


PIPE = """
import sys
from mat.cli.console import console
for i in range(20_000):
    console.print("line", i)
print("went on", file=sys.stderr)
"""


def test_output_that_is_closed_ends_nothing():
    code = f"{sys.executable} -c 'from mat.cli.console import console; console.print(1)' >&-"
    assert subprocess.run(code, shell=True, cwd=ROOT, capture_output=True, timeout=60, check=False).stderr == b""


def test_output_that_nobody_reads_ends_nothing():
    process = subprocess.Popen([sys.executable, "-c", PIPE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "went on\n"
    assert process.wait(timeout=60) == 0
