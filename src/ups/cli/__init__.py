"""The command line: parses, calls, prints. Nothing else in the package prints.

Commands import what they call when they are called, so that help is instant.
"""

from ups.cli import data, runs
from ups.cli.entry import main
from ups.cli.shared import app

__all__ = ["app", "data", "main", "runs"]
