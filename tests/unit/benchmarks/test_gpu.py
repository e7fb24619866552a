"""The GPU benchmark without a GPU: all that it measures, on a tiny model, and sections that go wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import facts, gpu_tests, running, spawning
from benchmarks.gpu.measuring import attempt
from benchmarks.gpu.models import flux, unfit, why_not_fp8
from benchmarks.gpu.plan import SMALL, Device, Facts, Plan
from benchmarks.gpu.recorder import Found, Recorder
from benchmarks.gpu.running import Outcome, run_section
from benchmarks.gpu.sections import SECTIONS

ROOT = Path(__file__).parents[3]
CPU = Facts(versions={"torch": "2"}, cpu="a CPU", cores=2)
REHEARSAL = Plan("cpu", small=True, quick=True)


def gpus(count: int, gib: float, capability: tuple[int, int]) -> Facts:
    one = Device("a GPU", 80 << 30, int(gib * 2**30), capability)
    return Facts((one,) * count, {"torchao": "0.18"}, "a CPU", 2)


@pytest.mark.parametrize(
    ("devices", "ranks", "worlds"),
    [(1, 0, [1]), (2, 0, [1, 2]), (3, 0, [1, 2]), (7, 0, [1, 2, 4]), (8, 0, [1, 2, 4, 8]), (8, 2, [1, 2])],
)
def test_ranks_that_are_tried(devices: int, ranks: int, worlds: list[int]):
    assert Plan(ranks=ranks).worlds(devices) == worlds


@pytest.mark.slow
def test_what_does_not_fit_is_told():
    assert unfit(Plan(), gpus(1, 47, (8, 9))) == ""
    assert unfit(Plan(), gpus(1, 22, (8, 9))) == "needs 26 GiB of GPU memory, of which 22.0 GiB are free"
    two = gpus(2, 47, (8, 9))
    uneven = dataclasses.replace(two, devices=(two.devices[0], dataclasses.replace(two.devices[1], free=1 << 30)))
    assert "1.0 GiB are free" in unfit(Plan(), uneven), "each rank needs room"
    assert "this is 8.0" in why_not_fp8(Plan(), gpus(1, 79, (8, 0)))
    assert why_not_fp8(Plan(), gpus(1, 79, (9, 0))) == ""
    assert "not installed" in why_not_fp8(Plan(), dataclasses.replace(gpus(1, 79, (9, 0)), versions={}))


@pytest.mark.parametrize(("given", "seen"), [("", "1"), ("4,7", "7"), ("GPU-a, GPU-b", "GPU-b")])
def test_a_rank_sees_its_own_gpu_of_those_that_are_given(monkeypatch: pytest.MonkeyPatch, given: str, seen: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    began: list[str] = []

    def start(*_: object, **__: object) -> SimpleNamespace:
        began.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return SimpleNamespace(join=lambda timeout: True, processes=[])

    monkeypatch.setattr(spawning.mp, "start_processes", start)
    spawning.run_ranks(print, 2, Plan())
    assert began[1] == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given, "put back"


def test_a_gpu_is_told_as_cuda_tells_it(monkeypatch: pytest.MonkeyPatch):
    """Through JSON, as the command hears it from another process."""
    properties = SimpleNamespace(name="NVIDIA L20", major=8, minor=9)
    for name, answer in {
        "is_available": True, "device_count": 2, "get_device_properties": properties, "mem_get_info": (40, 48),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    told = Facts.from_json(facts.found("cuda").to_json())
    assert told.devices == (Device("NVIDIA L20", 48, 40, (8, 9)),) * 2
    assert (told.free, told.capability, told.problem) == (40, (8, 9), "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: (_ for _ in ()).throw(RuntimeError("no driver")))
    assert facts.found("cuda").problem == "CUDA cannot be used: no driver"


def test_weights_are_the_same_everywhere_and_move_every_block():
    first, second = flux(SMALL, "cpu"), flux(SMALL, "cpu")
    for (name, parameter), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.isfinite().all(), name
        assert parameter.ndim == 1 or parameter.std() > 0.01, name


@pytest.mark.slow
def test_an_attempt_that_fails_does_not_end_the_section(tmp_path: Path):
    recorder = Recorder(tmp_path / "found.json")
    with attempt(recorder, "large", "cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    with attempt(recorder, "on ranks", "cpu"):
        raise RuntimeError(
            "-- Process 1 failed:\nTraceback (most recent call last):\n  x\ntorch.OutOfMemoryError: 20 GiB"
        )
    with attempt(recorder, "broken", "cpu"):
        raise ValueError("first line\nsecond")
    recorder.add("a table", column=1.5)
    found = Found.read(recorder.path)
    assert found.skipped == [
        ("large", "out of memory: CUDA out of memory. Tried to allocate 20 GiB"),
        ("on ranks", "out of memory: torch.OutOfMemoryError: 20 GiB"),
    ]
    assert found.failed == [("broken", "ValueError: first line")]
    assert found.tables == {"a table": [{"column": 1.5}]}


def script(folder: Path, name: str, then: str) -> list[str]:
    """A section that finds one row, and what it does after that."""
    Recorder(folder / "given.json").add("Decoding", image="a", way="whole", s=0.5)
    return ["sh", "-c", f"cp {folder}/given.json {folder}/{name}.found.json; {then}"]


def test_a_section_that_hangs_is_ended_with_all_that_it_started_and_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its time is over as soon as it hangs, however long this machine takes until then."""
    pid = tmp_path / "pid"

    def clock() -> float:
        return time.monotonic() + (1000 if pid.exists() and pid.stat().st_size else 0)

    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=clock, strftime=time.strftime))
    hangs = script(tmp_path, "images", f"sleep 1000 & echo $! > {pid}; wait")
    outcome = run_section("images", hangs, tmp_path, 500)
    assert (outcome.status, outcome.found.rows) == ("out of time", 1)
    child = int(pid.read_text())
    for _ in range(100):  # a killed process is gone when whoever inherited it has noticed
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("a process that the section had started was still there")


@pytest.mark.parametrize(
    ("then", "why"),
    [("echo why it failed; exit 3", "exit code 3: why it failed"), ("kill -9 $$", "killed by signal 9")],
)
def test_a_section_that_ends_badly_keeps_its_rows(tmp_path: Path, then: str, why: str):
    outcome = run_section("images", script(tmp_path, "images", then), tmp_path, 60)
    assert (outcome.status, outcome.found.rows) == ("failed", 1)
    assert why in outcome.why


def run_all(monkeypatch: pytest.MonkeyPatch, out: Path, then: dict[str, str], facts: Facts = CPU, seconds: float = 600):
    """``measure`` on shell scripts; what was run."""
    ran: list[str] = []

    def fake(name: str, plan: Plan, folder: Path) -> list[str]:
        ran.append(name)
        return script(folder, name, then[name])

    monkeypatch.setattr(command, "command_of", fake)
    console = Console(quiet=True)
    command.measure(REHEARSAL, facts, list(then), out, resume=True, seconds=seconds, console=console)
    return ran


@pytest.mark.slow
def test_the_report_has_what_each_section_gave_and_a_later_run_makes_up_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    then = {"images": "exit 1", "decoding": "true"}
    assert run_all(monkeypatch, tmp_path, then) == ["images", "decoding"]
    text, values = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert "| [Images on one GPU](#images) | failed |" in text
    assert "| a | whole | 0.5 |" in text
    assert "![decoding](decoding.png)" in text
    assert (tmp_path / "decoding.png").stat().st_size > 1000
    assert values["sections"]["images"]["found"]["tables"]["Decoding"][0]["s"] == 0.5, "what it had is kept"
    assert run_all(monkeypatch, tmp_path, then | {"images": "true"}) == ["images"]
    assert "failed" not in (tmp_path / "report.md").read_text()
    elsewhere = dataclasses.replace(CPU, cpu="another")
    assert run_all(monkeypatch, tmp_path, {"images": "true"}, elsewhere) == ["images"], "figures of two machines"
    assert "another machine: decoding" in (tmp_path / "report.md").read_text()
    assert run_all(monkeypatch, tmp_path, {"links": "true"}, elsewhere, seconds=0) == []
    assert Outcome.read(tmp_path / "sections", "links").status == "not started"


def test_each_test_on_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cases = (
        '<testsuites><testsuite><testcase classname="tests.gpu.a" name="good" time="0.5"/>'
        '<testcase classname="tests.gpu.a" name="bad" time="1"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="tests.gpu.a" name="two" time="0"><skipped message="needs 2 GPUs"/></testcase>'
        "</testsuite></testsuites>"
    )

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        Path(arguments[-1].partition("=")[2]).write_text(cases)
        return subprocess.CompletedProcess(arguments, 1)

    monkeypatch.setattr(gpu_tests.subprocess, "run", run)
    gpu_tests.measure(REHEARSAL, CPU, recorder := Recorder(tmp_path / "tests.found.json"))
    found = Found.read(recorder.path)
    assert [(row["test"], row["outcome"]) for row in found.tables["Tests"]] == [
        ("a::good", "passed"),
        ("a::bad", "FAILED"),
    ]
    assert (found.failed, found.skipped) == ([("a::bad", "assert 1 == 2")], [("a::two", "needs 2 GPUs")])


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a busy machine; a minute of CPU
def test_a_trial_run_measures_everything(tmp_path: Path):
    """All sections in one process, which imports torch once; but tests/gpu, and what starts Ray (tests/serving).

    Its ranks are forked, before anything has begun a thread; what they are given can be sent to them all the same.
    """
    code = """
        import pickle
        import sys
        from pathlib import Path
        from benchmarks.gpu import spawning
        from benchmarks.gpu.child import run
        from benchmarks.gpu.facts import found
        from benchmarks.gpu.plan import Plan
        from benchmarks.gpu.recorder import Recorder
        from benchmarks.gpu.sections import SECTIONS

        start = spawning.mp.start_processes

        def fork(function, given, **how):
            pickle.dumps((function, given))
            return start(function, given, **how | {"start_method": "fork"})

        if __name__ == "__main__":
            spawning.mp.start_processes = fork
            for name, section in sorted(SECTIONS.items(), key=lambda each: "ranks" not in each[1].needs):
                if name not in ("tests", "rebuild"):
                    recorder = Recorder(Path(sys.argv[1]) / f"{name}.json")
                    run(section, Plan("cpu", small=True, quick=True), found("cpu"), recorder)
    """
    script = tmp_path / "all.py"
    script.write_text(textwrap.dedent(code))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, script, tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {name: Found.read(tmp_path / f"{name}.json") for name in SECTIONS if name not in ("tests", "rebuild")}
    assert {name: one.failed for name, one in found.items() if one.failed} == {}
    rows = {title: len(rows) for one in found.values() for title, rows in one.tables.items()}
    images = found["images"].tables["Images on one GPU"]
    builds = 2 if found["images"].skipped else 3  # FP8 needs torchao
    assert rows == {
        "Images on one GPU": 4 * builds,
        "Images over ranks": 2,
        "Efficiency": 9,
        "Cost per decision": 4,
        "Decoding": 2,
        "Decoding during calls": 1,
        "All-to-alls by size": 5,
        "Agreement on a decision": 1,
    }
    cached = [row["blocks computed"] for row in images if row["method"] != "no cache"]
    assert max(cached) < 0.7, "blocks were reused in each build, by each method"
