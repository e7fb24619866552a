"""The wheel alone, in an environment of its own and an empty folder: `raycache` draws, serves, stops what it began."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from raycache.testing.inject import wait_for

ROOT = Path(__file__).parents[2]
IMAGES = ("alone.png", "image.png", "there.png")
PROMPT = "a red circle left of a blue square"
#: What stands in the repository and is no part of the package.
NOT_COPIED = shutil.ignore_patterns(".*", "build", "*.egg-info", "docs", "tests", "runs", "site", "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel; what it depends on is the running environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    # Building leaves files beside the sources.
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=NOT_COPIED)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(folder / "source")], check=True)
    shutil.rmtree(folder / "source")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("raycache-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # Behind the environment's own packages; .pth files over there, as of an editable install, are not read.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of commands, where nothing is."""
    for name in ("PYTHONPATH", "RAY_ADDRESS", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def test_its_files_are_its_own(installed: Path, empty: Path):
    code = "import raycache, cache_core; print(raycache.__file__, cache_core.__file__)"
    found = subprocess.run([installed / "python", "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(Path(file).is_relative_to(installed.parent) for file in found.split())
    shown = subprocess.run([installed / "raycache", "config", "show", "laptop"], capture_output=True, check=True)
    assert shown.stdout.startswith(b"#")
    listed = subprocess.run([installed / "raycache", "config", "list"], capture_output=True, text=True, check=True)
    assert all(path.stem in listed.stdout for path in (ROOT / "serve_configs").glob("*.yaml"))


def test_it_draws_and_serves_the_same_image_and_stops(installed: Path, empty: Path):
    draw = [installed / "raycache", "draw", PROMPT, "--seed", "7"]
    alone = subprocess.run([*draw, "-o", "alone.png"], capture_output=True, text=True, check=True)
    assert not re.search(r"torchvision|torchao|deprecat|Warning|Loading", alone.stderr), alone.stderr
    with serving(installed, port := free_port()) as (process, told):
        said = told.read_text()
        curl = said[said.index("  curl ") :].partition("\n\n")[0]
        subprocess.run(["bash", "-c", curl], check=True, capture_output=True, timeout=200)
        there = subprocess.run(
            [*draw, "-o", "there.png", "--url", f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
        )
        assert "seed 7" in there.stderr
        again = [installed / "raycache", "serve", "laptop", "--port", str(port)]
        second = subprocess.run(again, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"port {port}" in second.stderr
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in one.name() for one in started)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    # Ray's own helpers end a moment after their driver.
    wait_for(lambda: not [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], 60)
    images = [np.asarray(Image.open(io.BytesIO(Path(name).read_bytes()))).astype(int) for name in IMAGES]
    assert {image.shape for image in images} == {(128, 128, 3)}
    # Ranks add up in another order.
    assert max(abs(image - images[0]).max() for image in images) <= 3
    assert images[0].std() > 20, "it has shapes"
    assert len(said.splitlines()) < 12, "Ray's log is in its file"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(installed: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`raycache serve laptop` once it says that it serves, and the file with what it says."""
    told = Path("told.txt").resolve()
    with told.open("wb") as output:
        command = [str(installed / "raycache"), "serve", "laptop", "--port", str(port)]
        process = subprocess.Popen(command, stderr=output, stdout=output, start_new_session=True)

    def ready() -> bool:
        assert process.poll() is None, told.read_text()
        return "Serving at" in told.read_text()

    try:
        wait_for(ready, 300)
        yield process, told
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
