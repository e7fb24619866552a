"""Hooks that split the tokens of a transformer's modules over the ranks, and gather them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.context_parallel import (
    ContextParallelGatherHook,
    ContextParallelSplitHook,
    ModuleForwardMetadata,
    _get_submodule_by_name,
)
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cache_core.signatures import parameters_of
from raycache.worker.fused_ulysses import FusedUlysses
from raycache.worker.uneven import TokenSplit, gather_tokens

__all__ = ["JointMask", "SplitAttention", "split_by_plan"]

#: Arguments of these names define the length of a stream when they are split.
_STREAMS = {
    "hidden_states": "latents",
    "x": "latents",
    "encoder_hidden_states": "text",
    "image_cond_hidden_states": "images",
}


def split_by_plan(transformer: torch.nn.Module, context: Any, plan: Mapping[str, Any]) -> None:
    """Like diffusers' ``apply_context_parallel``, with the hooks below.

    Args:
        context: a context-parallel config; its attention reads sizes from ``context.split``.
        plan: by module name or pattern with a ``*``, what is split before the module or gathered after it.
    """
    for name, steps in plan.items():
        found = _get_submodule_by_name(transformer, name)
        for module in found if isinstance(found, list) else [found]:
            hooks = HookRegistry.check_if_exists_or_initialize(module)
            if isinstance(steps, dict):
                hooks.register_hook(_Split(steps, context), f"cp_input---{name}")
            else:
                outputs: Any = steps if isinstance(steps, list) else [steps]
                hooks.register_hook(_Gather(outputs, context), f"cp_output---{name}")


class _Split(ContextParallelSplitHook):
    """diffusers' hook, for any number of tokens; records the length of each stream."""

    def __init__(self, metadata: Any, parallel_config: Any) -> None:
        super().__init__(metadata, parallel_config)
        self._split: TokenSplit = parallel_config.split

    def initialize_hook(self, module: Any) -> Any:
        super().initialize_hook(module)
        hook: Any = self  # typed as None by diffusers, its initial value
        hook.module_forward_metadata = _Arguments(_cls=hook.module_forward_metadata._cls)
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, stream in _STREAMS.items():
            step = self.metadata.get(name)
            if isinstance(step, ContextParallelInput) and not step.split_output:
                given, *_ = self.module_forward_metadata._get_parameter_from_args_kwargs(name, args, kwargs)
                if given is None:
                    self._split.forget(stream)
                else:
                    self._split.note(stream, given.shape[step.split_dim])
        split: tuple[tuple[Any, ...], dict[str, Any]] = super().pre_forward(module, *args, **kwargs)
        return split

    def _prepare_cp_input(self, x: torch.Tensor, cp_input: ContextParallelInput) -> torch.Tensor:
        if cp_input.expected_dims is not None and x.dim() != cp_input.expected_dims:
            return x  # Wan's timesteps: one per image, not split, or one per token
        if x.shape[cp_input.split_dim] == 1:
            return x  # one for all tokens; a stream of one token would have been refused
        return self._split.own(x, cp_input.split_dim)


class _Arguments(ModuleForwardMetadata):
    """diffusers' lookup of an argument by name; arguments with a default may be missing."""

    def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
        names = parameters_of(self._cls.forward)
        if identifier not in (kwargs or {}) and names.index(identifier) >= len(args):
            return None, False, None
        return super()._get_parameter_from_args_kwargs(identifier, args, kwargs)


class _Gather(ContextParallelGatherHook):
    """diffusers' hook, for parts of different lengths."""

    def post_forward(self, module: Any, output: Any) -> Any:
        context: Any = self.parallel_config
        split: TokenSplit = context.split
        if split.latents % split.ranks == 0:
            return super().post_forward(module, output)
        parts = [output] if isinstance(output, torch.Tensor) else list(output)
        steps: Any = self.metadata  # a list here; diffusers types it as a dict
        whole = [
            part
            if step is None
            else gather_tokens(split, part, step.gather_dim, split.sizes(part.shape[step.gather_dim]))
            for part, step in zip(parts, steps, strict=True)
        ]
        return whole[0] if isinstance(output, torch.Tensor) else tuple(whole)


class JointMask(ModelHook):
    """Reduces a module's mask over image and text, in its last dimension, to this rank's tokens.

    Attention gathers these parts as it gathers keys: the tokens of rank 0, both streams, then those of rank 1 and so
    on. It must run inside the hook that splits the text, which records its length.

    Args:
        text_first: the sequence starts with the text.
    """

    def __init__(self, split: TokenSplit, text_first: bool = False) -> None:
        super().__init__()
        self._split, self._text_first = split, text_first

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(parameters_of(type(module).forward), args, strict=False)) | kwargs
        mask: torch.Tensor | None = given.get("attention_mask")
        if mask is None:
            return args, kwargs
        first = self._split.text if self._text_first else mask.shape[-1] - self._split.text
        own = [self._split.own(part, -1) for part in mask.split([first, mask.shape[-1] - first], -1)]
        return (), given | {"attention_mask": torch.cat(own, -1)}


class SplitAttention(ModelHook):
    """Runs a module with attention over all ranks in place of torch's own."""

    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self._mode = _OverRanks(config)

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.fn_ref.original_forward  # looked up at each call: other hooks may be added inside
        with self._mode:
            return forward(*args, **kwargs)


class _OverRanks(TorchFunctionMode):
    def __init__(self, config: ParallelConfig) -> None:
        super().__init__()
        self._config = config

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """All are [batch, heads, own tokens, channels], as for torch's function."""
        from diffusers.models import attention_dispatch

        states = (part.transpose(1, 2) for part in (query, key, value))
        ops = attention_dispatch._native_attention_forward_op, attention_dispatch._native_attention_backward_op
        options = (attn_mask, dropout_p, is_causal, scale, enable_gqa, False)
        out: torch.Tensor = FusedUlysses.apply(*states, *options, *ops, self._config)
        return out.transpose(1, 2)
