"""What every command does at its start and end: a prepared process, one message on standard error and a documented exit status."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from mat.cli.environment import check_keras_backend, prepare_process
from mat.cli.errors import NonFiniteLossError, StoppedError, UserError
from mat.cli.text import single_line


def run_command(
    program: str,
    parse_arguments: Callable[..., Any],
    command: Callable[..., Any],
    arguments: Any = None,
    *,
    interrupted: str = "Interrupted",
) -> int:
    """Run a command and report how it ended, in place of a traceback where it is not a bug.

    Args:
        program: the name before the message, such as `mat-train`.
        parse_arguments: makes of `arguments` (None: those of the process) what `command` takes, or ends the process as for `--help`.
        command: may return an exit status of its own.
        interrupted: the message after a Ctrl-C that the command did not handle.

    Returns:
        The exit status: 0 done, 2 the user's input is at fault, 3 a non-finite loss, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    prepare_process()
    try:
        parsed = parse_arguments(arguments)
        check_keras_backend()
        return command(parsed) or 0
    except (UserError, NonFiniteLossError, StoppedError) as error:
        message, status = str(error), error.exit_status
    except UnicodeEncodeError as error:
        text, status = single_line(ascii(error.object)), 2
        message = f"{text}: has characters that {error.encoding} does not have. Set PYTHONUTF8=1, or use a name without them"
    except KeyboardInterrupt:
        message, status = interrupted, 130
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program}: {message}", file=sys.stderr)
    return status
