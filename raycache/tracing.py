"""Traces: Serve's own OpenTelemetry spans of a request, continued on the ranks.

Serve opens a span in the proxy, the ingress and the engine, and passes the trace between them. Ranks are not part of
Serve: a job carries the context, and each rank exports its own spans to where Serve's processes export theirs.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from raycache.protocol.job import Job, Trace

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["RankSpans", "exporter_in_use", "trace_of_request"]

_logger = logging.getLogger("raycache.rank")

#: Serve's controller starts this replica, so it is alive; without its answer an engine does not start.
_CONTROLLER_S = 60.0


def exporter_in_use() -> str:
    """In a replica: the import path of Serve's exporter; empty if Serve does not trace.

    Raises:
        ray.exceptions.GetTimeoutError: Serve's controller does not answer.
    """
    import ray
    from ray.serve._private import constants
    from ray.serve._private.tracing_utils import is_tracing_enabled
    from ray.serve.context import _get_global_client

    if not is_tracing_enabled():
        return ""
    client = _get_global_client(raise_if_no_controller_running=False)
    config = ray.get(client._controller.get_tracing_config.remote(), timeout=_CONTROLLER_S) if client else None
    path = config.exporter_import_path if config else constants.RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH
    return path or constants.DEFAULT_TRACING_EXPORTER_IMPORT_PATH


def trace_of_request(exporter: str) -> Trace | None:
    """The trace context for a job of the current request; None if it is not traced.

    Args:
        exporter: the result of :func:`exporter_in_use`.
    """
    if not exporter:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return Trace(carrier["traceparent"], exporter)


class RankSpans:
    """The spans of one job on one rank: one for the whole, one for each phase. Does nothing without a trace."""

    def __init__(self, job: Job, rank: int) -> None:
        self._tracer: Tracer | None = None
        self._whole: Span | None = None
        self._phase: Span | None = None
        if job.trace is None or (tracer := _tracer(job.trace.exporter)) is None:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about: dict[str, Any] = {
            "raycache.rank": rank,
            "raycache.job": job.id,
            "raycache.size": str(job.size),
            "raycache.images": len(job.images),
            "raycache.steps": job.num_inference_steps,
            "raycache.method": job.cache.type,
        }
        parent = TraceContextTextMapPropagator().extract({"traceparent": job.trace.parent})
        self._tracer, self._whole = tracer, tracer.start_span(f"rank {rank}", context=parent, attributes=about)

    def phase(self, name: str) -> None:
        """Start the span of the next phase."""
        if self._tracer is None or self._whole is None:
            return
        from opentelemetry.trace import set_span_in_context

        self._end_phase()
        self._phase = self._tracer.start_span(name, context=set_span_in_context(self._whole))

    def end(self, failure: str | None = None) -> None:
        """End the spans; ``failure``: only the type of the error, because its message may contain a prompt."""
        if self._whole is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._end_phase()
        if failure is not None:
            self._whole.set_status(Status(StatusCode.ERROR, failure))
        self._whole.end()

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.end()
            self._phase = None


@cache
def _tracer(exporter: str) -> Tracer | None:
    """This process's tracer; None, logged once, if the exporter cannot be loaded: images do not need traces."""
    from opentelemetry import trace
    from ray.serve._private.tracing_utils import setup_tracing
    from ray.serve.schema import TracingConfig

    try:
        # The root span applies the ratio: this trace is already sampled.
        config = TracingConfig(enabled=True, exporter_import_path=exporter, sampling_ratio=1.0)
        setup_tracing(component_name="rank", component_id=str(os.getpid()), tracing_config=config)
    except Exception as error:
        _logger.warning("Ranks export no spans: %s: %s", type(error).__name__, error)
        return None
    return trace.get_tracer("raycache")
