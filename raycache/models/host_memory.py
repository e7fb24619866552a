"""The host memory that each rank needs to read a model's weights.

diffusers and transformers map safetensors files into memory and keep the tensors there if their dtype does not change:
all ranks of a node share the pages that the kernel read once, and ``pipe.to(device)`` copies from them directly to the
GPU. Tensors of another dtype are cast first, in each rank's own memory.
"""

from __future__ import annotations

from pathlib import Path

from raycache.models.folder import parts_named, safetensors_header

__all__ = ["cast_bytes", "told_of_casts"]

#: safetensors' names of dtypes that a pipeline's dtype replaces, with their bytes; FP8 and integers are kept.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
#: Less than this is not logged.
_WORTH_TELLING = 1 << 30


def cast_bytes(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes that each part of the model in ``folder`` takes in a rank's own memory while it is loaded.

    Args:
        folder: a model in diffusers' layout.
        dtype: the settings' dtype, such as ``bfloat16``.

    Returns:
        By part, such as ``transformer``, the size in ``dtype`` of its floating-point weights that are stored in another
        dtype; without parts that need no cast.
    """
    wanted = _NAMES[dtype]
    found: dict[str, int] = {}
    for part in parts_named(folder):
        # A file with a dot in its stem is a variant (model.fp16.safetensors), which is not loaded.
        for file in (file for file in (folder / part).glob("*.safetensors") if "." not in file.stem):
            tensors = [entry for name, entry in safetensors_header(file).items() if name != "__metadata__"]
            for tensor in tensors:
                stored, (begin, end) = tensor["dtype"], tensor["data_offsets"]
                if stored in _FLOATS and stored != wanted:
                    found[part] = found.get(part, 0) + (end - begin) * _FLOATS[wanted] // _FLOATS[stored]
    return found


def told_of_casts(folder: Path, dtype: str, ranks: int) -> str | None:
    """A message about weights that every rank has to copy; None if there are too few to matter."""
    parts = cast_bytes(folder, dtype)
    total = sum(parts.values())
    if total * ranks < _WORTH_TELLING:
        return None
    listed = ", ".join(f"{part} {size / 2**30:.1f} GiB" for part, size in parts.items())
    return (
        f"{folder} is not stored in {dtype}: each of {ranks} ranks casts its own copy in host memory while it loads "
        f"({listed}). Weights stored in {dtype} are mapped and shared: save the pipeline once with "
        f"`save_pretrained` after loading it in {dtype}, or set model.dtype to the stored dtype"
    )
