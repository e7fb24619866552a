"""What `raycache doctor` says of what it finds."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from raycache.command import checks
from raycache.command.checks import Check
from raycache.command.main import app

GB = 1 << 30


def lines(result: object) -> list[str]:
    return str(getattr(result, "stdout", "")).splitlines()


def test_a_port_in_use_fails_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "judged_versions", lambda *_: Check("versions", "ok", ""))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        shown = CliRunner().invoke(app, ["doctor", "--port", str(port)])
    assert shown.exit_code == 1
    assert [line for line in lines(shown) if line.startswith("fails")] == [
        f"fails    port         {port} is in use: stop its process, or raycache serve --port {port + 1}"
    ]


def test_nothing_that_fails_is_exit_code_0(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "all_checks", lambda port: [Check("a", "ok", "x"), Check("b", "warning", "do y")])
    shown = CliRunner().invoke(app, ["doctor"])
    assert (shown.exit_code, len(lines(shown))) == (0, 2)


@pytest.mark.parametrize(
    ("there", "state", "told"),
    [
        ({"torch": "2.13.0+cu128", "rich": "15.0.0"}, "ok", "2 packages"),
        ({"torch": "2.12.0", "rich": "15.0.0"}, "warning", "torch 2.12.0 (tested with 2.13.0)"),
        ({"torch": "2.0.0", "rich": "15.0.0"}, "fails", "torch 2.0.0, wanted >=2.9"),
        ({"torch": "2.13.0"}, "fails", "rich missing, wanted >=13"),
    ],
)
def test_versions(there: dict[str, str], state: str, told: str):
    wanted = [Requirement("torch>=2.9"), Requirement("rich>=13")]
    check = checks.judged_versions(wanted, {"torch": "2.13.0", "rich": "15.0.0"}, there.get)
    assert check.state == state
    assert told in check.told


def test_the_tested_versions_come_with_the_package():
    assert checks._tested()["torch"].count(".") == 2


@pytest.mark.parametrize(
    ("check", "state", "told"),
    [
        (checks.judged_gpus(["NVIDIA L20 (48 GB)"], driver=True, build="12.8"), "ok", "L20"),
        (checks.judged_gpus([], driver=False, build=None), "warning", "`laptop` and `laptop_two_ranks` run on the CPU"),
        (checks.judged_gpus([], driver=True, build=None), "fails", "no CUDA"),
        (checks.judged_gpus([], driver=True, build="12.8"), "fails", "nvidia-smi"),
        (checks.judged_shared_memory(None), "warning", "/tmp"),
        (checks.judged_shared_memory(64 << 20), "warning", "--shm-size"),
        (checks.judged_shared_memory(8 * GB), "ok", "8.0 GB"),
        (checks.judged_files(resource.RLIM_INFINITY), "ok", "unlimited"),
        (checks.judged_files(256), "fails", "ulimit"),
        (checks.judged_files(1024), "warning", "ulimit"),
        (checks.judged_files(65536), "ok", "65536"),
        (checks.judged_disk("disk", Path("/m"), 100 * GB, 40 * GB), "ok", "100 GB"),
        (checks.judged_disk("disk", Path("/m"), 10 * GB, 40 * GB), "warning", "HF_HOME"),
        (checks.judged_disk("disk", Path("/m"), 10, 40 * GB), "fails", "free some space"),
        (checks.judged_disk("disk", Path("/m"), None, 40 * GB), "fails", "/m"),
        (checks.judged_port(8000, taken=True, ours=True), "ok", "raycache"),
    ],
)
def test_what_is_judged(check: Check, state: str, told: str):
    assert check.state == state
    assert told in check.told
