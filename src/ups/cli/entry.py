"""From the shell to a command and back: errors, signals and exit codes."""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from ups.cli.shared import app
from ups.errors import UpsError, UsageError

CONTINUING = ("run", "train")
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path that cannot even be looked at."""


def main() -> None:
    """Run the command line. An error that the user can mend is one message; its code is the exit code.

    Whatever surfaces after SIGINT or SIGTERM is its consequence: an import that is cut short can raise anything.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app(prog_name="ups")
    except UpsError as error:
        stopped = error.exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        if received and not stopped:
            _stopped(received[0])
        typer.echo(f"{error}" if stopped else f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT and not received:
            received.append(signal.SIGINT)
        if received and end.code:
            _stopped(received[0])
        raise
    except OSError as error:
        if received:
            _stopped(received[0])
        if error.errno not in UNREACHABLE or error.filename is None:
            raise
        typer.echo(f"error: {error.filename}: {error.strerror}; check the path and its permissions", err=True)
        sys.exit(UsageError.exit_code)
    except BaseException:
        if received:
            _stopped(received[0])
        raise


def _stopped(number: int) -> NoReturn:
    """Say that a signal ended the command, and exit as a shell expects."""
    for further in (signal.SIGINT, signal.SIGTERM):
        signal.signal(further, signal.SIG_IGN)
    continues = sys.argv[1:2] and sys.argv[1] in CONTINUING
    typer.echo("interrupted, run again to continue" if continues else "interrupted", err=True)
    sys.exit(128 + number)
