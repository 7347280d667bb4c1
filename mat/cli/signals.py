"""How a run reacts when it is asked to stop: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is gone).

Python's handlers wait for the operation that runs, and a compiled step may take a minute. So a thread of its own reads what arrives: it
answers at once, and a second Ctrl-C ends the process without waiting.
"""

import contextlib
import os
import signal
import socket
import threading

from mat.cli.console import can_redraw, console
from mat.cli.errors import StoppedError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b"\x1b[?25h"  # a live progress line hides it


class StopRequest:
    """The signal that asked to stop, 0 before."""

    received = 0


@contextlib.contextmanager
def noted_signals():
    """Within the block the first stop signal is noted, for the loop to stop after a step; a second Ctrl-C ends the process at once.

    Yields:
        StopRequest.
    """
    request = StopRequest()

    def note(number, _=None):
        request.received = request.received or number

    def note_and_answer(number):
        note(number)
        _answer(number, "stopping after this step")

    with _handled(note, at_once=note_and_answer):
        yield request


@contextlib.contextmanager
def raised_signals(message):
    """Within the block a stop signal raises `StoppedError` with this message; a second Ctrl-C ends the process at once."""

    def stop(number, _):
        raise StoppedError(message, number)

    with _handled(stop, at_once=lambda number: _answer(number, "stopping")):
        yield


def _answer(number, what):
    console.print(f"{signal.Signals(number).name}: {what}; Ctrl-C again ends the run at once")


@contextlib.contextmanager
def _handled(handler, at_once):
    """The stop signals handled by `handler` in the main thread, then as before.

    `at_once` is called with the first of them in another thread, even while the main one is busy. SIGHUP stays ignored where it is, as
    under nohup. Only the main thread may set handlers, so elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    arrivals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(arrivals, at_once), daemon=True)
    previous_wakeup = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, handler) for number in numbers}
    watcher.start()
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(previous_wakeup)
        wakeup.close()  # ends the thread
        watcher.join()
        arrivals.close()


def _watch(arrivals, at_once):
    """Read signal numbers, a byte each, until the other end is closed."""
    stopping = False
    while number := arrivals.recv(1):
        if number[0] not in STOP_SIGNALS:
            continue
        if stopping and number[0] == signal.SIGINT:
            with contextlib.suppress(OSError):  # the same Ctrl-C may have ended who reads it
                os.write(2, (SHOW_CURSOR if can_redraw() else b"") + b"Ended at once; what was saved before stays\n")
            os._exit(128 + signal.SIGINT)
        if not stopping:
            at_once(number[0])
        stopping = True
