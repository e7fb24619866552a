"""``raycache serve``: `serve run` on a configuration, with its log in a file and a short status on the screen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycache.command.configs import UnknownConfig, find_config
from raycache.command.ports import problem_with
from raycache.command.telling import fail, told

if TYPE_CHECKING:
    from raycache.command.serve_config import Service
    from raycache.command.serve_log import ServeLog

__all__ = ["serve"]

_POLL_S = 0.5
#: Seconds after the engines' own time to drain before processes that have not stopped are killed.
_STOP_S = 30.0


def serve(
    config: Annotated[str, typer.Argument(help="A name of `raycache config list`, or a file.")] = "laptop",
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=1, max=65535)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 means all.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks of each engine: GPUs, or processes on a CPU.", min=1)] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, `demo` or `noise`.")] = None,
    preset: Annotated[str | None, typer.Option(help="Quality of requests that name none.")] = None,
    log: Annotated[Path | None, typer.Option(help="File for the output of Ray and Serve.")] = None,
) -> None:
    """Serve images until Ctrl-C. In production `serve run` does the same with a file of your own."""
    from raycache.command.serve_config import Changes, read_service

    try:
        service = read_service(find_config(config), Changes(host, port, ranks, model, preset))
    except UnknownConfig as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or config} cannot be read: {error.strerror or error}")
    except ValueError as error:
        fail(str(error))
    if problem := problem_with(service.host, service.port):
        fail(problem)
    raise typer.Exit(_run(service, log))


def _run(service: Service, log: Path | None) -> int:
    """Run it until it ends or is stopped; returns the exit code."""
    import yaml

    from raycache.command.serve_log import ServeLog

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A shell may make background jobs ignore SIGINT.
        signal.signal(number, signal.default_int_handler)
    path = log or _state_folder() / f"serve-{service.port}.log"
    run = path.with_suffix(".yaml") if path.suffix == ".log" else path.with_name(f"{path.name}.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        run.write_text(yaml.safe_dump(service.config, sort_keys=False))
        output = path.open("wb")
    except OSError as error:
        fail(f"{error.filename} cannot be written: {error.strerror}; set another file with --log")
    with output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(run.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches it only through this process
        )
    followed = ServeLog(path)
    try:
        code = _watch(service, process, followed)
    except KeyboardInterrupt:
        code = 0
    finally:
        _stop(service, process)
    return code


def _environment() -> dict[str, str]:
    """Environment of the children: the user's, with what they also need."""
    from raycache.front import CALLBACK, VARIABLE

    usual = {
        # Another Ray on this machine may belong to another service, and must not be stopped.
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        VARIABLE: CALLBACK,
    }
    return {**usual, **os.environ}


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "raycache"


def _watch(service: Service, process: subprocess.Popen[bytes], log: ServeLog) -> int:
    """Watch the service until it ends by itself; returns the exit code."""
    console, began = told(), time.monotonic()
    console.print(f"log: {log.path}", markup=False)
    with console.status("starting Ray") as status:
        while not (state := _readiness(service)).get("ready"):
            log.read()
            reason = log.failure or _hopeless(state)
            if reason or process.poll() is not None:
                told_of = reason or f"`serve run` ended with {process.returncode}:\n{log.tail()}"
                console.print(f"Not served: {told_of}", style="red", markup=False)
                return 1
            status.update(f"{log.stage} ({time.monotonic() - began:.0f} s)")
            time.sleep(_POLL_S)
    console.print(_welcome(service, time.monotonic() - began), markup=False)
    code = process.wait()
    console.print(f"The service ended by itself with {code}:\n{log.tail()}", style="red", markup=False)
    return 1


def _readiness(service: Service) -> dict[str, Any]:
    """The answer of `/readyz`; empty while there is none."""
    import httpx

    try:
        answer = httpx.get(f"{service.url}/readyz", timeout=5)
        found = answer.json()
    except (httpx.HTTPError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hopeless(state: dict[str, Any]) -> str | None:
    """What this machine lacks: this command's own Ray gets no other nodes."""
    reason = state.get("reason")
    lonely = os.environ.get("RAY_ADDRESS", "local") == "local"
    return str(reason) if reason not in (None, "starting", "asleep") and lonely else None


def _welcome(service: Service, seconds: float) -> str:
    import httpx

    sizes = service.settings.engines[0].warmup
    size = f', "size": "{sizes[0].size}"' if sizes else ""
    prompt = "a red circle left of a blue square"
    lines = [f"Serving at {service.url} after {seconds:.0f} s; Ctrl-C stops it. An image, from another shell:", ""]
    key = ' -H "authorization: Bearer $KEY"' if service.settings.ingress.api_keys_file else ""
    lines += [
        f"  curl {service.url}/v1/images/generations -o image.png{key} \\",
        "       -H 'content-type: application/json' -H 'accept: image/png' \\",
        f'       -d \'{{"prompt": "{prompt}"{size}, "seed": 7}}\'',
        "",
    ]
    try:
        page = httpx.get(f"{service.url}/", timeout=5)
        if page.status_code == 200 and "html" in page.headers.get("content-type", ""):
            lines += [f"or in a browser: {service.url}/", ""]
    except httpx.HTTPError:
        pass  # it is only a hint
    return "\n".join(lines)


def _stop(service: Service, process: subprocess.Popen[bytes]) -> None:
    """Stop only the processes started here."""
    if process.poll() is not None:
        return
    console = told()
    patience = _STOP_S + max(one.reliability.drain_timeout_s for one in service.settings.engines)
    process.send_signal(signal.SIGINT)
    try:
        with console.status("stopping; Ctrl-C again does not wait for jobs"):
            process.wait(patience)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    console.print("stopped")
