"""The ways a run can end that are not a bug; `mat.train` turns each into its exit status."""


class UserError(Exception):
    """The user's input is at fault: one message that names file, key and value and says what to do. Exit status 2."""


class NonFiniteLossError(Exception):
    """The training loss or a gradient became NaN or infinite. Exit status 3."""


class StoppedError(BaseException):
    """A signal asked the run to stop, and it stopped. Exit status 128 + the signal's number.

    Not an `Exception`, as `KeyboardInterrupt` is none: what handles errors must not swallow it.
    """

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_status = 128 + signal_number
