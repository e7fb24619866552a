"""The checks of ``raycache doctor``."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = [
    "Check",
    "all_checks",
    "judged_disk",
    "judged_files",
    "judged_gpus",
    "judged_port",
    "judged_shared_memory",
    "judged_versions",
]

_GB = 1 << 30
_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
#: Bytes: NCCL and Ray's object store share it; the 64 MB of containers are too little for either.
_SHARED_MEMORY = 1 * _GB
#: Bytes free: FLUX.1-dev is 34 GB.
_MODEL_DISK, _LEAST_DISK = 40 * _GB, 1 * _GB
#: Open files: Ray opens some for each actor, and recommends 65536.
_FILES, _LEAST_FILES = 4096, 1024


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        state: ``fails``: serving would not work; ``warning``: something that some configurations need.
        told: what was found and, unless it is ok, what to do.
    """

    name: str
    state: Literal["ok", "warning", "fails"]
    told: str


def all_checks(port: int) -> Iterator[Check]:
    """All checks, in the order in which to fix them."""
    yield _python()
    yield judged_versions(_wanted(), _tested(), _installed)
    yield _package()
    yield from _gpus()
    yield judged_shared_memory(_free("/dev/shm"))
    yield judged_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield judged_disk("disk, models", _models_folder(), _free(_models_folder()), _MODEL_DISK)
    yield judged_disk("disk, Ray", Path(tempfile.gettempdir()), _free(tempfile.gettempdir()), 5 * _GB)
    yield _token()
    yield _port(port)


def _python() -> Check:
    told = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("Python", "ok", told)
    return Check("Python", "fails", f"{told}: install Python 3.11 or 3.12 and make a virtual environment with it")


def _wanted() -> list[Requirement]:
    """The package's requirements, without extras; empty if it is run from a folder without installation."""
    try:
        told = [Requirement(text) for text in requires("raycache") or []]
    except PackageNotFoundError:
        return []
    return [one for one in told if one.marker is None or one.marker.evaluate({"extra": ""})]


def _tested() -> dict[str, str]:
    """Versions that the package was tested with, by distribution."""
    try:
        lines = _CONSTRAINTS.read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): number for name, number in pairs}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def judged_versions(wanted: list[Requirement], tested: dict[str, str], installed: Callable[[str], str | None]) -> Check:
    """Compare installed versions with those required and those tested.

    Args:
        installed: returns the version of a distribution by its name, None if it is missing.
    """
    wrong, other = [], []
    for one in wanted:
        there = installed(one.name)
        if there is None or not one.specifier.contains(there, prereleases=True):
            wrong.append(f"{one.name} {there or 'missing'}, wanted {one.specifier or 'any'}")
        elif (known := tested.get(canonicalize_name(one.name))) and there.partition("+")[0] != known:
            other.append(f"{one.name} {there} (tested with {known})")
    if wrong:
        return Check("versions", "fails", f"{'; '.join(wrong)}: pip install --upgrade raycache")
    if other:
        return Check("versions", "warning", f"different from the tested ones: {', '.join(other)}")
    return Check("versions", "ok", f"{len(wanted)} packages as tested" if wanted else "run from its folder")


def _package() -> Check:
    from raycache.command.configs import config_names
    from raycache.demo import demo_model_path

    try:
        demo_model_path()
    except FileNotFoundError as error:
        return Check("package", "fails", str(error))
    if not config_names():
        return Check("package", "fails", "it has no configurations: reinstall raycache from its wheel")
    return Check("package", "ok", f"bundled model, {len(config_names())} configurations")


def _gpus() -> Iterator[Check]:
    from raycache.quiet import be_quiet

    be_quiet()
    try:
        import torch
    except ImportError as error:
        yield Check("GPUs", "fails", f"torch cannot be imported: {error}; reinstall it")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    told = [torch.cuda.get_device_properties(number) for number in range(count)]
    names = [f"{one.name} ({one.total_memory / _GB:.0f} GB)" for one in told]
    yield judged_gpus(names, driver=Path("/proc/driver/nvidia/version").exists(), build=torch.version.cuda)
    if count:
        nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
        number = ".".join(str(part) for part in torch.cuda.nccl.version()) if nccl else ""
        yield (
            Check("NCCL", "ok", number)
            if nccl
            else Check(
                "NCCL", "fails", "this build of torch has none, so ranks cannot share a model: install torch from PyPI"
            )
        )


def judged_gpus(names: list[str], driver: bool, build: str | None) -> Check:
    """Judge the GPUs that torch sees.

    Args:
        driver: whether NVIDIA's driver is installed.
        build: the CUDA version that torch was built for; None for a build without CUDA.
    """
    if names:
        return Check("GPUs", "ok", ", ".join(names))
    if driver and not build:
        return Check("GPUs", "fails", "this build of torch has no CUDA: pip install torch from PyPI's own index")
    if driver:
        return Check("GPUs", "fails", f"the driver is too old for CUDA {build}, or no GPU is visible: see nvidia-smi")
    return Check(
        "GPUs", "warning", "none: `laptop` and `laptop_two_ranks` run on the CPU, all other configurations need GPUs"
    )


def judged_shared_memory(free: int | None) -> Check:
    """Judge the free bytes in /dev/shm; None if it does not exist."""
    if free is None:
        return Check("/dev/shm", "warning", "not there; Ray uses /tmp, which is slower")
    told = f"{free / _GB:.1f} GB free"
    if free < _SHARED_MEMORY:
        return Check("/dev/shm", "warning", f"{told}: ranks and Ray need 1 GB; docker run --shm-size=8g")
    return Check("/dev/shm", "ok", told)


def judged_files(limit: int) -> Check:
    """Judge how many files a process may have open."""
    told = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    if told == "unlimited" or limit >= _FILES:
        return Check("open files", "ok", told)
    state: Literal["warning", "fails"] = "fails" if limit < _LEAST_FILES else "warning"
    return Check("open files", state, f"{told}: Ray needs more; ulimit -n 65536")


def judged_disk(name: str, folder: Path, free: int | None, wanted: int) -> Check:
    """Judge the free bytes at ``folder``; ``wanted`` are enough for all uses."""
    if free is None:
        return Check(name, "fails", f"{folder} cannot be read")
    told = f"{free / _GB:.0f} GB free at {folder}"
    if free < min(_LEAST_DISK, wanted):
        return Check(name, "fails", f"{told}: free some space")
    if free < wanted:
        return Check(
            name, "warning", f"{told}: {wanted / _GB:.0f} GB are for large models; free some space, or set HF_HOME"
        )
    return Check(name, "ok", told)


def _models_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _free(place: str | Path) -> int | None:
    """Bytes free there, or in the nearest folder above that exists."""
    path = Path(place)
    if path == Path("/dev/shm") and not path.exists():
        return None
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _token() -> Check:
    from huggingface_hub import get_token

    if get_token():
        return Check("hub token", "ok", "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "logged in")
    return Check("hub token", "warning", "none; gated models (FLUX.1-dev) need one: hf auth login, or HF_TOKEN")


def _port(port: int) -> Check:
    from raycache.command.asking import is_service
    from raycache.command.ports import answers

    taken = answers("127.0.0.1", port)
    return judged_port(port, taken, taken and is_service(f"http://127.0.0.1:{port}"))


def judged_port(port: int, taken: bool, ours: bool) -> Check:
    """Judge whether a service can listen there; ``ours``: a raycache service already does."""
    if ours:
        return Check("port", "ok", f"{port}: a raycache service is running and ready")
    if taken:
        return Check("port", "fails", f"{port} is in use: stop its process, or raycache serve --port {port + 1}")
    return Check("port", "ok", f"{port} is free")
