"""The numbers of a run, on records whose answer is known."""

from __future__ import annotations

import json

import pytest

from loadtests.records import Record, Recorder
from loadtests.report import write_report
from loadtests.summary import agreement, quantiles, summarize


def record(intended: float, latency: float, outcome: str = "done", **more) -> Record:
    fields = {"status": 200, "images": int(outcome == "done"), "sent": intended} | more
    return Record(0, 0, intended, ended=intended + latency, outcome=outcome, **fields)


@pytest.fixture
def records() -> list[Record]:
    done = [record(i, 1.0 + i / 100, queue=0.5, encode=0.1, denoise=0.3, decode=0.1, computed=0.5) for i in range(100)]
    return [
        *done,
        record(50, 0.1, "refused", status=429, cause="queue_full"),
        record(51, 2.0, "aborted", status=504, cause="deadline_exceeded"),
        record(52, 2.0, "abandoned"),
        record(53, 9.0, "failed", status=0, cause="ConnectionError"),
        record(54, 9.0, "failed", status=500, cause="job_failed"),
    ]


def test_latency_counts_from_the_intended_start():
    late = Record(0, 0, intended=1.0, sent=5.0, ended=6.0)
    assert late.latency == 5.0


def test_summary(records):
    results = summarize(records, deadline=1.5, engines=1, ranks=2)
    assert results["outcomes"] == {"done": 100, "refused": 1, "aborted": 1, "failed": 2, "abandoned": 1, "wrong": 0}
    assert results["latency"]["p50"] == pytest.approx(1.495)
    assert results["latency"]["max"] == pytest.approx(1.99)
    assert results["goodput"]["share"] == pytest.approx(51 / 105, abs=1e-4)
    assert results["seconds"] == pytest.approx(100.99)
    assert results["gang_busy"] == pytest.approx(100 * 0.5 / 100.99, abs=1e-3)
    assert results["pictures"]["per_rank_per_minute"] == pytest.approx(60 * 100 / 100.99 / 2, abs=1e-3)
    assert results["computed_blocks"] == 0.5


def test_lost_is_what_was_accepted_and_got_no_picture(records):
    """A refusal, a deadline and a client's own leaving lose nothing; a 500 does, and so does silence."""
    assert summarize(records, deadline=1, engines=1, ranks=1)["lost"] == 2
    wrong = [record(0, 1, "failed", status=400, cause="invalid_value")]
    assert summarize(wrong, deadline=1, engines=1, ranks=1)["lost"] == 0


def test_a_run_without_answers_has_a_summary():
    results = summarize([], deadline=1, engines=1, ranks=1)
    assert results["latency"] is None
    assert results["requests"] == results["lost"] == 0


def test_quantiles():
    assert quantiles(range(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


def test_agreement_is_relative_to_the_server():
    records = [record(0, 1, queue=1.0, denoise=2.0), record(1, 1, queue=0.0, denoise=2.0)]
    before = {"done": 10.0, "images": 5.0, "queue_seconds": 3.0, "denoise_seconds": 0.0}
    after = {"done": 12.0, "images": 7.0, "queue_seconds": 4.0, "denoise_seconds": 5.0}
    rows = agreement(records, before, after)
    assert rows["done"] == {"client": 2.0, "server": 2.0, "off": 0.0}
    assert rows["denoise_seconds"]["off"] == pytest.approx(0.2)


def test_the_same_request_must_give_the_same_bytes():
    recorder = Recorder()
    assert recorder.same_as_before(1, 7, ("a", "b"))
    assert recorder.same_as_before(1, 7, ("a", "b"))
    assert recorder.same_as_before(1, 8, ("c",))
    assert not recorder.same_as_before(1, 7, ("a", "c"))


def test_the_report_is_one_page_with_its_plots(records, tmp_path):
    results = summarize(records, deadline=1.5, engines=1, ranks=2)
    results["faults"] = [{"at": 30.0, "what": "SIGKILL of rank 1"}]
    results["agreement"] = agreement(records, {}, {"done": 100.0})
    write_report(tmp_path / "r.html", "open-<1>", "laptop", json.loads(json.dumps(results)), records)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 3
    assert "SIGKILL of rank 1" in page
    assert "open-&lt;1&gt;" in page
    assert "<script" not in page
    assert "http://www.w3.org" in page.replace("https://", "")  # namespaces only, nothing to fetch
    assert 'src="http' not in page


def test_a_report_of_nothing(tmp_path):
    write_report(tmp_path / "r.html", "empty", "", summarize([], deadline=1, engines=1, ranks=1), [])
    assert (tmp_path / "r.html").read_text().count("<svg") == 3
