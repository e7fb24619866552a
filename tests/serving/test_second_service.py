"""A second `serve run` on a port that is taken: it goes, says who is there, and keeps no connection from the first."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from raycache.testing.inject import wait_for
from raycache.testing.serve_run import serve_run

LAPTOP = Path(__file__).parents[2] / "serve_configs" / "laptop_dbcache.yaml"


def test_it_refuses_and_names_the_first(http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")  # a Ray of its own, whatever else runs on this machine
    config = yaml.safe_load(LAPTOP.read_text())
    port = config["http_options"]["port"] = urlsplit(http).port
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "log"
    with serve_run(tmp_path / "second.yaml", log) as second:
        wait_for(lambda: second.poll() is not None, 240)
    told = log.read_text(errors="replace")
    assert f"port {port} is in use" in told, told[-3000:]
    assert "ProxyActor" in told, "who is there"
    assert second.returncode != 0
    for _ in range(20):  # each a connection of its own, of which half would go to the second
        assert httpx.get(f"{http}/-/healthz").status_code == 200
