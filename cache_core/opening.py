"""Opens a session on a transformer: the entry point that everything else uses."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_core.attaching import attached
from cache_core.compiled import compile_context, unwrap_compiled
from cache_core.consensus import Consensus, GroupConsensus
from cache_core.method_options import MethodOptions
from cache_core.options import CacheOptions, check_block_count, parse_options
from cache_core.other_caches import check_no_other_cache
from cache_core.ownership import opened
from cache_core.para_attention import repair_if_used
from cache_core.parallel_group import is_parallelized
from cache_core.policies.image_options import combined
from cache_core.policy import Deciding, Policy
from cache_core.report import CacheReport
from cache_core.session import Session

__all__ = ["cache_session", "job_session", "session_of"]


@contextmanager
def cache_session(
    transformer: nn.Module,
    options: CacheOptions | dict[str, Any] | Sequence[CacheOptions | dict[str, Any]],
    group: dist.ProcessGroup | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> Iterator[CacheReport]:
    """Cache the transformer's blocks for one job.

    One call of the transformer is one step of the branch that ``transformer.cache_context(name)`` names (``"default"``
    if none is open). When the job ends, also by an exception, the buffers are freed, and hooks that were not there
    before are removed.

    The job is the pipeline call, or your own loop, that calls the transformer first, and later pipeline calls one after
    the other, each starting fresh. Other callers of the transformer meanwhile (another thread, a step callback, a
    pipeline in it) are computed without the cache and not reported, or use their own session.

    Args:
        transformer: a diffusers transformer, or ``torch.compile`` of one.
        options: one of the options models, or a dict with a ``type`` field. Or a list, one for each image of the
            batch, which may differ in thresholds: each image is compared with its own. With guidance in one batch every
            image has two rows (SD3, Z-Image, LTX, CogVideoX, Mochi, PixArt) or more: the list still has one entry an
            image, rows that hold the same latents belong to one image, and the report has an entry for each row, in the
            order of the call (diffusers' pipelines stack all images' negative rows, then all positive ones, or the
            other way round). ``num_images_per_prompt`` counts: one entry an image, prompt after prompt.
        group: the process group whose ranks decide together; None = this process alone.
        should_abort: polled once per step on every rank; when any rank's returns True, all raise
            :class:`JobAborted` at that step.

    Yields:
        The report, which grows by one record per step and stays readable afterwards.

    Raises:
        TypeError: not a transformer; says what to pass.
        pydantic.ValidationError: a dict with invalid options. BlockCountError: options that do not fit the model.
        ValueError: a list whose options differ in more than thresholds, or which does not fit the rows of a call.
        UnsupportedModelError: the transformer's blocks are unknown.
        AnotherCacheError: diffusers', ParaAttention's or cache-dit's cache is on this transformer too.
        RuntimeError: a session is already open on this transformer and has computed nothing yet, or the transformer is
            split over ranks and no group is given.

    Examples:
        >>> with cache_session(pipe.transformer, DBCacheOptions()) as report:   # doctest: +SKIP
        ...     image = pipe("a red circle").images[0]
        >>> report.to_dict()["totals"]["cached_steps"]                          # doctest: +SKIP
    """
    with session_of(None, transformer, options, group, should_abort) as report:
        yield report


@contextmanager
def session_of(
    pipe: Any,
    transformer: nn.Module,
    options: CacheOptions | dict[str, Any] | Sequence[CacheOptions | dict[str, Any]],
    group: dist.ProcessGroup | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> Iterator[CacheReport]:
    """The same for a known pipeline: the session handles only its calls."""
    inner = _inner_of(transformer)
    with job_session(transformer, options, group, should_abort) as session, opened(inner, session, pipe):
        yield session.report


@contextmanager
def job_session(
    transformer: nn.Module,
    options: CacheOptions | dict[str, Any] | Sequence[CacheOptions | dict[str, Any]],
    group: dist.ProcessGroup | None = None,
    should_abort: Callable[[], bool] | None = None,
    name: str = "",
) -> Iterator[Session]:
    """The cache's state of one job, for calls made under :func:`joined`, by this job alone or with other jobs.

    Any number may be open on one transformer. Arguments and errors are those of :func:`cache_session`.

    Args:
        name: the name of the job; all ranks must use the same, which is checked.
    """
    each = [parse_options(own) for own in (options if isinstance(options, list | tuple) else [options])]
    inner = _inner_of(transformer)
    check_no_other_cache(inner)
    repair_if_used(inner)
    if group is None and is_parallelized(inner) and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            f"{type(inner).__name__} is split over several ranks: a rank that decides alone deadlocks the others. "
            "Pass group= (cache_core.find_group(transformer) knows it)"
        )
    with attached(inner) as attachment:
        attachment.settle()
        values = combined(each)
        check_block_count(each[0], len(attachment.blocks))
        context = compile_context(transformer)
        if context is not None or attachment.sessions == 1:  # sessions that are already running keep theirs
            attachment.use_compile_context(context)
        report = CacheReport(each[0].type, values, len(attachment.blocks))
        consensus = Consensus() if group is None else GroupConsensus(group)
        own = [one.spelled_out() for one in each]
        session = Session(
            attachment.blocks, _policy_of(own[0]), own, consensus, report, should_abort, each[0].remembers, name
        )
        try:
            yield session
        finally:
            session.close()


def _inner_of(transformer: Any) -> nn.Module:
    if not isinstance(transformer, nn.Module):
        raise TypeError(
            f"cache_session takes a transformer, not a {type(transformer).__name__}: cache_session(pipe.transformer, "
            "...); for a whole pipeline, cache_core.apply_cache_on_pipe(pipe, ...)"
        )
    return unwrap_compiled(transformer)


def _policy_of(options: MethodOptions) -> Callable[[Any, Deciding], Policy]:
    if not options.policy:
        raise TypeError(f"{type(options).__name__} has no implementation: its `policy` is empty")
    policy: Callable[[Any, Deciding], Policy] = pkgutil.resolve_name(options.policy)
    return policy
