"""Errors that a user can cause and mend. The command line shows their message alone and exits with their code."""

from __future__ import annotations


class UpsError(Exception):
    """Something is wrong that the user can mend; the message names it and says what to do."""

    exit_code: int = 1


class UsageError(UpsError):
    """A command was called with arguments that make no sense together."""

    exit_code = 2


class SettingsError(UpsError):
    """A settings file or an override is wrong."""

    exit_code = 2


class DataError(UpsError):
    """A data file is missing, damaged, of another layout, or not fit for training."""


class CheckpointError(UpsError):
    """A checkpoint is missing, damaged, or belongs to other settings."""
