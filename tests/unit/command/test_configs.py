"""Which file a configuration's name means, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from raycache.command.configs import UnknownConfig, config_names, config_title, find_config
from raycache.command.main import app

FOLDER = Path(__file__).parents[3] / "serve_configs"


def test_all_of_the_repository_are_in_the_package():
    assert config_names() == sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", ["flux", "flux_dbcache", "flux-dbcache", "flux_dbcache.yaml"])
def test_short_names_mean_the_usual_file(name: str):
    assert find_config(name).read_text() == (FOLDER / "flux_dbcache.yaml").read_text()


def test_laptop_is_there_whatever_its_file_is_called():
    config = yaml.safe_load(find_config("laptop").read_text())
    assert config["applications"][0]["args"]["model"]["path"] == "demo"


def test_a_file_of_ones_own_goes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("flux_dbcache.yaml").write_text("mine: 1")
    assert find_config("flux_dbcache.yaml") == Path("flux_dbcache.yaml")
    assert find_config("flux_dbcache") != Path("flux_dbcache.yaml")


@pytest.mark.parametrize(("name", "told"), [("lpatop", "'laptop'"), ("", "flux_dbcache"), ("./flux.yaml", "no file")])
def test_an_unknown_name_is_told_with_what_would_be_right(name: str, told: str):
    with pytest.raises(UnknownConfig, match=told):
        find_config(name)


def test_every_configuration_says_what_it_is():
    for name in config_names():
        assert len(config_title(find_config(name))) > 10, name


def test_show_prints_the_file_as_it_is():
    shown = CliRunner().invoke(app, ["config", "show", "flux"])
    assert (shown.exit_code, shown.stdout) == (0, (FOLDER / "flux_dbcache.yaml").read_text())
    assert CliRunner().invoke(app, ["config", "show", "nothing"]).exit_code == 2
