"""Models on the Hugging Face Hub: put there, and fetched from there. Nothing that is fetched is ever unpickled.

The package `huggingface_hub` is an extra. It finds the user's token itself, in the environment or where its own login
keeps it; here it is never read, passed or written.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from ups.errors import CheckpointError, UpsError, UsageError

SCHEME = "hf://"
MODEL_FILES = ("model/config.json", "model/weights.safetensors")
"""All of a repository that is fetched."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_TOKEN = re.compile(r"hf_\w{6,}|(?i:bearer)\s+\S+")


def require_repository(name: str) -> str:
    """The name of a repository, `OWNER/NAME`.

    Raises:
        UsageError: it is not of that form.
    """
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        raise UsageError(f"'{name}' is no repository of the Hugging Face Hub; write it as OWNER/NAME")
    return name


def upload(folder: Path, repository: str, *, private: bool, message: str, replaces: tuple[str, ...] = ()) -> str:
    """Uploads all of a folder, into a repository that is made if there is none; returns its address.

    Args:
        private: of a repository that is made; one that is there stays as it is.
        message: of the commit.
        replaces: files that the same commit takes from the repository where the folder has them not.

    Raises:
        UsageError: no such name can be.
        UpsError: the extra is missing, there is no access, or the network failed.
    """
    require_repository(repository)
    hub = _package()
    try:
        api = hub.HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message=message,
            repo_type="model",
            delete_patterns=list(replaces),
        )
    # The package and its network layer raise what they like: HTTP errors of their own, OSError, ValueError.
    except Exception as error:  # noqa: BLE001
        raise UpsError(
            f"{repository} cannot be written ({_told(error)}); log in with `hf auth login` or set HF_TOKEN, to a token "
            "that may write there, and look at the network"
        ) from None
    return str(address)


def download(address: str) -> Path:
    """The local folder of a model that `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` names; fetched once.

    Raises:
        UsageError: the address is not of that form.
        CheckpointError: there is no such model, no access, or the network failed.
        UpsError: the extra is missing.
    """
    name, at, revision = address.removeprefix(SCHEME).partition("@")
    if at and not re.fullmatch(r"[\w./-]+", revision):
        raise UsageError(f"'{revision}' is no revision; write {SCHEME}OWNER/NAME@ and a branch, tag or commit")
    require_repository(name)
    hub = _package()
    try:
        found = hub.snapshot_download(name, revision=revision or None, allow_patterns=list(MODEL_FILES))
    except Exception as error:  # noqa: BLE001 (as above)
        raise CheckpointError(
            f"{address} cannot be fetched ({_told(error)}); check the name and the network, and for a private "
            "one that you are logged in (`hf auth login`)"
        ) from None
    return Path(found)


def _package() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UpsError(
            "the package huggingface_hub is not installed; install it with `pip install -c constraints.txt 'ups[hub]'`"
        ) from error


def _told(error: Exception) -> str:
    """The first line of an error, without anything that looks like a token."""
    lines = str(error).strip().splitlines()
    return _TOKEN.sub("***", ": ".join([type(error).__name__, *lines[:1]]))
