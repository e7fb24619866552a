"""The numbers of a run, on records whose answer is known."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from loadtests.records import Record, Recorder
from loadtests.report import write_report
from loadtests.steps import Level, highest_held, step_rows
from loadtests.summary import agreement, by_kind, quantiles, summarize


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
    results = summarize(records, length=100.99, offering=100.99, deadline=1.5, engines=1, ranks=2)
    assert results["outcomes"] == {"done": 100, "refused": 1, "aborted": 1, "failed": 2, "abandoned": 1, "wrong": 0}
    assert results["latency"]["p50"] == pytest.approx(1.495)
    assert results["latency"]["max"] == pytest.approx(1.99)
    assert results["goodput"]["share"] == pytest.approx(51 / 105, abs=1e-4)
    assert results["seconds"] == pytest.approx(100.99)
    assert results["gang_busy"] == pytest.approx(100 * 0.5 / 100.99, abs=1e-3)
    assert results["images"]["per_rank_per_minute"] == pytest.approx(60 * 100 / 100.99 / 2, abs=1e-3)
    assert results["computed_blocks"] == 0.5


def test_lost_is_what_was_accepted_and_got_no_image(records):
    """A refusal, a deadline and a client's own leaving lose nothing; a 500 does, and so does silence."""
    assert summarize(records, length=100.0, offering=100.0, deadline=1, engines=1, ranks=1)["lost"] == 2
    wrong = [record(0, 1, "failed", status=400, cause="invalid_value")]
    assert summarize(wrong, length=1.0, offering=1.0, deadline=1, engines=1, ranks=1)["lost"] == 0


def test_a_run_without_answers_has_a_summary():
    results = summarize([], length=0.0, offering=0.0, deadline=1, engines=1, ranks=1)
    assert results["latency"] is None
    assert results["requests"] == results["lost"] == 0


def test_a_run_that_ends_early_counts_its_own_time():
    """Nobody waits for the end of the hour: per second is per second of the run. Ten requests from 100 s on, one each
    2 s, answered in 1 s (of which 0.5 s on the gang), two images each: the last answer comes at 119 s."""
    records = [record(100 + 2 * i, 1.0, images=2, encode=0.1, denoise=0.3, decode=0.1) for i in range(10)]
    results = summarize(records, length=19.0, offering=19.0, deadline=1.0, engines=2, ranks=4)
    assert results["seconds"] == 19.0
    assert results["goodput"] == {
        "deadline": 1.0,
        "good": 10,
        "per_second": pytest.approx(10 / 19, abs=1e-4),
        "share": 1.0,
    }
    assert results["images"] == {
        "count": 20, "per_second": pytest.approx(20 / 19, abs=1e-4),
        "per_rank_per_minute": pytest.approx(60 * 20 / 19 / 4, abs=1e-4),
    }  # fmt: skip
    assert results["gang_busy"] == pytest.approx(10 * 0.5 / 19 / 2, abs=1e-4)
    assert results["latency"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0, "max": 1.0}


def test_a_run_whose_last_requests_are_lost():
    """Four drawn in the first 4 s, then six get nothing until they give up 60 s later: the time they waited counts,
    their latency does not (they have none), and goodput is of all ten."""
    drawn = [record(i, 1.0, denoise=0.8) for i in range(4)]
    lost = [record(4 + i, 60.0, "failed", status=0, cause="ReadTimeout", denoise=9.0) for i in range(6)]
    results = summarize([*drawn, *lost], length=69.0, offering=69.0, deadline=2.0, engines=1, ranks=1)
    assert results["requests"] == 10
    assert results["seconds"] == 69.0
    assert results["lost"] == 6
    assert results["causes"] == {"failed: ReadTimeout": 6}
    assert results["latency"]["max"] == 1.0
    assert results["goodput"]["share"] == 0.4
    assert results["goodput"]["per_second"] == pytest.approx(4 / 69, abs=1e-4)
    assert results["gang_busy"] == pytest.approx(4 * 0.8 / 69, abs=1e-4), "what came back, not what was asked"


def test_a_run_that_is_mostly_refused():
    """A refusal is quick and must not make the run look fast: three of twelve are drawn, slowly."""
    refused = [record(i, 0.01, "refused", status=429 if i % 2 else 503, cause="queue_full") for i in range(9)]
    drawn = [record(i, 5.0 + i) for i in range(3)]
    results = summarize([*refused, *drawn], length=9.0, offering=9.0, deadline=6.0, engines=1, ranks=1)
    assert results["shares"] == {"refused": 0.75, "aborted": 0.0, "abandoned": 0.0}
    assert results["lost"] == 0
    assert results["latency"] == {"p50": 6.0, "p95": 6.9, "p99": 6.98, "max": 7.0}
    assert results["goodput"]["share"] == pytest.approx(2 / 12, abs=1e-4), "5 s and 6 s are good, 7 s is late"
    assert results["causes"] == {"refused: queue_full": 9}


@pytest.mark.parametrize(
    ("outcome", "fields", "lost"),
    [
        ("done", {}, 0),
        ("refused", {"status": 429}, 0),
        ("aborted", {"status": 504}, 0),
        ("abandoned", {"status": 0}, 0),
        ("wrong", {"images": 1}, 0),
        ("failed", {"status": 0}, 1),
        ("failed", {"status": 200}, 1),
        ("failed", {"status": 400}, 0),
        ("failed", {"status": 499}, 0),
        ("failed", {"status": 500}, 1),
        ("failed", {"status": 599}, 1),
    ],
)
def test_one_request_of_each_kind(outcome, fields, lost):
    """Sent 1 s late and answered 3 s after it was meant to go; no image is no answer."""
    one = record(2.0, 3.0, outcome, **({"sent": 3.0, "cause": "why" if outcome != "done" else ""} | fields))
    results = summarize([one], length=3.0, offering=3.0, deadline=3.0, engines=1, ranks=1)
    assert results["requests"] == 1
    assert results["seconds"] == 3.0
    assert results["outcomes"] == {
        name: int(name == outcome) for name in ("done", "refused", "aborted", "failed", "abandoned", "wrong")
    }
    assert results["lost"] == lost
    assert results["late_client"]["max"] == 1.0
    assert results["checked"] == {"decoded": 0, "wrong": int(outcome == "wrong")}
    if outcome == "done":
        assert results["latency"] == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
        assert results["goodput"] == {"deadline": 3.0, "good": 1, "per_second": 0.3333, "share": 1.0}
        assert results["causes"] == {}
    else:
        assert results["latency"] is results["queue"] is None
        assert results["goodput"] == {"deadline": 3.0, "good": 0, "per_second": 0.0, "share": 0.0}
        assert results["images"]["count"] == 0
        assert results["computed_blocks"] is None
        assert results["causes"] == {f"{outcome}: why": 1}


def test_answers_that_nobody_streamed_have_no_first_event():
    """Numbers that only some records have are of those; 0 s is a time and not a gap."""
    records = [
        record(0, 1.0, first_event=0.0, first_preview=0.4, computed=0.0, checked=True),
        record(1, 1.0, first_event=0.2, computed=0.5),
        record(2, 1.0),
    ]
    results = summarize(records, length=100.0, offering=100.0, deadline=1, engines=1, ranks=1)
    assert results["first_event"]["p50"] == pytest.approx(0.1)
    assert results["first_preview"]["max"] == 0.4
    assert results["computed_blocks"] == 0.25
    assert results["checked"]["decoded"] == 1


def test_quantiles():
    assert quantiles(range(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert quantiles([4.0, 1.0]) == {"p50": 2.5, "p95": 3.85, "p99": 3.97, "max": 4.0}  # between neighbours
    assert quantiles([]) is None


def test_agreement_is_relative_to_the_server():
    records = [record(0, 1, queue=1.0, denoise=2.0), record(1, 1, queue=0.0, denoise=2.0)]
    before = {"done": 10.0, "images": 5.0, "queue_seconds": 3.0, "denoise_seconds": 0.0}
    after = {"done": 12.0, "images": 7.0, "queue_seconds": 4.0, "denoise_seconds": 5.0}
    rows = agreement(records, before, after)
    assert rows["done"] == {"client": 2.0, "server": 2.0, "off": 0.0}
    assert rows["denoise_seconds"]["off"] == pytest.approx(0.2)


def test_the_same_request_must_give_the_same_images():
    def image(colour: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
        return buffer.getvalue()

    red, green, blue = map(image, ("red", "green", "blue"))
    recorder = Recorder()
    assert recorder.same_as_before(1, 7, (red, green))
    assert recorder.same_as_before(1, 7, (red, green))
    assert recorder.same_as_before(1, 8, (blue,))
    assert not recorder.same_as_before(1, 7, (red, blue))
    assert not recorder.same_as_before(1, 7, (red,))


@pytest.mark.slow
def test_the_report_is_one_page_with_its_plots(records, tmp_path):
    results = summarize(records, length=100.99, offering=100.99, deadline=1.5, engines=1, ranks=2)
    results["faults"] = [{"at": 30.0, "what": "SIGKILL of rank 1"}]
    results["agreement"] = agreement(records, {}, {"done": 100.0})
    write_report(tmp_path / "r.html", "open-<1>", "laptop", json.loads(json.dumps(results)), records)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 2
    assert "SIGKILL of rank 1" in page
    assert "open-&lt;1&gt;" in page
    assert "<script" not in page
    assert "http://www.w3.org" in page.replace("https://", "")  # namespaces only, nothing to fetch
    assert 'src="http' not in page


def test_rates_are_of_the_whole_run_not_of_its_busy_part(records):
    """Ten images in the last seconds of ten minutes are one a minute."""
    late = [record(595.0, 5.0) for _ in range(10)]
    results = summarize(late, deadline=9.0, length=600.0, offering=500.0, engines=1, ranks=1)
    assert results["images"]["per_rank_per_minute"] == pytest.approx(1.0)
    assert results["goodput"]["per_second"] == pytest.approx(10 / 600, abs=1e-4)
    assert results["offered"] == {"seconds": 500.0, "per_second": 0.02}


def test_kinds_have_a_row_each():
    quick, slow = [record(i, 1.0, denoise=0.5) for i in range(4)], [record(i, 9.0, denoise=8.0) for i in range(2)]
    for one in slow:
        one.kind = 2
    rows = by_kind([*quick, *slow, record(9, 0.1, "refused")], ["a", "never asked for", "c"], 5.0)
    assert [row["kind"] for row in rows] == ["a", "c"]
    assert [(row["requests"], row["done"], row["in_time"]) for row in rows] == [(5, 4, 4), (2, 2, 0)]
    assert [row["latency"]["p95"] for row in rows] == [1.0, 9.0]
    assert [row["denoise"]["p50"] for row in rows] == [0.5, 8.0]


@pytest.mark.slow
def test_the_report_says_what_held_what_was_asked_for_and_of_whom(records, tmp_path):
    levels = [Level(0.0, 40.0, 1.0), Level(40.0, 100.0, 2.0)]
    results = summarize(records, length=100.99, offering=100.0, deadline=1.5, engines=1, ranks=2)
    results |= {
        "steps": (rows := step_rows(records, levels, 1.5)),
        "highest_held": highest_held(rows),
        "kinds": by_kind(records, ["64x64, 10 steps"], 1.5),
        "faults": [{"at": 30.0, "what": "SIGKILL of rank 1"}, {"at": 60.0, "what": "SIGKILL of rank 0"}],
        "service": {
            "version": "9.8.7",
            "models": [{"id": "demo", "ranks": 2, "defaults": {"size": "128x128", "preset": None}}],
            "config": {"path": "c.yaml", "text": "cache: <none>"},
        },
    }
    write_report(tmp_path / "r.html", "step", "", json.loads(json.dumps(results)), records)
    page = (tmp_path / "r.html").read_text()
    assert "The highest rate that held: <b>1.0 requests per second</b>" in page
    assert page.count("<tr><td>2.0</td>") == 1
    assert 'class="no">no</td>' in page
    assert "64x64, 10 steps" in page
    assert "<b>fault 2</b> at 60.0 s: SIGKILL of rank 0" in page
    assert page.index("fault 2</b>") < page.index("<svg"), "beside the plot in which it is"
    assert "9.8.7" in page
    assert "2 rank(s) per engine; defaults: size 128x128" in page
    assert "cache: &lt;none&gt;" in page


@pytest.mark.slow
def test_a_report_of_nothing(tmp_path):
    write_report(
        tmp_path / "r.html", "empty", "", summarize([], length=0.0, offering=0.0, deadline=1, engines=1, ranks=1), []
    )
    assert (tmp_path / "r.html").read_text().count("<svg") == 2
