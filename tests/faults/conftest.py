"""Set-up of the fault tests."""

from __future__ import annotations
