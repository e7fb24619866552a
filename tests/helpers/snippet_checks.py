"""Checks of code blocks without running them: shell commands, YAML of settings, files of keys.

Each check raises AssertionError or the parser's own error; an unknown kind of block is also an error.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import yaml
from ray.serve.schema import TracingConfig
from typer.main import get_command

from raycache.command.main import app
from raycache.ingress.api import build_http_app
from raycache.ingress.auth import read_keys
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.video_bodies import VideoBody
from raycache.settings import AppSettings, ServiceSettings
from tests.helpers.openai_surface import Service
from tests.helpers.snippets import ROOT, check_options, commands

__all__ = ["check_keys", "check_settings", "check_shell"]

BODIES = {"/v1/images/generations": ImagesBody, "/v1/videos": VideoBody}
#: `raycache` passes these to a module's main.
TOOLS = {"tune": "raycache.tune", "quantize": "raycache.quantize"}
#: The module with a package's main.
MAINS = {"raycache.tune": "raycache.tune.command", "benchmarks.gpu": "benchmarks.gpu.__main__"}


def check_shell(code: str) -> None:
    """Check programs, files, options, addresses and bodies of each command."""
    for words in commands(re.sub(r"<[^>]*>", "X", code)):
        program = words[0].removeprefix(".venv/bin/")
        assert program in PROGRAMS, f"nobody checks `{program}`: see tests/helpers/snippet_checks.py"
        PROGRAMS[program](words[1:])


def check_settings(code: str) -> None:
    """Check settings: of several applications, of one, or a part of one."""
    document = yaml.safe_load(code)
    if "tracing_config" in document:
        TracingConfig.model_validate(document.pop("tracing_config"))
    parts = document.pop("applications", [document])
    for part in parts:
        if "args" in part:
            ServiceSettings.model_validate(part["args"])
        for deployment in part.get("deployments", []):
            assert deployment.keys() <= {"name", "num_replicas", "user_config"}
            assert deployment["name"].partition("-")[0] == "Engine"
            _some({}).policy.changed(deployment.get("user_config", {}))
        rest = {name: value for name, value in part.items() if name not in _APPLICATION}
        _some(rest)


_APPLICATION = {"name", "route_prefix", "import_path", "args", "deployments"}


def _some(settings: dict[str, Any]) -> AppSettings:
    return AppSettings.model_validate({"model": {"path": "demo"}, **settings})


def check_keys(code: str, folder: Path) -> None:
    """Check a file of keys, each with a name."""
    file = folder / "keys"
    file.write_text(code)
    assert all(not key.name.startswith("key-") for key in read_keys(file))


def _curl(words: list[str]) -> None:
    address = next(word for word in words if word.startswith("localhost:8000/"))
    path = address.removeprefix("localhost:8000").partition("?")[0]
    given = {option: words[at + 1] for at, option in enumerate(words) if option in ("-d", "-X")}
    method = given.get("-X", "POST" if {"-d", "-F"} & set(words) else "GET")
    methods = [there for route, there in ROUTES.items() if re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), path)]
    assert any(method.lower() in there for there in methods), f"{method} {path}"
    if "-d" in given:
        BODIES[path].model_validate(json.loads(given["-d"]))


#: Methods by path.
ROUTES = build_http_app(Service()).openapi()["paths"]


def _make(words: list[str]) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), words


def _raycache(words: list[str]) -> None:
    name, *rest = words
    group = get_command(app)
    if name in TOOLS:
        return _main_of(TOOLS[name], rest)
    assert name in group.commands, name
    _parsed(group.commands[name], rest)


def _python(words: list[str]) -> None:
    flag, module, *rest = words
    assert flag == "-m"
    _main_of(module, rest)


def _main_of(module: str, words: list[str]) -> None:
    if module.startswith("loadtests."):
        return check_options(module, words)  # locust patches the sockets of the whole process
    alone = typer.Typer(add_completion=False)
    alone.command()(importlib.import_module(MAINS.get(module, module)).main)
    _parsed(get_command(alone), words)


def _parsed(command: Any, words: list[str]) -> None:
    try:
        command.make_context("it", list(words)).close()
    except Exception as error:  # typer contains its own click, whose errors are private
        raise AssertionError(f"{words}: {error}") from error


def _files(words: list[str]) -> None:
    """Check that each named file of the repository exists."""
    named = [word for word in words if word.startswith(("deploy/", "serve_configs/"))]
    assert [name for name in named if not (ROOT / name).is_file()] == []


def _pip(words: list[str]) -> None:
    assert words == ["install", "raycache-*.whl"]


def _export(words: list[str]) -> None:
    """Check a variable of Ray that names one of our functions."""
    name, _, value = words[0].partition("=")
    assert name == "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    module, _, function = value.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    **{"curl": _curl, "make": _make, "raycache": _raycache, "python": _python, "pip": _pip, "export": _export},
    **dict.fromkeys(("docker", "kubectl", "serve"), _files),
}
