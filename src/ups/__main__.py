"""`python -m ups`, which is how torchrun starts the command line."""

from __future__ import annotations

from ups.cli import main

if __name__ == "__main__":
    main()
