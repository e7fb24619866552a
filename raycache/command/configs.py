"""Configurations by name: installed with the package, or files."""

from __future__ import annotations

import difflib
from pathlib import Path

__all__ = ["UnknownConfig", "config_names", "config_title", "find_config"]

#: In a checkout a link to `serve_configs/`; in a wheel a real folder.
_FOLDER = Path(__file__).parents[1] / "configs"
#: Suffix added to a short name without a file: `laptop` means `laptop_dbcache`.
_USUAL = "_dbcache"


class UnknownConfig(ValueError):
    """No such configuration; the message lists the existing ones."""


def config_names() -> list[str]:
    """Names of all configurations in the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find_config(name: str) -> Path:
    """The file for ``name``: a path itself, else ``NAME`` or ``NAME_dbcache`` of the package.

    Raises:
        UnknownConfig: there is none.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if path.is_file():
            return path
        if "/" in name:
            raise UnknownConfig(f"there is no file {path}; `raycache config list` shows the names of bundled ones")
    stem = name.removesuffix(".yaml").removesuffix(".yml").replace("-", "_")
    names = config_names()
    for whole in (stem, stem + _USUAL):
        if whole in names:
            return _FOLDER / f"{whole}.yaml"
    if not names:
        raise UnknownConfig(f"{_FOLDER} has no configurations: reinstall raycache, or give a file")
    near = difflib.get_close_matches(stem, [*names, *(one.removesuffix(_USUAL) for one in names)], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownConfig(f"there is no configuration {name!r}; {hint}Existing: {', '.join(names)}; or give a file")


def config_title(path: Path) -> str:
    """The first sentence of the comment at the top of a configuration."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).partition(". ")[0].rstrip(".")
