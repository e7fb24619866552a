"""Finds the model that the settings name: a folder, the hub, or one of the models of this project.

Imports no torch, so that the builder can check the model before deploying.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from raycache.models.registry import own_model
from raycache.protocol.capabilities import ModelKind, ModelSource
from raycache.settings import ModelSettings

__all__ = ["ModelNotFound", "cache_folder", "model_outline", "prepare_model"]

#: Files of a hub model that describe its structure: a few kilobytes.
_OUTLINE = [
    "model_index.json",
    "modular_model_index.json",
    "*/config.json",
    "*/tokenizer_config.json",
    "*/scheduler_config.json",
]


class ModelNotFound(RuntimeError):
    """The model was not found; the message says which, where it was searched, and what to set."""


def prepare_model(settings: ModelSettings) -> ModelSource:
    """Turn ``settings.path`` into a local folder: built (``noise``), bundled (``demo``), existing or downloaded.

    Call it once per gang before the ranks load, so that one process builds or downloads and not all of them.

    Raises:
        ModelNotFound: a path that is not a model folder, a hub id that is neither cached nor downloadable, or the
            bundled model is missing.
    """
    if (own := own_model(settings.path)) is not None:
        try:
            folder = own.folder(cache_folder(settings))
        except FileNotFoundError as error:
            raise ModelNotFound(str(error)) from None
        return str(folder), _kind(settings.path)
    if (given := _folder(settings)) is not None:
        return str(given), _kind_of_folder(given)
    # FLUX repositories contain the weights twice: diffusers does not read the single-file copies.
    return _fetch(settings, allow_patterns=["*.json", "*/*"]), "hub"


def model_outline(settings: ModelSettings, scratch: Path) -> Path | None:
    """A folder with at least the configuration of the model; None for one that is not built yet.

    Args:
        settings: which model.
        scratch: an empty folder for files of a hub model that are not cached. Half a model in the cache would pass as a
            complete one when the hub cannot be reached.

    Raises:
        ModelNotFound: as :func:`prepare_model`.
    """
    if (own := own_model(settings.path)) is not None:
        try:
            return own.outline(cache_folder(settings))
        except FileNotFoundError as error:
            raise ModelNotFound(str(error)) from None
    if (folder := _folder(settings)) is not None:
        return folder
    cached = settings.model_copy(update={"local_files_only": True})
    try:
        folder = Path(_fetch(cached, allow_patterns=_OUTLINE))
        if _has_index(folder):
            return folder
    except ModelNotFound:
        if settings.local_files_only:
            raise
    return Path(_fetch(settings, allow_patterns=_OUTLINE, local_dir=scratch))


def _folder(settings: ModelSettings) -> Path | None:
    """The folder that the path points to; None for a hub id."""
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if not _has_index(folder):
            raise ModelNotFound(f"{folder} is not a diffusers model: it has no model_index.json")
        return folder
    if settings.path.startswith((".", "/", "~")) or settings.path.count("/") != 1:
        raise ModelNotFound(
            f"model.path {settings.path!r} is neither an existing folder nor a hub id (`owner/name`), `demo` or `noise`"
        )
    return None


def _has_index(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", "modular_model_index.json"))


def _fetch(settings: ModelSettings, *, allow_patterns: list[str], local_dir: Path | None = None) -> str:
    """The folder of a hub model, downloaded or found in the cache; one clear error instead of a stack of retries."""
    from huggingface_hub import constants, snapshot_download

    try:
        # Falls back to the cache if the hub does not answer.
        return snapshot_download(
            settings.path,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            local_files_only=settings.local_files_only,
            etag_timeout=10,
            allow_patterns=allow_patterns,
            local_dir=local_dir,
        )
    except Exception as error:
        reason = error
    cache = settings.cache_dir or constants.HF_HUB_CACHE
    token = "is set" if os.environ.get("HF_TOKEN") else "is not set"
    raise ModelNotFound(
        f"model {settings.path!r} is not in the cache {cache} and cannot be fetched ({type(reason).__name__}: "
        f"{str(reason).splitlines()[0][:200]}). Set model.path to a local folder, or HF_HOME (model.cache_dir) to a "
        f"cache that has it, or HF_TOKEN (it {token}; gated models need it and an accepted licence), and check that "
        "every node can reach the hub"
    ) from None


def cache_folder(settings: ModelSettings) -> Path:
    """Where this project keeps what it builds for a model."""
    return settings.cache_dir or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raycache"


def _kind_of_folder(folder: Path) -> ModelKind:
    marker = folder / "raycache_model.json"
    try:
        return _kind(json.loads(marker.read_text())["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        return "folder"


def _kind(told: object) -> ModelKind:
    """The kind of a model of this project, by its name in settings or a marker file; any other is a folder."""
    return "noise" if told == "noise" else "demo" if told == "demo" else "folder"
