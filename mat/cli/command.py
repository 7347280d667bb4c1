"""How every command line begins and ends: in a prepared process, with one message on standard error and a documented exit status."""

import contextlib
import sys

from mat.cli.environment import check_keras_backend, prepare_process
from mat.cli.errors import NonFiniteLossError, StoppedError, UserError
from mat.cli.text import single_line


def run_command(program, parse_arguments, command, arguments=None, *, interrupted="Interrupted"):
    """Run a command and report how it ended, in place of a traceback where it is not a bug.

    Args:
        program: the name before the message, such as `mat-train`.
        parse_arguments: a function from the list of arguments to what the command takes; `--help` and wrong usage end the process.
        command: the function to call; may return an exit status of its own.
        arguments: list of strings; None for those of the process.
        interrupted: the message after a Ctrl-C that the command did not handle.

    Returns:
        The exit status: 0 done, 2 the user's input is at fault, 3 a non-finite loss, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    prepare_process()
    try:
        parsed = parse_arguments(arguments)
        check_keras_backend()
        return command(parsed) or 0
    except UserError as error:
        return _report(program, error, 2)
    except UnicodeEncodeError as error:
        what = f"{single_line(ascii(error.object))}: has characters that {error.encoding} does not have"
        return _report(program, f"{what}. Set PYTHONUTF8=1, or use a name without them", 2)
    except NonFiniteLossError as error:
        return _report(program, error, 3)
    except StoppedError as stop:
        return _report(program, stop, stop.exit_status)
    except KeyboardInterrupt:
        return _report(program, interrupted, 130)


def _report(program, message, status):
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program}: {message}", file=sys.stderr)
    return status
