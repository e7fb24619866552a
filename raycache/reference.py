"""The generated tables of the documents, from settings, metrics, modules and registries of models.

python -m raycache.reference docs/operating.md docs/requests.md docs/design.md docs/models.md README.md
rewrites the text between the markers.
"""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cache_core.supported import MODELS, unsupported_table
from raycache.metrics import SPECS
from raycache.models.registry import FAMILIES, family_of
from raycache.models.roads import ROADS
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.lora import LoraRequest
from raycache.quiet import be_quiet
from raycache.settings import ServiceSettings
from raycache.testing.tiny_models import TINY_FAMILIES
from raycache.worker.call_rows import STACKED

__all__ = ["metrics_table", "modules_table", "request_table", "service_table", "settings_table", "updated"]

#: Explained elsewhere: the options of the cache methods, and a LoRA.
_ELSEWHERE = {"cache", "lora"}
_ROOT = Path(__file__).parents[1]
#: Packages in the order of a request's path, then what all of them share, then tools.
_ROOMS = (
    *("raycache/front", "raycache/ingress", "raycache/ingress/routes"),
    *("raycache/store", "raycache/engine", "raycache/gang"),
    *("raycache/worker", "raycache/models", "raycache/protocol", "raycache/presets", "raycache/cluster", "raycache"),
    *(
        "raycache/command",
        "raycache/demo",
        "raycache/demo/training",
        "raycache/tune",
        "raycache/testing",
        "raycache/testing/tiny_models",
    ),
    *("cache_core", "cache_core/policies"),
)


def settings_table() -> str:
    """Every setting by its path in the YAML, with type, default and meaning, as Markdown."""
    rows = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += (
        f"| `{path}` | {kind} | {default} | {text} |" for path, kind, default, text in _fields(ServiceSettings, "")
    )
    return "\n".join(rows)


def request_table() -> str:
    """Every field of ``POST /v1/images/generations`` with type, default and meaning, as Markdown."""
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += (f"| `{path}` | {kind} | {default} | {text} |" for path, kind, default, text in _fields(ImagesBody, ""))
    return "\n".join(rows)


def metrics_table() -> str:
    """Every metric as it is scraped, with its kind, labels and meaning, as Markdown."""
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for spec in SPECS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `ray_{spec.name}` | {spec.kind.__name__.lower()} | {labels} | {spec.help} |")
    return "\n".join(rows)


def modules_table() -> str:
    """Every module of both packages with the first sentence of its docstring, as Markdown."""
    rows = ["| module | what it is for |", "| --- | --- |"]
    for path in (path for room in _ROOMS for path in sorted((_ROOT / room).glob("*.py"))):
        words = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        name = path.parent if path.stem == "__init__" else path
        sentence = re.split(r"(?<=[.?])\s", words)[0].replace("``", "`")
        rows.append(f"| `{name.relative_to(_ROOT)}` | {sentence} |")
    return "\n".join(rows)


def service_table() -> str:
    """What the service supports for each transformer, and what was tested, as Markdown."""
    import diffusers

    tiny = {family.pipeline for family in TINY_FAMILIES.values()}
    rows = [
        "| model | transformer | tasks | several ranks | jobs share calls | branches | tested with |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, classes in MODELS.items():
        for name in classes:
            pipelines = [pipeline for pipeline in FAMILIES if family_of(pipeline).transformer == name]
            tasks = dict.fromkeys(task for pipeline in pipelines for task in family_of(pipeline).tasks)
            tested = ["transformer", *["2 ranks"][: name in ROADS], *(f"`{own}`" for own in pipelines if own in tiny)]
            cells = (
                model,
                f"`{name}`",
                ", ".join(tasks) or "-",
                ROADS.get(name, "-"),
                "yes" if name in STACKED else "-",
                "by name" if hasattr(getattr(diffusers, name), "cache_context") else "by call",
                ", ".join(tested),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


_TABLES = {
    "service": service_table,
    "request": request_table,
    "settings": settings_table,
    "metrics": metrics_table,
    "modules": modules_table,
    "unsupported": unsupported_table,
}


def updated(document: str) -> str:
    """``document`` with the tables between its markers, like two lines ``<!-- settings -->``, regenerated.

    Raises:
        ValueError: it has no markers.
    """
    names = [name for name in _TABLES if document.count(f"<!-- {name} -->\n") == 2]
    if not names:
        raise ValueError(f"a table goes between two lines like `<!-- settings -->`; possible: {', '.join(_TABLES)}")
    for name in names:
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- {name} -->)"
        document = re.sub(pattern, _always(f"{_TABLES[name]()}\n"), document, flags=re.DOTALL)
    return document


def _always(text: str) -> Callable[[re.Match[str]], str]:
    return lambda _: text  # as a string its backslashes would be interpreted


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and name not in _ELSEWHERE:
            many = get_origin(field.annotation) is list
            yield from _fields(inner, f"{prefix}{name}{'[]' if many else ''}.")
            continue
        text = (field.description or "").replace("|", "\\|")
        yield f"{prefix}{name}", _type(field), _default(field), text


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings inside a field: those of a list's items, or of a value that may be null."""
    inside = get_origin(annotation) in (list, Union, types.UnionType)
    candidates = get_args(annotation) if inside else (annotation,)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    if field.annotation is None:
        return ""
    bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for key, sign in _BOUNDS if hasattr(m, key)]
    return ", ".join([_name(field.annotation), *bounds])


_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def _name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin is Annotated:
        return _name(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        models = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if LoraRequest in models:
            return "LoRA or null"
        if models:
            return "cache options"
        return " or ".join("null" if a is type(None) else _name(a) for a in get_args(annotation))
    name = getattr(annotation, "__name__", str(annotation))
    return _WORDS.get(name, name)


#: Names of types for authors of YAML.
_WORDS = {"str": "text", "Size": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{getattr(value, 'type', type(value).__name__)}`"
    return "null" if value is None or value is PydanticUndefined else f"`{value}`"


def main(documents: list[Path]) -> None:
    """Regenerate the tables."""
    be_quiet()
    for document in documents:
        document.write_text(updated(document.read_text()))


if __name__ == "__main__":
    typer.run(main)
