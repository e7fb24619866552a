"""One trace from the request to the ranks; nothing where nobody traces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from raycache import tracing
from raycache.protocol.job import Job, Trace
from raycache.tracing import RankSpans, exporter_in_use, trace_of_request
from tests.helpers.fake_gang import SETTINGS, FakeGang, finish, started
from tests.helpers.jobs import make_job

EXPORTER = "somewhere:exporter"
SECRET = "a crimson walrus"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What this process exports; a rank finds its tracer here."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", lambda path: provider.get_tracer("test") if path == EXPORTER else None)
    yield exporter
    provider.shutdown()


def job(trace: Trace | None = None, id: str = "1") -> Job:
    return make_job(id, size="64x32", seeds=(7, 8), prompt=SECRET, trace=trace, request_id="r")


def span(name: str, exported: InMemorySpanExporter) -> ReadableSpan:
    (found,) = [one for one in exported.get_finished_spans() if one.name == name]
    return found


def parent_of(span: ReadableSpan) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def test_a_rank_continues_the_trace(exported: InMemorySpanExporter):
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    spans = RankSpans(job(Trace(parent, EXPORTER)), rank=3)
    for phase in ("encode", "denoise", "decode"):
        spans.phase(phase)
    spans.end()
    whole = span("rank 3", exported)
    assert f"{whole.context.trace_id:032x}" == "ab" * 16
    assert f"{whole.parent.span_id:016x}" == "cd" * 8
    assert whole.attributes["raycache.size"] == "64x32"
    assert whole.status.is_unset
    phases = [span(name, exported) for name in ("encode", "denoise", "decode")]
    assert {one.parent.span_id for one in phases} == {whole.context.span_id}
    assert {one.context.trace_id for one in phases} == {whole.context.trace_id}
    for before, after in pairwise(phases):
        assert whole.start_time <= before.start_time <= before.end_time <= after.start_time <= whole.end_time
    assert SECRET not in str([one.to_json() for one in exported.get_finished_spans()])


def test_an_error_is_told_without_its_words(exported: InMemorySpanExporter):
    spans = RankSpans(job(Trace("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", EXPORTER)), rank=0)
    spans.phase("encode")
    spans.end("OutOfMemoryError")
    assert span("rank 0", exported).status.description == "OutOfMemoryError"
    assert span("encode", exported).end_time


def test_nothing_without_a_trace(exported: InMemorySpanExporter):
    for untraced in (job(), job(Trace("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "nowhere:exporter"))):
        spans = RankSpans(untraced, rank=0)
        spans.phase("encode")
        spans.end("error")
    assert exported.get_finished_spans() == ()
    assert exporter_in_use() == "", "off by default"
    assert trace_of_request(EXPORTER) is None, "no span is open"


def test_a_rank_without_the_exporter_draws_all_the_same(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(tracing._logger, "warning", lambda words, *about: told.append(words % about))
    tracing._tracer.cache_clear()
    for _ in range(2):
        spans = RankSpans(job(Trace("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "not.installed:here")), rank=0)
        spans.phase("encode")
        spans.end()
    (words,) = told
    assert "not" in words


async def test_the_engine_hands_the_requests_trace_to_the_gang(exported: InMemorySpanExporter):
    from raycache.engine.engine import Engine

    engine = Engine(SETTINGS, FakeGang)
    engine._exporter = EXPORTER
    with tracing._tracer(EXPORTER).start_as_current_span("replica_handle_request") as served:
        call, running = await started(engine)
    assert running.job.trace == Trace(parent_of(served), EXPORTER)
    finish(running)
    await call
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 1, False, trace.TraceFlags(0)))):
        call, running = await started(engine)
    assert running.job.trace is None, "a trace that is not sampled costs the ranks nothing"
    finish(running)
    await call
