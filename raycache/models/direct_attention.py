"""FLUX's attention without reading its processor's signature in every call.

diffusers does that to leave out arguments that the processor does not take. Without such arguments it changes nothing,
and costs a small model on a CPU some percent of its time (docs/performance.md). Compiled blocks do it only while they
are compiled.
"""

from __future__ import annotations

from functools import partial
from typing import Any

__all__ = ["attend_directly"]


def attend_directly(denoiser: Any) -> None:
    """Have the attention of FLUX's blocks call its processor at once; other models' attention stays as it is."""
    for module in denoiser.modules():
        if type(module).__name__ == "FluxAttention":
            vars(module)["forward"] = partial(_forward, module)  # can be pickled, which a bound method cannot


def _forward(
    self: Any,
    hidden_states: Any,
    encoder_hidden_states: Any = None,
    attention_mask: Any = None,
    image_rotary_emb: Any = None,
    **kwargs: Any,
) -> Any:
    """As diffusers' own, which is left to look at any other arguments."""
    inputs = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
    return type(self).forward(self, *inputs, **kwargs) if kwargs else self.processor(self, *inputs)
