"""The ways a run can end that are not a bug, with the exit status of each."""


class UserError(Exception):
    """The user's input is at fault: one message that names file, key and value and says what to do."""

    exit_status = 2


class NonFiniteLossError(Exception):
    """The training loss or a gradient became NaN or infinite."""

    exit_status = 3


class LostWorkerError(Exception):
    """Another worker of a run on several machines is gone; all go on from the last checkpoint with --resume."""

    exit_status = 4


class StoppedError(BaseException):
    """A signal asked the run to stop, and it stopped. No `Exception`, like `KeyboardInterrupt`: what handles errors must not swallow it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number
