"""The rooms of `raycache`, and who may know whom: imports point down only, and only ranks load torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What every room may use: facts, files and words that all processes share.
SHARED = {"protocol", "presets", "settings", "metrics", "logs", "tracing", "ray_errors", "rebuilds", "text_files"}
SHARED |= {"limits", "size", "engine_settings", "front_settings", "model_names", "store_settings", "lora_settings"}
SHARED |= {"policy", "quantization", "quiet"}
SHARED |= {"store_metrics"}
#: Each room, and what it may import besides itself. Whoever is in no list may be imported by the builder alone.
MAY_IMPORT = {
    "app": {"dry_run", "ingress", "store", "engine", "gang", "cluster", *SHARED},
    "dry_run": {"ingress", "store", "models", "cluster", *SHARED},
    "reference": {"models", "worker", "testing", *SHARED},  # tables of all registries
    "front": {"protocol", "limits"},
    "ingress": {"front", "cluster", *SHARED},  # never an engine, a gang, a rank: it has a handle
    "store": {"ingress", "cluster", *SHARED},  # asks engines as an ingress does
    "engine": {"gang", "models", *SHARED},  # the family's words on a request
    "gang": {"worker", *SHARED},
    "worker": {"models", *SHARED},
    "models": SHARED,  # models of this project stand above their family: the registry has their names
    "cluster": {"ray_errors"},
    "demo": {"models", "protocol", "quiet", "size"},
    "tune": {"command", "demo", "models", *SHARED},
    "quantize": {"demo", "models", *SHARED},
    # Tools with more to import are run by their name.
    "command": {"__init__", "demo", "front", "models", "yaml_files", *SHARED},
    "__main__": {"command"},
    "testing": {"demo", "worker", "protocol"},
    "__init__": {"protocol"},
    "metrics": {"metric_specs", "protocol", "store_metrics"},
    "store_metrics": {"metric_specs", "protocol"},
    "logs": {"protocol", "front_settings"},
    "tracing": {"protocol"},
    "protocol": {"store_settings", "limits", "model_names", "policy", "settings", "presets", "quantization", "size"},
    "policy": {"limits", "presets", "strict", "text_files"},
    "settings": {"engine_settings", "filling", "front_settings", "limits", "lora_settings", "model_names", "policy"}
    | {"parallel_settings", "presets", "quantization", "size", "store_settings", "strict", "text_files"},
    "engine_settings": {"strict"},
    "front_settings": {"origins", "strict"},
    "lora_settings": {"strict"},
    "store_settings": {"strict"},
    "presets": {"quantization", "yaml_files"},
    "limits": {"size", "strict"},
    "parallel_settings": {"strict"},
    "strict": {"text_files"},
    "yaml_files": {"text_files"},
}


def room(path: Path) -> str:
    """The folder in `raycache` that a file is in, or its own name."""
    parts = path.relative_to(ROOT / "raycache").with_suffix("").parts
    return parts[0]


def imported(path: Path, package: str) -> Iterator[str]:
    """Modules of ``package`` that a file imports, wherever in it that happens."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] == package)


FILES = sorted((ROOT / "raycache").rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path: Path):
    own = room(path)
    for name in imported(path, "raycache"):
        other = name.split(".")[1]
        if (ROOT / "raycache" / other).is_dir() or (ROOT / "raycache" / f"{other}.py").is_file():
            assert other == own or other in MAY_IMPORT.get(own, set()), f"{own} imports {name}"


#: What only ranks need: each takes a good part of a second to import, and most of them bring torch.
HEAVY = {"torch", "diffusers", "transformers", "peft", "torchao", "accelerate", "scipy"}
WITHOUT = "raycache.app, raycache.front, raycache.ingress.ingress, raycache.engine.engine, raycache.store.store"


@pytest.mark.slow
def test_all_but_ranks_start_without_what_ranks_import():
    """It takes seconds to import, in which requests would wait for an ingress that is not there."""
    code = f"import {WITHOUT}, sys; print(*({HEAVY!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.split() == []


def test_the_arrows_make_no_circle():
    left = {name: set(others) for name, others in MAY_IMPORT.items()}
    while left:
        lowest = [name for name, others in left.items() if not others & left.keys()]
        assert lowest, f"a circle among {sorted(left)}"
        for name in lowest:
            del left[name]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["raycache", "cache_core"])
def test_a_package_knows_nothing_above_it(folder: str):
    above = {"tests", "benchmarks", "loadtests"} | ({"raycache"} if folder == "cache_core" else set())
    for path in (ROOT / folder).rglob("*.py"):
        for package in above:
            assert not list(imported(path, package)), path


def test_policies_stand_above_the_session_and_below_its_opening():
    """A method knows the record, the blocks and the sums; only the opening chooses one."""
    for path in (ROOT / "cache_core").glob("*.py"):
        knows = {name.split(".")[1] for name in imported(path, "cache_core")} & {"policies"}
        assert not knows or path.stem in {"opening", "__init__"}, path
    for path in (ROOT / "cache_core" / "policies").glob("*.py"):
        assert not {name.split(".")[1] for name in imported(path, "cache_core")} & {"opening", "pipe", "hooks"}, path


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["raycache", "cache_core", "benchmarks", "loadtests"])
def test_a_function_fits_on_a_screen(folder: str):
    """How branched it may be is told to the linter, which cannot count lines."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 50, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines, at most 50 are right"


@pytest.mark.parametrize("package", ["cache_core", "raycache"])
def test_what_a_package_offers_is_there(package: str):
    """Names that are imported when they are first asked for, too."""
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_a_name_has_one_import_path():
    """Modules offer what they define; only a package's front and the published `cache_factory` hand names on."""
    for path in [*FILES, *(ROOT / "cache_core").rglob("*.py")]:
        if path.name in {"__init__.py", "cache_factory.py"}:
            continue
        tree = ast.parse(path.read_text())
        handed_on = {
            alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        offers = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AugAssign) and "__all__" in ast.unparse(node)
        ]
        for names in offers:
            assert not handed_on & set(ast.literal_eval(names)), path
