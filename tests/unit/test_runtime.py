"""What `pip install raycache` brings is enough for the service: tests' and tools' packages are in extras."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: What no service starts, each with the extra that it needs besides.
TOOLS = {
    "raycache/tune": "tune",
    "raycache/demo/training": "demo",
    "raycache/demo/evaluate.py": "demo",
    "raycache/testing": "test",
    "raycache/worker/lora_": "lora",
    "raycache/quantize.py": "quant",
    "raycache/models/quantization.py": "quant",
    "raycache/reference.py": "test",  # writes our documents' tables
}
FILES = sorted(path for package in ("raycache", "cache_core") for path in (ROOT / package).rglob("*.py"))


@functools.cache
def brought(*requirements: str) -> set[str]:
    """Names of all distributions that come with ``requirements``, as far as they are installed here."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        for asked in ("", *wanted.extras):
            key = canonicalize_name(wanted.name), asked
            if key in found:
                continue
            try:
                needs = distribution(wanted.name).requires or []
            except PackageNotFoundError:
                continue
            found.add(key)
            waiting += [(Requirement(text), asked) for text in needs]
    return {name for name, _ in found}


#: Ray has some packages inside itself, and puts them on the path when it is imported.
VENDORED = {
    canonicalize_name(found.name)
    for found in distributions(path=[str(distribution("ray").locate_file("ray/thirdparty_files"))])
}
RUNTIME = brought(*PROJECT["dependencies"]) | VENDORED
OWNERS = {module: {canonicalize_name(owner) for owner in owners} for module, owners in packages_distributions().items()}


def imported(path: Path) -> Iterator[str]:
    """Top-level packages of others that a file imports, wherever in it that happens."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from ({name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"raycache", "cache_core"})


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_is_installed_with_it(path: Path):
    name = str(path.relative_to(ROOT))
    extra = next((extra for tool, extra in TOOLS.items() if name.startswith(tool)), None)
    there = RUNTIME | brought(*(PROJECT["optional-dependencies"][extra] if extra else []))
    for package in imported(path):
        assert OWNERS.get(package, set()) & there, f"{package} is not in pyproject.toml's dependencies"


def test_what_only_tools_need_is_not_brought():
    assert {"torch", "ray", "starlette", "scipy"} <= RUNTIME
    only = {"scikit-image", "matplotlib", "locust", "pytest", "hypothesis", "cache-dit", "openai", "ruff", "mypy"}
    assert not RUNTIME & only


#: Finders that find nothing of what is hidden, as if it were not installed.
HIDE = """
import sys
class Hide:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hide, sys.meta_path)
"""
STARTS = """
import raycache.app, raycache.front, raycache.worker.rank, raycache.worker.context_parallel, raycache.demo.family
import raycache.demo.noise, raycache.demo.words, scipy.optimize
"""


@pytest.mark.slow
def test_the_service_starts_with_nothing_else():
    """The builder, the front, and what a rank imports, where every other package that is installed here is hidden."""
    hidden = {module for module, owners in OWNERS.items() if not owners & RUNTIME} - {"raycache", "cache_core"}
    assert {"skimage", "matplotlib", "pytest", "locust"} <= hidden
    code = HIDE.replace("{hidden}", repr(hidden)) + STARTS
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
