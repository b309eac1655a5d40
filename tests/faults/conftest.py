"""Set-up of the fault tests."""

from __future__ import annotations

from typing import runtime_checkable

from ups.runtime import Progress

runtime_checkable(Progress)  # beartype checks it at run time
