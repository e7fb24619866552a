"""The host memory that reading a model's weights costs each rank.

diffusers and transformers map safetensors files into memory and leave the tensors there when their type stays as it
is: all ranks of a node share the pages that the kernel read once, and ``pipe.to(device)`` copies from them straight to
the GPU. Tensors of another type are cast first, in memory of each rank's own.
"""

from __future__ import annotations

from pathlib import Path

from raycache.models.folder import parts_named, safetensors_header

__all__ = ["cast_bytes", "told_of_casts"]

#: safetensors' names of what a pipeline's dtype applies to, with their bytes; FP8 and integers are left as they are.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
#: Less than this is not worth a line in the log.
_WORTH_TELLING = 1 << 30


def cast_bytes(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes that each part of the model in ``folder`` takes in a rank's own memory while it is loaded.

    Args:
        folder: a model in diffusers' layout.
        dtype: of the settings, such as ``bfloat16``.

    Returns:
        By part, such as ``transformer``, the bytes of its floating-point weights that are stored in another type, as
        large as they are in ``dtype``; parts that are mapped whole are left out.
    """
    wanted = _NAMES[dtype]
    found: dict[str, int] = {}
    for part in parts_named(folder):
        # What has a point in its name's stem is a variant (model.fp16.safetensors), which is not loaded.
        for file in (file for file in (folder / part).glob("*.safetensors") if "." not in file.stem):
            tensors = [entry for name, entry in safetensors_header(file).items() if name != "__metadata__"]
            for tensor in tensors:
                stored, (begin, end) = tensor["dtype"], tensor["data_offsets"]
                if stored in _FLOATS and stored != wanted:
                    found[part] = found.get(part, 0) + (end - begin) * _FLOATS[wanted] // _FLOATS[stored]
    return found


def told_of_casts(folder: Path, dtype: str, ranks: int) -> str | None:
    """What to say of a model whose weights every rank copies; None where that is too little to matter."""
    parts = cast_bytes(folder, dtype)
    total = sum(parts.values())
    if total * ranks < _WORTH_TELLING:
        return None
    listed = ", ".join(f"{part} {size / 2**30:.1f} GiB" for part, size in parts.items())
    return (
        f"{folder} is not stored in {dtype}: each of {ranks} ranks casts its own copy in host memory while it loads "
        f"({listed}). Weights stored in {dtype} are mapped and shared: save the pipeline once with "
        f"`save_pretrained` after loading it in {dtype}, or set model.dtype to what is stored"
    )
