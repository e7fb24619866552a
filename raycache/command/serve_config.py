"""The configuration to serve, with the changes of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycache.presets import PRESET_NAMES, load_presets
from raycache.settings import ServiceSettings
from raycache.text_files import FileError
from raycache.yaml_files import load_yaml

__all__ = ["Changes", "Service", "read_service"]

_BUILD = "raycache.app:build"


@dataclass(frozen=True)
class Changes:
    """Changes of a configuration; None: unchanged.

    Attributes:
        model: folder, hub id, `demo` or `noise`.
        preset: the model's preset for requests without ``quality``.
    """

    host: str | None = None
    port: int | None = None
    ranks: int | None = None
    model: str | None = None
    preset: str | None = None


@dataclass(frozen=True)
class Service:
    """What `serve run` will run, and its address.

    Attributes:
        config: configuration for `serve run`.
        host: address and port to listen on.
        prefix: prefix of the application's paths, without a trailing slash.
        settings: settings of the application.
    """

    config: dict[str, Any]
    host: str
    port: int
    prefix: str
    settings: ServiceSettings

    @property
    def url(self) -> str:
        """Its address on this machine."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}{self.prefix}"


def read_service(path: Path, changes: Changes) -> Service:
    """The configuration in ``path``, changed, and checked as far as possible without Ray.

    Raises:
        FileError: an error in it, or in a change.
        OSError: the file cannot be read.
    """
    config = load_yaml(path, "Serve configuration")
    if not isinstance(config, dict):
        raise FileError(path, None, "not a Serve configuration: it must be a mapping with `applications`")
    application = _application(path, config)
    args = application.setdefault("args", {})
    options = config.setdefault("http_options", {})
    if not isinstance(args, dict) or not isinstance(options, dict):
        raise FileError(path, None, "`args` and `http_options` must be mappings")
    for name, value in (("host", changes.host), ("port", changes.port)):
        if value is not None:
            options[name] = value
    _change(path, args, changes)
    settings = _settings(path, args)
    port = options.get("port", 8000)
    if not isinstance(port, int) or not 0 < port < 65536:
        raise FileError(path, None, f"`http_options.port` must be a number from 1 to 65535, got {port!r}")
    prefix = str(application.get("route_prefix") or "/").rstrip("/")
    return Service(config, str(options.get("host") or "127.0.0.1"), port, prefix, settings)


def _application(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    applications = config.get("applications")
    for one in applications if isinstance(applications, list) else ():
        if isinstance(one, dict) and one.get("import_path") == _BUILD:
            return one
    raise FileError(path, None, f"none of its `applications` has `import_path: {_BUILD}`")


def _change(path: Path, args: dict[str, Any], changes: Changes) -> None:
    asked = [name for name in ("ranks", "model", "preset") if getattr(changes, name) is not None]
    if asked and "models" in args:
        raise FileError(path, None, f"it has several models, so `--{asked[0]}` is ambiguous; edit a copy of it")
    if changes.ranks is not None:
        args.setdefault("parallel", {})["ranks_per_replica"] = changes.ranks
    if changes.model is not None:
        args.setdefault("model", {})["path"] = changes.model
    if changes.preset is not None:
        args["cache"] = _preset(path, args, changes.preset)


def _preset(path: Path, args: dict[str, Any], name: str) -> dict[str, Any]:
    """The cache options of a preset of the model."""
    model = args.get("model", {})
    file = Path(model["presets"]) if model.get("presets") else None
    presets = load_presets(str(model.get("path", "")), file, model.get("quantization", "none")).presets
    known = [one for one in PRESET_NAMES if one in presets]
    if name not in known:
        raise FileError(path, None, f"its model has no preset {name!r}; existing: {', '.join(known) or 'none'}")
    return dict(presets[name].model_dump(mode="json"))


def _settings(path: Path, args: dict[str, Any]) -> ServiceSettings:
    try:
        return ServiceSettings.model_validate(args)
    except ValidationError as error:
        raise FileError(path, None, f"`args`: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    """The first few errors, each with its field."""
    told = []
    for item in error.errors(include_url=False)[:3]:
        reason = "unknown field" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        field = ".".join(str(part) for part in item["loc"])
        told.append(f"{field}: {reason}" if field else reason)
    return "; ".join(told)
