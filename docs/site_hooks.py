"""What mkdocs must be told: pages that stand outside docs/, links that leave it, Sphinx's roles in docstrings."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Pages of the site that people also find where they stand in the repository: source there, name in the site.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>[~!]?([^<]*)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links that leave docs/ at the page of the site, or show the file's name where the site has none."""
    source = next((path for path, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    here = posixpath.dirname(source)

    def moved(found: re.Match[str]) -> str:
        image, text, address, anchor = found[1], found[2], found[3], found[4] or ""
        if not address or "://" in address or address.startswith("mailto:"):
            return found[0]
        target = posixpath.normpath(posixpath.join(here, address))
        if not (ROOT / target).exists():
            raise ValueError(f"{source}: the link to {address} leads nowhere: there is no {target}")
        name = OUTSIDE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if name is None or not (image or name.endswith(".md")):
            return f"{text} (`{target}`)"
        return f"{image}[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Show :class:`Name` of docstrings as code."""
    return ROLE.sub(r"<code>\1</code>", html)
