"""``python -m raycache.quantize SOURCE FOLDER --quantization ...``: a quantized copy of a model, for ranks.

Parts are quantized one after the other, so that only the largest must fit into memory; others are copied as they are.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from raycache.demo.built import build_once
from raycache.models.folder import parts_classed, pipeline_class
from raycache.models.quantization import CannotQuantize, check_quantized, configs_of, refuse_what_does_not_fit
from raycache.models.quantized_folder import quantizations_told
from raycache.models.registry import family_of
from raycache.models.source import ModelNotFound, prepare_model
from raycache.protocol.capabilities import ModelKind
from raycache.quantization import QUANTIZATIONS
from raycache.quiet import be_quiet
from raycache.settings import ModelSettings

_INDICES = ("model_index.json", "modular_model_index.json")


def main(
    source: Annotated[str, typer.Argument(help="Folder in diffusers' layout, hub id, `demo` or `noise`.")],
    folder: Annotated[Path, typer.Argument(help="Where the copy goes; it appears when it is whole.")],
    quantization: Annotated[str, typer.Option(help="int8_weight, int8, fp8_weight or fp8.")],
    text_encoder: Annotated[bool, typer.Option(help="The weights of the text encoders, too.")] = False,
    revision: Annotated[str | None, typer.Option(help="Hub revision, for hub ids.")] = None,
    local_files_only: Annotated[bool, typer.Option(help="Never ask the hub.")] = False,
) -> None:
    """Write a copy of SOURCE with quantized weights into FOLDER, which settings then name as model.path."""
    be_quiet()
    settings = read_settings(source, quantization, text_encoder, revision, local_files_only)
    console = Console(stderr=True)
    try:
        found, kind = prepare_model(settings)
        before, after = quantize(settings, Path(found), folder, kind, console)
    except (CannotQuantize, ModelNotFound, FileExistsError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    encoder = "\n  quantize_text_encoder: true" if text_encoder else ""
    console.print(f"{folder}: {after / 1e9:.2f} GB, of {before / 1e9:.2f} GB. Serve it with")
    print(f"model:\n  path: {folder.resolve()}\n  quantization: {quantization}{encoder}")


def read_settings(
    source: str, quantization: str, text_encoder: bool, revision: str | None, local_files_only: bool
) -> ModelSettings:
    """The settings of a service for the source.

    Raises:
        typer.BadParameter: there is no such quantization.
    """
    legal = ", ".join(QUANTIZATIONS[1:])
    if quantization not in QUANTIZATIONS[1:]:
        raise typer.BadParameter(f"{quantization!r} is not one of {legal}", param_hint="--quantization")
    try:
        return ModelSettings.model_validate(
            {
                "path": source,
                "quantization": quantization,
                "quantize_text_encoder": text_encoder,
                "revision": revision,
                "local_files_only": local_files_only,
            }
        )
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"]) from None


def quantize(settings: ModelSettings, source: Path, folder: Path, kind: ModelKind, console: Console) -> tuple[int, int]:
    """Write the copy, or return immediately if the same copy exists already.

    Returns:
        Bytes of the parts of ``source``, and of those of ``folder``.

    Raises:
        CannotQuantize: the settings do not fit the source or this machine, or it is quantized already.
        FileExistsError: ``folder`` contains something else.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refuse_what_does_not_fit(settings, source, device)
    done = [part for part, told in quantizations_told(source).items() if told != "none"]
    if done:
        raise CannotQuantize(f"{source} is quantized already ({', '.join(done)}); give its original folder")
    # `kind` is that of the source: the service reads it here.
    record = {
        "kind": kind,
        "source": settings.path,
        "revision": settings.revision,
        "quantization": settings.quantization,
        "text_encoder": settings.quantize_text_encoder,
    }
    build_once(folder, record, lambda to: _write(settings, source, to, console))
    return _bytes(source, source), _bytes(source, folder)


def _write(settings: ModelSettings, source: Path, to: Path, console: Console) -> None:
    family = family_of(pipeline_class(source))
    configs = configs_of(settings, family, source)
    for name in _INDICES:
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=_bytes(source, source))
        for part, name in parts_classed(source).items():
            if not (source / part).is_dir():
                continue  # named but missing: optional, or from another repository
            bar.update(task, description=part)
            if part in configs:
                model = _loaded(name, source / part, configs[part])
                if not part.startswith("text_encoder"):
                    check_quantized({part: model}, family)
                # In one file: readers should not have to find out which of several files has a part of a layer.
                model.save_pretrained(to / part, max_shard_size="1000GB")
                del model
                gc.collect()
            else:
                shutil.copytree(source / part, to / part)
            bar.advance(task, _size(source / part))


def _loaded(name: str, part: Path, config: Any) -> Any:
    """Load a model of a pipeline, quantized."""
    import diffusers
    import transformers

    of = getattr(diffusers, name, None) or getattr(transformers, name)
    return of.from_pretrained(str(part), quantization_config=config, dtype=torch.bfloat16)


def _bytes(source: Path, folder: Path) -> int:
    """Bytes of all parts in the source's index."""
    return sum(_size(folder / part) for part in parts_classed(source))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    typer.run(main)
