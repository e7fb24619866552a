"""Code blocks of the documents, and the commands in shell blocks."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

__all__ = ["PAGES", "ROOT", "Snippet", "check_options", "commands", "snippets"]

ROOT = Path(__file__).parents[2]
#: Every page for readers: those of the site, and the bundled model's card.
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md", "raycache/demo/flux_tiny/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


@dataclass(frozen=True)
class Snippet:
    """A code block.

    Attributes:
        page: path of its page, from the root of the repository.
        line: number of lines above its first line.
        language: the word after the fence, or empty; ``indented`` for code indented by four spaces.
    """

    page: str
    line: int
    language: str
    code: str

    def run(self, names: dict[str, object]) -> None:
        """Run it as Python with ``names``; a failure shows the page's line."""
        exec(compile("\n" * self.line + self.code, self.page, "exec"), names)


def snippets(page: str, *languages: str) -> list[Snippet]:
    """The code blocks of ``page``, of all languages or of these."""
    text = (ROOT / page).read_text()
    found = [Snippet(page, text[: m.start(2)].count("\n"), m[1], m[2]) for m in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    indented = _INDENTED.finditer(rest)
    found += [Snippet(page, rest[: m.start()].count("\n"), "indented", dedent(m[0])) for m in indented]
    return [snippet for snippet in found if not languages or snippet.language in languages]


def commands(code: str) -> list[list[str]]:
    """The words of each command in a shell snippet, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_options(module: str, words: list[str]) -> None:
    """Check a command's options by reading the source of its ``main``, without importing the module."""
    place = ROOT / module.replace(".", "/")
    files = [place.with_suffix(".py"), place / "__main__.py", place / "command.py"]
    mains = [
        node
        for file in files
        if file.is_file()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    assert mains, f"no main in {module}"
    names = {argument.arg for argument in (*mains[0].args.args, *mains[0].args.kwonlyargs)}
    assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= names, words
