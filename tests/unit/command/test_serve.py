"""`raycache serve` before it starts anything: what it would run, and what it refuses; and how it reads the log."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raycache.command.configs import find_config
from raycache.command.main import app
from raycache.command.serve_config import Changes, read_service
from raycache.command.serve_log import ServeLog
from raycache.text_files import FileError


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments])


def test_options_change_the_configuration_and_nothing_else():
    path = find_config("laptop")
    service = read_service(path, Changes("0.0.0.0", 8123, 4, "noise", "exact"))
    wanted = yaml.safe_load(path.read_text())
    wanted["http_options"] = {"host": "0.0.0.0", "port": 8123}
    args = wanted["applications"][0]["args"]
    args["model"]["path"], args["parallel"]["ranks_per_replica"], args["cache"] = "noise", 4, {"type": "none"}
    assert service.config == wanted
    assert service.url == "http://127.0.0.1:8123"
    assert read_service(path, Changes()).config == yaml.safe_load(path.read_text())


def test_a_preset_is_the_models_own():
    service = read_service(find_config("laptop"), Changes(preset="fast"))
    presets = yaml.safe_load((Path(__file__).parents[3] / "raycache/presets/demo.yaml").read_text())["presets"]
    cache = service.config["applications"][0]["args"]["cache"]
    assert {name: cache[name] for name in presets["fast"]} == presets["fast"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "line 1"),
        ("a: 1", "import_path: raycache.app:build"),
        ("- 1", "mapping"),
        (
            "applications: [{import_path: 'raycache.app:build', args: {model: {path: demo}, modle: 1}}]",
            "modle: unknown field",
        ),
        (
            "http_options: {port: x}\napplications: [{import_path: 'raycache.app:build', args: {model: {path: demo}}}]",
            "port",
        ),
        ("applications: [{import_path: 'raycache.app:build', args: 7}]", "mappings"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path: Path, text: str, told: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = run(str(path))
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert told in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lpatop",), "'laptop'"),
        (("laptop", "--preset", "best"), "exact, high, balanced, fast"),
        (("flux_two_models", "--ranks", "2"), "several models"),
        (("./nothing.yaml",), "no file"),
    ],
)
def test_a_wrong_option_is_told_with_what_would_be_right(arguments: tuple[str, ...], told: str):
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run("--port", str(port))
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 is in use" in result.stderr


def test_a_host_that_is_not_here():
    result = run("--host", "192.0.2.77", "--port", "8765")
    assert result.exit_code == 2
    assert "--host" in result.stderr


def test_a_log_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = run("--port", str(port), "--log", str(tmp_path / "file" / "serve.log"))
    assert result.exit_code == 2
    assert "--log" in result.stderr


def test_models_with_presets_of_their_own_files(tmp_path: Path):
    config = yaml.safe_load(find_config("laptop").read_text())
    config["applications"][0]["args"]["model"]["presets"] = str(tmp_path / "none.yaml")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises((FileError, ValueError), match=r"none\.yaml"):
        read_service(tmp_path / "mine.yaml", Changes(preset="fast"))


def test_the_log_tells_stage_and_reason(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("")
    log = ServeLog(path)
    log.read()
    assert (log.stage, log.failure) == ("starting Ray", None)
    with path.open("a") as file:
        file.write("INFO \x1b[36mStarted a local Ray inst")
        file.flush()
        log.read()
        assert log.stage == "starting Ray", "half a line says nothing yet"
        file.write("ance\x1b[0m.\n(ServeController pid=1) ERROR -- Deploying app 'flux' failed with exception:\n")
        file.flush()
        log.read()
        assert log.stage == "starting Serve"
        assert log.failure is None, "the reason stands below"
        file.write("(ServeController pid=1) ValueError: no such thing\n")
    log.read()
    assert log.failure is not None
    assert log.failure.splitlines()[-1] == "ValueError: no such thing"


def test_what_the_builder_refuses_is_one_line(tmp_path: Path):
    path = tmp_path / "log"
    reason = "model.path '/x' is neither an existing folder nor a hub id"
    head = "(ServeController pid=1) Deploying app 'flux' failed with exception:\n"
    path.write_text(f"{head}(ServeController pid=1) this configuration cannot work and is not deployed: {reason}\n")
    log = ServeLog(path)
    log.read()
    assert log.failure == reason
