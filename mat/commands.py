"""How every command line ends: one message on standard error and a documented exit status."""

import contextlib
import sys

from mat.errors import NonFiniteLossError, StoppedError, UserError


def run_command(program, command, *arguments, interrupted="Interrupted"):
    """Run a command and report how it ended, in place of a traceback where it is not a bug.

    Args:
        program: the name before the message, such as `mat-train`.
        command: a function, called with `arguments`.
        interrupted: the message after a Ctrl-C that the command did not handle.

    Returns:
        The exit status: 0 done, 2 the user's input is at fault, 3 a non-finite loss, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    try:
        command(*arguments)
    except UserError as error:
        return _report(program, error, 2)
    except NonFiniteLossError as error:
        return _report(program, error, 3)
    except StoppedError as stop:
        return _report(program, stop, stop.exit_status)
    except KeyboardInterrupt:
        return _report(program, interrupted, 130)
    return 0


def _report(program, message, status):
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program}: {message}", file=sys.stderr)
    return status
