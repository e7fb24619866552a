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

#: What is split under these names sets how long a stream is.
_STREAMS = {
    "hidden_states": "latents",
    "x": "latents",
    "encoder_hidden_states": "text",
    "image_cond_hidden_states": "pictures",
}


def split_by_plan(transformer: torch.nn.Module, context: Any, plan: Mapping[str, Any]) -> None:
    """What diffusers' ``apply_context_parallel`` does, with the hooks below.

    Args:
        context: a context-parallel config; ``context.split`` is what its attention asks for sizes.
        plan: by the name of a module, or of several with a ``*``, what is split before it or put together behind it.
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
    """diffusers' hook, for any number of tokens; it notes how many there are of each stream."""

    def __init__(self, metadata: Any, parallel_config: Any) -> None:
        super().__init__(metadata, parallel_config)
        self._split: TokenSplit = parallel_config.split

    def initialize_hook(self, module: Any) -> Any:
        super().initialize_hook(module)
        hook: Any = self  # diffusers types it as None, which it is at first
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
            return x  # Wan's timesteps: one for an image, which is whole, or one for a token
        if x.shape[cp_input.split_dim] == 1:
            return x  # one for all tokens; a stream of one would have been refused
        return self._split.own(x, cp_input.split_dim)


class _Arguments(ModuleForwardMetadata):
    """diffusers' way to find an argument by its name; one with a default need not be given."""

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
        steps: Any = self.metadata  # a list, which diffusers' own hook is typed as a dict for
        whole = [
            part
            if step is None
            else gather_tokens(split, part, step.gather_dim, split.sizes(part.shape[step.gather_dim]))
            for part, step in zip(parts, steps, strict=True)
        ]
        return whole[0] if isinstance(output, torch.Tensor) else tuple(whole)


class JointMask(ModelHook):
    """Cuts a module's mask over image and text, in its last dimension, into the part that belongs to this rank.

    Attention gathers those parts as it gathers keys: the tokens of rank 0, of one stream and of the other, then those
    of rank 1. It must run inside the hook that splits the text, which notes its length.

    Args:
        text_first: the text is what the sequence starts with.
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
        forward: Any = self.fn_ref.original_forward  # looked up at each call: others may put a hook inside
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
        """[batch, heads, own tokens, channels] each, as torch's own."""
        from diffusers.models import attention_dispatch

        states = (part.transpose(1, 2) for part in (query, key, value))
        ops = attention_dispatch._native_attention_forward_op, attention_dispatch._native_attention_backward_op
        options = (attn_mask, dropout_p, is_causal, scale, enable_gqa, False)
        out: torch.Tensor = FusedUlysses.apply(*states, *options, *ops, self._config)
        return out.transpose(1, 2)
