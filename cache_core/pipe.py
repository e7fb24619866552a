"""Plug-and-play: the cache on a diffusers pipeline, without Ray, as the published README shows it.

    from cache_core import CacheType, apply_cache_on_pipe
    apply_cache_on_pipe(pipe, **CacheType.default_options(CacheType.DBCache))

Every call of the pipeline opens its own session, also after a call that raised. Only this pipeline object changes, not
other pipelines of the same class or transformer.
"""

from __future__ import annotations

import difflib
import functools
from contextlib import ExitStack
from typing import Any

import torch.distributed as dist
from diffusers import DiffusionPipeline
from torch import nn

from cache_core.attaching import let_go
from cache_core.cache_type import CacheType
from cache_core.callers import AlsoPipeline
from cache_core.compiled import compile_context, unwrap_compiled
from cache_core.hooks import Attachment, attachment_of
from cache_core.opening import session_of
from cache_core.options import CacheOptions, check_block_count, option_names, parse_options
from cache_core.other_caches import check_no_other_cache
from cache_core.parallel_group import find_group
from cache_core.pipeline_steps import steps_of
from cache_core.published import translated
from cache_core.report import CacheReport
from cache_core.summary import format_summary

__all__ = ["apply_cache_on_pipe", "cache_reports", "cache_summary", "remove_cache"]


class _CachedPipeline(AlsoPipeline):
    """Mixin for the class of one pipeline object; holds what ``apply_cache_on_pipe`` set up."""

    _raycache: _Setup

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle would look up this class by its module and name, and find a different one.
        raise TypeError(
            f"a {type(self).__name__} with a cache cannot be pickled or copied: call remove_cache(pipe) first, and "
            "apply_cache_on_pipe on the copy"
        )


class _Setup:
    options: CacheOptions
    group: dist.ProcessGroup | None

    def __init__(self, original: type) -> None:
        self.original = original
        self.attached: list[Attachment] = []
        self.reports: dict[str, CacheReport] = {}


def apply_cache_on_pipe(
    pipe: DiffusionPipeline,
    cache_type: CacheType | str = CacheType.DBCache,
    *,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Cache every later call of ``pipe``. A second call replaces the options.

    Args:
        pipe: a diffusers pipeline with a ``transformer``, and optionally a ``transformer_2`` (Wan 2.2) or an
            ``unconditional_transformer`` (Ideogram 4).
        cache_type: the method; ``CacheType.NONE`` computes everything but still reports.
        group: ranks that decide together; None = those that ParaAttention (or diffusers) splits the transformer over,
            looked up at every call, so ``parallelize_pipe`` may come before or after.
        options: the method's options under their published names. The defaults are those of the options models and
            ``CacheType.default_options`` (threshold 0.12, 0.08 for FBCache and DBPrune; warm-up 8; F8B8), where
            cache-dit used 0.05, 0 and F1B0: :func:`cache_core.cache_factory.apply_cache_on_pipe` uses those.
            ``enable_taylorseer`` becomes ``taylor_order``.

    Returns:
        The same pipeline object.

    Raises:
        TypeError: not a pipeline; says what to pass.
        pydantic.ValidationError: an option out of range. BlockCountError: options that do not fit the model.
        UnsupportedModelError: a transformer whose blocks are unknown.
        AnotherCacheError: diffusers', ParaAttention's or cache-dit's cache is on a transformer already.
        ValueError: an unknown ``cache_type`` or option, with the legal ones; a published option this implementation
            does not have, set to more than its neutral value; a transformer compiled with ``fullgraph=True`` or CUDA
            graphs.
    """
    _check_is_pipeline(pipe, "apply_cache_on_pipe")
    parsed = _parsed(CacheType(cache_type), options)
    attached = _attached(pipe, parsed)
    if isinstance(pipe, _CachedPipeline):
        setup = pipe._raycache
    else:
        setup = vars(pipe)["_raycache"] = _Setup(type(pipe))
        pipe.__class__ = _cached_class(type(pipe))
    setup.options, setup.group = parsed, group
    setup.attached += attached
    return pipe


def _parsed(cache_type: CacheType, given: dict[str, Any]) -> CacheOptions:
    """Options from their published names. Raises ValueError for options that the method does not have."""
    options, legal = translated(given), option_names(cache_type)
    if unknown := [name for name in options if name not in legal]:
        near = difflib.get_close_matches(unknown[0], legal, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{cache_type} has no option {unknown[0]!r}{hint}; it has {', '.join(legal) or 'none'}")
    return parse_options({"type": str(cache_type), **options})


def _attached(pipe: DiffusionPipeline, options: CacheOptions) -> list[Attachment]:
    """Hooks on all transformers of ``pipe`` that have none, or on none if one cannot be cached with ``options``."""
    attached: list[Attachment] = []
    try:
        for transformer in _transformers(pipe).values():
            inner = unwrap_compiled(transformer)
            check_no_other_cache(inner)
            attachment = attachment_of(inner)
            if attachment is None:
                attached.append(attachment := Attachment(inner))
                attachment.kept = True
            check_block_count(options, len(attachment.blocks))
            compile_context(transformer)
    except Exception:
        for attachment in attached:
            attachment.detach()
        raise
    return attached


def remove_cache(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Undo ``apply_cache_on_pipe``; does nothing if ``pipe`` has no cache.

    Raises:
        RuntimeError: other code has wrapped a transformer's forward since (ParaAttention, offloading).
    """
    _check_is_pipeline(pipe, "remove_cache")
    if isinstance(pipe, _CachedPipeline):
        setup = pipe._raycache
        mine = [a for a in setup.attached if attachment_of(a.transformer) is a]
        for attachment in mine:  # all or none
            attachment.check_detachable()
        for attachment in mine:
            let_go(attachment)
        del pipe.__dict__["_raycache"]
        pipe.__class__ = setup.original
    return pipe


def cache_reports(pipe: DiffusionPipeline) -> dict[str, CacheReport]:
    """The reports of the last call, by the transformer's name in the pipeline; empty before the first call."""
    _check_is_pipeline(pipe, "cache_reports")
    return dict(pipe._raycache.reports) if isinstance(pipe, _CachedPipeline) else {}


def cache_summary(pipe: DiffusionPipeline) -> str:
    """Print, and return, the decisions of the last call as a short table."""
    text = format_summary(cache_reports(pipe))
    print(text)
    return text


def _cached_class(original: type) -> type:
    @functools.wraps(original.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # cache_core.callers finds it by this name
        setup: _Setup = self._raycache
        reports: dict[str, CacheReport] = {}
        options = setup.options.for_steps(steps_of(original.__call__, (self, *args), kwargs))
        with ExitStack() as stack:
            for name, transformer in _transformers(self).items():
                group = setup.group or find_group(unwrap_compiled(transformer))
                reports[name] = stack.enter_context(session_of(self, transformer, options, group))
            setup.reports = reports
            try:
                # The class is read at call time: ParaAttention may have replaced its __call__ since.
                return original.__call__(self, *args, **kwargs)
            finally:
                setup.reports = reports  # a call in a step callback has set its own

    # Pipelines use their own class name (saving, loading, device maps), so the name stays.
    return type(
        original.__name__,
        (_CachedPipeline, original),
        {"__call__": __call__, "__module__": original.__module__, "__qualname__": original.__qualname__},
    )


def _check_is_pipeline(pipe: object, function: str) -> None:
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"{function} takes the pipeline, not its {type(pipe).__name__}: {function}(pipe). A transformer "
            "without a pipeline is cached with cache_session(transformer, options)"
        )
    if isinstance(pipe, type) or not (isinstance(pipe, DiffusionPipeline) or callable(pipe)):
        given = f"the class {pipe.__name__}" if isinstance(pipe, type) else f"a {type(pipe).__name__}"
        raise TypeError(
            f"{function} takes a diffusers pipeline, not {given}: load it first, "
            "pipe = DiffusionPipeline.from_pretrained(...)"
        )


def _transformers(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name in ("transformer", "transformer_2", "unconditional_transformer"):
        module = getattr(pipe, name, None)
        # One module may be both: its steps are counted once, under the first name.
        if isinstance(module, nn.Module) and unwrap_compiled(module) not in map(unwrap_compiled, found.values()):
            found[name] = module
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no transformer to cache (a U-Net pipeline?)")
    return found
