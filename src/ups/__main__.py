"""`python -m ups`, which is how torchrun starts the command line; `main` is what the command `ups` should call."""

from __future__ import annotations

import signal

import ups.timing  # noqa: F401 (its clock starts with the process)


def main() -> None:
    """Run the command line; Ctrl-C before it is imported ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ups.cli import main as run

    run()


if __name__ == "__main__":
    main()
