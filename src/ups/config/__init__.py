"""Settings: frozen, typed, read from YAML with includes and overrides."""

from __future__ import annotations

from ups.config.load import dump_settings, load_settings, settings_hash
from ups.config.schema import Settings, StageName

__all__ = ["Settings", "StageName", "dump_settings", "load_settings", "settings_hash"]
