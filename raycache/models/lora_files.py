"""Where the files of the settings' LoRAs are, and what speaks against one before it is loaded. Imports no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from raycache.lora_settings import LoraSettings
from raycache.models.folder import is_whole, safetensors_header
from raycache.settings import ModelSettings

__all__ = ["LoraFault", "fetch_loras", "lora_faults", "lora_file"]

#: Beginnings of names under which trainers keep weights of text encoders.
_TEXT = ("text_encoder", "text_model", "lora_te")


class LoraFault(ValueError):
    """A LoRA cannot be used; the message says why, and what to change."""


def lora_file(lora: LoraSettings, model: ModelSettings) -> Path:
    """The file of a LoRA on this node; of a hub id, where the hub's cache has it.

    Raises:
        LoraFault: it is not here, or it is not clear which file is meant.
    """
    given = Path(lora.path).expanduser()
    if given.is_file():
        return given
    if not given.is_dir() and _is_hub_id(lora.path):
        given = _fetch(lora, model, local_files_only=True)
    if not given.is_dir():
        raise LoraFault(f"{lora.path} is neither a file, nor a folder, nor a hub id (`owner/name`)")
    if lora.weight_name is not None:
        if not (given / lora.weight_name).is_file():
            raise LoraFault(f"{given} lacks {lora.weight_name}")
        return given / lora.weight_name
    files = sorted(given.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise LoraFault(f"{given} must hold one *.safetensors file, and has {names}; `weight_name` says which one")
    return files[0]


def lora_faults(model: ModelSettings) -> list[str]:
    """Why jobs with one of the settings' LoRAs would fail on this node; empty where nothing speaks against them.

    Those on the hub are downloaded later, and not looked at unless ``local_files_only`` is set.
    """
    if not model.loras:
        return []
    if importlib.util.find_spec("peft") is None:
        return ["model.loras needs the library peft: pip install 'raycache[lora]'"]
    faults = []
    for name, lora in model.loras.items():
        if _is_local(lora) or model.local_files_only:
            try:
                check_header(lora_file(lora, model), model.lora_bytes)
            except (LoraFault, OSError) as fault:
                faults.append(f"model.loras.{name}: {fault}")
    return faults


def fetch_loras(model: ModelSettings) -> None:
    """Download the LoRAs that are on the hub, so that no request waits for it.

    Raises:
        LoraFault: one cannot be had.
    """
    for name, lora in model.loras.items():
        if not _is_local(lora):
            try:
                _fetch(lora, model, local_files_only=model.local_files_only)
            except LoraFault as fault:
                raise LoraFault(f"model.loras.{name}: {fault}") from None


def check_header(file: Path, most_bytes: int) -> None:
    """What a file says of itself: whole, not too large, and nothing in it that would be left out.

    Raises:
        LoraFault: why it cannot be used.
    """
    if file.suffix != ".safetensors" or not is_whole(file):
        raise LoraFault(f"{file} is cut off or no safetensors file")
    if (size := file.stat().st_size) > most_bytes:
        raise LoraFault(f"{file} has {size} bytes, more than model.lora_bytes ({most_bytes}) lets be loaded")
    names = [name for name in safetensors_header(file) if name != "__metadata__"]
    if text := next((name for name in names if name.startswith(_TEXT)), None):
        raise LoraFault(
            f"{file} changes a text encoder, too ({text}): only LoRAs of the transformer alone can be switched from "
            "job to job. Take those weights out of it, or use a LoRA trained without them"
        )
    if other := next((name for name in names if "dora_scale" in name or "lokr_" in name or "hada_" in name), None):
        raise LoraFault(f"{file} is another kind of adapter ({other}): only LoRA proper can be used")


def _is_local(lora: LoraSettings) -> bool:
    return Path(lora.path).expanduser().exists() or not _is_hub_id(lora.path)


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _fetch(lora: LoraSettings, model: ModelSettings, *, local_files_only: bool) -> Path:
    """The folder of a LoRA of the hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                lora.path,
                revision=lora.revision,
                cache_dir=model.cache_dir,
                local_files_only=local_files_only,
                etag_timeout=10,
                allow_patterns=[lora.weight_name or "*.safetensors"],
            )
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        raise LoraFault(
            f"{lora.path!r} is no file or folder here, and is not to be had from the hub ({reason}). Set `path` to a "
            "local file, or HF_HOME (model.cache_dir) to a cache that has it"
        ) from None
