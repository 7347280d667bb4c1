"""Stop signals: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is gone).

Python runs a signal's handler once the operation in hand returns, and a compiled step may take a minute. So another thread reads what
arrives: it answers at once, and a second Ctrl-C ends the process of a command without waiting. Called from Python, as in a notebook, the
process is the user's: the second Ctrl-C raises `KeyboardInterrupt` once the operation in hand returns.
"""

import contextlib
import contextvars
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mat.cli.console import console
from mat.cli.errors import StoppedError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = "\x1b[?25h"  # a live progress line hides it

in_command = contextvars.ContextVar("in_command", default=False)  # whether the process is a command's, which may end it


class StopRequest:
    """Whether to stop: `received` is the number of the signal that asked for it, 0 before."""

    received = 0


@contextlib.contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Within the block the first stop signal is noted in the yielded request, for the loop to stop after a step."""
    request = StopRequest()

    def note(number: int, _: Any) -> None:
        if request.received and number == signal.SIGINT and not in_command.get():
            raise KeyboardInterrupt
        request.received = request.received or number

    with _handled(note, "stopping after this step"):
        yield request


@contextlib.contextmanager
def raised_signals(message: str) -> Iterator[None]:
    """Within the block a stop signal raises `StoppedError` with this message."""

    def stop(number: int, _: Any) -> None:
        raise StoppedError(message, number)

    with _handled(stop, "stopping"):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], answer: str) -> Iterator[None]:
    """The stop signals handled and answered, then as before; SIGHUP stays ignored where it is, as under nohup."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    arrivals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    arrivals.settimeout(None)  # the process may have a default for sockets
    watcher = threading.Thread(target=_watch, args=(arrivals, answer, in_command.get()), daemon=True)
    watcher.start()
    previous_wakeup = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    handled = [each for each in _STOP_SIGNALS if (each, signal.getsignal(each)) != (signal.SIGHUP, signal.SIG_IGN)]
    previous = {each: signal.signal(each, handler) for each in handled}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(previous_wakeup)
        wakeup.close()  # ends the thread
        watcher.join()
        arrivals.close()


def _watch(arrivals: socket.socket, answer: str, may_exit: bool) -> None:
    """Read signal numbers, a byte each, until the other end is closed."""
    stopping = False
    while number := arrivals.recv(1):
        if stopping and number[0] == signal.SIGINT and may_exit:
            with contextlib.suppress(OSError):  # the same Ctrl-C may have ended who reads it
                os.write(2, f"{_SHOW_CURSOR * console.is_interactive}Ended at once; what was saved before stays\n".encode())
            os._exit(128 + signal.SIGINT)
        if not stopping and number[0] in _STOP_SIGNALS:
            stopping = True
            again = "; Ctrl-C again ends the run at once" if may_exit else ""
            console.print(f"{signal.Signals(number[0]).name}: {answer}{again}")
