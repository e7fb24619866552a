"""The entry: light, and the same however it is called."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raycache
from raycache.command.main import app

ROOT = Path(__file__).parents[3]
#: Each takes a good part of the half second that `--help` may take, and torch several of them.
HEAVY = ("torch", "ray", "numpy", "diffusers", "transformers", "fastapi", "httpx", "PIL")
HELP = f"""
import json, sys
from raycache.command.main import app
app({{arguments}}, standalone_mode=False)
print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["draw", "--help"], ["config", "list"]])
def test_help_imports_nothing_heavy(arguments: list[str]):
    code = HELP.replace("{arguments}", repr(arguments))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(run.stderr) == []
    assert "Usage" in run.stdout or "laptop" in run.stdout


def test_the_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "raycache", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == f"raycache {raycache.__version__}\n"


def test_the_wheel_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EntryPoint("raycache", project["scripts"]["raycache"], "console_scripts").load() is app
    assert "version" in project["dynamic"], "raycache.__version__ is the only place that has it"


@pytest.mark.parametrize("tool", ["tune", "quantize"])
def test_tools_have_their_own_help(tool: str):
    shown = CliRunner().invoke(app, [tool, "--help"])
    assert shown.exit_code == 0
    assert "quantization" in shown.stdout
    assert f"raycache {tool}" in shown.stdout


def test_a_tool_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "raycache.tune.command", raising=False)
    monkeypatch.setitem(sys.modules, "raycache.tune.measures", None)
    monkeypatch.delitem(sys.modules, "raycache.tune.sweep", raising=False)
    shown = CliRunner().invoke(app, ["tune", "--help"])
    assert shown.exit_code == 2
    assert "pip install 'raycache[tune]'" in shown.stderr
