"""Finds the files of the settings' LoRAs, and checks them before they are loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from raycache.lora_settings import LoraSettings
from raycache.models.folder import is_whole, safetensors_header
from raycache.settings import ModelSettings

__all__ = ["LoraFault", "fetch_loras", "lora_faults", "lora_files"]

#: Prefixes of the names that trainers give weights of text encoders.
_TEXT = ("text_encoder", "text_model", "lora_te")


class LoraFault(ValueError):
    """A LoRA cannot be used; the message says why, and what to change."""


@dataclass(frozen=True)
class _Named:
    """The settings' path for one transformer, and the setting for the file's name."""

    path: str
    weight_name: str | None
    revision: str | None
    field: str

    @property
    def is_local(self) -> bool:
        return Path(self.path).expanduser().exists() or not _is_hub_id(self.path)


def lora_files(lora: LoraSettings, model: ModelSettings) -> dict[str, Path]:
    """The files of a LoRA on this node, by transformer; for a hub id, from the hub's cache.

    Raises:
        LoraFault: one is missing, or it is not clear which file is meant.
    """
    return {part: _file(named, model) for part, named in _named(lora).items()}


def _named(lora: LoraSettings) -> dict[str, _Named]:
    found = {"transformer": _Named(lora.path, lora.weight_name, lora.revision, "weight_name")}
    if lora.path_2 is not None:
        found["transformer_2"] = _Named(lora.path_2, lora.weight_name_2, lora.revision, "weight_name_2")
    return found


def _file(named: _Named, model: ModelSettings) -> Path:
    given = Path(named.path).expanduser()
    if given.is_file():
        return given
    if not given.is_dir() and _is_hub_id(named.path):
        given = _fetch(named, model, local_files_only=True)
    if not given.is_dir():
        raise LoraFault(f"{named.path} is neither a file, nor a folder, nor a hub id (`owner/name`)")
    if named.weight_name is not None:
        if not (given / named.weight_name).is_file():
            raise LoraFault(f"{given} has no {named.weight_name}")
        return given / named.weight_name
    files = sorted(given.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise LoraFault(f"{given} must have one *.safetensors file, but has {names}; set `{named.field}` to one")
    return files[0]


def lora_faults(model: ModelSettings) -> list[str]:
    """Why jobs with one of the settings' LoRAs would fail on this node; empty if no reason is known.

    Those on the hub are downloaded later, and only checked if ``local_files_only`` is set.
    """
    if not model.loras:
        return []
    if importlib.util.find_spec("peft") is None:
        return ["model.loras needs the library peft: pip install 'raycache[lora]'"]
    faults = []
    for name, lora in model.loras.items():
        for named in _named(lora).values():
            if named.is_local or model.local_files_only:
                try:
                    check_header(_file(named, model), model.lora_bytes)
                except (LoraFault, OSError) as fault:
                    faults.append(f"model.loras.{name}: {fault}")
    return faults


def fetch_loras(model: ModelSettings) -> None:
    """Download the LoRAs from the hub, so that no request waits for that.

    Raises:
        LoraFault: one cannot be downloaded.
    """
    for name, lora in model.loras.items():
        for named in _named(lora).values():
            if not named.is_local:
                try:
                    _fetch(named, model, local_files_only=model.local_files_only)
                except LoraFault as fault:
                    raise LoraFault(f"model.loras.{name}: {fault}") from None


def check_header(file: Path, most_bytes: int) -> None:
    """Check a file's header: complete, not too large, and only parts that can be used.

    Raises:
        LoraFault: why it cannot be used.
    """
    if file.suffix != ".safetensors" or not is_whole(file):
        raise LoraFault(f"{file} is truncated, or not a safetensors file")
    if (size := file.stat().st_size) > most_bytes:
        raise LoraFault(f"{file} has {size} bytes, more than model.lora_bytes ({most_bytes}) allows")
    names = [name for name in safetensors_header(file) if name != "__metadata__"]
    if text := next((name for name in names if name.startswith(_TEXT)), None):
        raise LoraFault(
            f"{file} also changes a text encoder ({text}): only LoRAs of the transformer alone can be switched from "
            "job to job. Remove these weights, or use a LoRA trained without them"
        )
    if other := next((name for name in names if "dora_scale" in name or "lokr_" in name or "hada_" in name), None):
        raise LoraFault(f"{file} is another kind of adapter ({other}): only plain LoRA is supported")


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _fetch(named: _Named, model: ModelSettings, *, local_files_only: bool) -> Path:
    """The folder of a LoRA from the hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                named.path,
                revision=named.revision,
                cache_dir=model.cache_dir,
                local_files_only=local_files_only,
                etag_timeout=10,
                allow_patterns=[named.weight_name or "*.safetensors"],
            )
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        raise LoraFault(
            f"{named.path!r} is no local file or folder, and cannot be fetched from the hub ({reason}). Set `path` to "
            "a local file, or HF_HOME (model.cache_dir) to a cache that has it"
        ) from None
