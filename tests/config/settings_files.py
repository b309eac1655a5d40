"""Settings files in a folder of a test, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ups.config import load_settings
from ups.errors import SettingsError

MINIMAL = "task: burgers1d\ndata: {files: a.h5}\n"


def write(folder: Path, **files: str) -> Path:
    """Write files by name into a folder and return the one named `top`."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "top.yaml"


def problems_of(folder: Path, text: str, *overrides: str) -> str:
    """What is said about a file with these contents."""
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, top=text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)
