"""Steps of a run against a queue that is simulated job by job here, and knows nothing of reports."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from loadtests.records import Record
from loadtests.series import over_time
from loadtests.steps import Level, highest_held, missed, step_rows

#: The service takes one second for each job, one after the other: it can do one a second.
SERVICE_S, DEADLINE = 1.0, 5.0
RATES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
HOLD = 100.0


def levels(rates: tuple[float, ...] = RATES) -> list[Level]:
    return [Level(number * HOLD, (number + 1) * HOLD, rate) for number, rate in enumerate(rates)]


def simulated(arrivals: list[float], room: float = float("inf")) -> list[Record]:
    """First come, first served; who would wait longer than ``room`` seconds is refused at once."""
    free, records = 0.0, []
    for came in arrivals:
        wait = max(0.0, free - came)
        if wait > room:
            records.append(Record(0, 0, came, sent=came, ended=came, status=429, outcome="refused"))
            continue
        free = came + wait + SERVICE_S
        records.append(Record(0, 0, came, sent=came, ended=free, status=200, outcome="done", images=1, queue=wait))
    return records


def even(rates: tuple[float, ...] = RATES) -> list[float]:
    """Arrivals at equal distances."""
    return [number * HOLD + k / rate for number, rate in enumerate(rates) for k in range(round(HOLD * rate))]


def test_what_the_service_can_do_is_the_highest_rate_that_held():
    rows = step_rows(simulated(even()), levels(), DEADLINE)
    assert [row["held"] for row in rows] == [True, True, True, True, False, False]
    assert highest_held(rows) == 1.0
    assert [row["requests"] for row in rows] == [25, 50, 75, 100, 125, 150]
    assert [row["offered"] for row in rows] == list(RATES)
    # 1.25 come each second and 1 is answered: after 100 s 25 are left, at 1.5 another 50.
    assert [row["waiting"] for row in rows] == pytest.approx([0, 0, 0, 1, 25, 75], abs=1)
    assert [row["answered"] for row in rows] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], abs=0.02)


def test_a_service_that_refuses_holds_no_higher_rate():
    """Those that it takes are quick; it is by the others that the rate is too high."""
    rows = step_rows(simulated(even(), room=2.0), levels(), DEADLINE)
    assert highest_held(rows) == 1.0
    assert rows[4]["late"] == 0
    assert rows[4]["no_image"] > 0.1 * rows[4]["requests"]


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals(seed: int):
    """Half of what it can do holds for a deadline of ten jobs, 1.5 times as much does not."""
    rng, arrivals, rates = random.Random(seed), [0.0], (0.25, 0.5, 1.5)
    for number, rate in enumerate(rates):
        now = number * HOLD
        while (now := now + rng.expovariate(rate)) < (number + 1) * HOLD:
            arrivals.append(now)
    rows = step_rows(simulated(arrivals), levels(rates), 10.0)
    assert highest_held(rows) == 0.5


def test_percentiles_of_a_step_are_numpys():
    records = simulated(even())
    row = step_rows(records, levels(), DEADLINE)[4]
    latencies = [r.ended - r.intended for r in records if 400 <= r.intended < 500]
    for name, part in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert row["latency"][name] == pytest.approx(np.percentile(latencies, part), abs=1e-3)


def test_a_step_counts_what_was_meant_to_start_in_it():
    """Answers that come after it are its own, too: else a step that drowns looks idle."""
    late = Record(0, 0, 99.0, sent=99.0, ended=130.0, status=200, outcome="done")
    first, second = step_rows([late], levels((1.0, 2.0)), DEADLINE)
    assert (first["requests"], first["late"], first["held"]) == (1, 1, False)
    assert (second["requests"], second["held"]) == (0, None)


def test_a_step_that_the_run_broke_off_proves_nothing_but_that_it_missed():
    good = [Record(0, 0, float(t), ended=t + 1.0, outcome="done") for t in range(10)]
    bad = [Record(0, 0, float(t), ended=t + 60.0, outcome="done") for t in range(10)]
    part = [Level(0.0, 10.0, 1.0, whole=False)]
    assert step_rows(good, part, DEADLINE)[0]["held"] is None
    assert step_rows(bad, part, DEADLINE)[0]["held"] is False
    assert highest_held(step_rows(good, part, DEADLINE)) is None


def test_luck_behind_a_step_that_failed_does_not_count():
    def row(rate: float, held: bool | None) -> dict[str, object]:
        return {"rate": rate, "held": held}

    assert highest_held([row(1, True), row(2, False), row(3, True)]) == 1
    assert highest_held([row(1, None), row(2, True), row(3, None)]) == 2
    assert highest_held([row(1, False), row(2, True)]) is None
    assert highest_held([]) is None


@pytest.mark.parametrize(("bad", "is_missed"), [(0, False), (5, False), (6, True)])
def test_five_in_a_hundred_may_miss(bad: int, is_missed: bool):
    good = [Record(0, 0, 0.0, ended=1.0, outcome="done")] * (100 - bad)
    left = [Record(0, 0, 0.0, ended=9.0, outcome="abandoned")] * 50
    refused = [Record(0, 0, 0.0, outcome="refused")] * bad
    assert missed([*good, *left, *refused], 2.0) is is_missed
    assert not missed([], 2.0)


def test_a_run_over_its_time():
    """Two a second for 10 s, then none for 10; each takes the service 1 s: the queue grows by one a second."""
    records = simulated([k / 2 for k in range(20)])
    series = over_time(records, 20.0)
    edges, width = series["edges"], series["edges"][1]
    assert (edges[0], edges[-1]) == (0.0, 20.0)
    assert series["offered"].sum() * width == pytest.approx(20)
    # At 1, 2, … 20 s; the last part holds its end, too.
    assert series["answered"].tolist() == [0.0, *[1.0] * 18, 2.0]
    for number, (low, high) in enumerate(pairwise(edges)):
        own = [r.latency for r in records if low <= r.intended < high]
        if own:
            assert series["p50"][number] == pytest.approx(np.percentile(own, 50))
            assert series["p95"][number] == pytest.approx(np.percentile(own, 95))
        else:
            assert np.isnan(series["p95"][number])
    for time, under_way, queued in zip(series["times"], series["under_way"], series["queued"], strict=True):
        assert under_way == sum(r.intended <= time < r.ended for r in records)
        assert queued == sum(r.sent <= time < r.sent + r.queue for r in records)
    assert series["under_way"].max() == pytest.approx(11, abs=1)
