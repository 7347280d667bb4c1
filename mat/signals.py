"""How a run reacts when it is asked to stop: SIGINT (Ctrl-C) and SIGTERM."""

import contextlib
import signal
import threading

from mat.errors import StoppedError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The signal that asked to stop, 0 before."""

    received = 0


@contextlib.contextmanager
def noted_signals():
    """Within the block the first stop signal is noted, for the loop to stop after a step; a second SIGINT interrupts at once.

    Yields:
        StopRequest.
    """
    request = StopRequest()

    def note(number, _):
        request.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled(note):
        yield request


@contextlib.contextmanager
def raised_signals(message):
    """Within the block a stop signal raises `StoppedError` with this message at once."""

    def stop(number, _):
        raise StoppedError(message, number)

    with _handled(stop):
        yield


@contextlib.contextmanager
def _handled(handler):
    """The stop signals handled by `handler`, then as before; only the main thread may set handlers, so elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
