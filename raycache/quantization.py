"""The kinds of quantization, and what each needs of a GPU.

Weights alone (``int8_weight``, ``fp8_weight``) halve the memory of quantized layers, which compute in bfloat16;
with activations (``int8``, ``fp8``) the multiplication itself has 8 bits, which saves time when compiled.
Scales are per row: of a weight, per output; of activations, per token, so that a rank's shard of the tokens is
quantized as one rank alone would.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["QUANTIZATIONS", "Quantization", "card_misfit", "dtype_misfit"]

Quantization = Literal["none", "int8_weight", "int8", "fp8_weight", "fp8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

#: Lowest CUDA compute capability with FP8 multiplication.
FP8_CAPABILITY = (8, 9)
_FITS = (
    f"it needs CUDA compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or more (L4, L20, L40S, H100); "
    "int8_weight, int8 and fp8_weight do not"
)
#: Cards with a lower one, by Ray's names up to the first hyphen.
_WITHOUT_FP8 = frozenset({"K80", "P4", "P100", "V100", "T4", "A2", "A10", "A10G", "A16", "A30", "A40", "A100"})


def dtype_misfit(quantization: Quantization, dtype: str) -> str | None:
    """Why a model of ``dtype`` cannot be quantized like this, and what would be right; None if it can."""
    if quantization == "none" or dtype == "bfloat16":
        return None
    return (
        f"model.quantization={quantization} needs model.dtype: bfloat16, not {dtype}: activations, and what is not "
        "quantized, are in bfloat16"
    )


def card_misfit(
    quantization: Quantization, device: str, accelerator: str | None, capability: tuple[int, int] | None = None
) -> str | None:
    """Why ranks on this device cannot use it, and what would be right; None if no reason is known.

    Args:
        quantization: the requested one.
        device: ``cuda`` or ``cpu``.
        accelerator: Ray's name of the card; None: any.
        capability: the card's CUDA compute capability, if known.
    """
    if quantization != "fp8":
        return None
    if device != "cuda":
        return f"model.quantization=fp8 needs parallel.device: cuda, not {device}; {_FITS}"
    old = (accelerator or "").partition("-")[0] in _WITHOUT_FP8 if capability is None else capability < FP8_CAPABILITY
    return f"model.quantization=fp8: {accelerator or 'the card'} does not multiply in FP8; {_FITS}" if old else None
