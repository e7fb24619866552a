"""The documents as a site, built as `make docs` builds it: a link that leads nowhere fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(root / "mkdocs.yml"), "-d"]
    return subprocess.run([*command, str(site)], capture_output=True, text=True, env=environment, cwd=root)


@pytest.mark.slow
def test_the_site_is_whole(tmp_path: Path):
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    sources = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    assert {name.replace("README", "index") for name in sources} <= pages
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|img)[^>]+src="https?://[^"]*"', text), page.name
        if page.name == "404.html":  # its addresses begin at the root of whatever serves it
            continue
        for address in re.findall(r'(?:src|href)="([^"#:]+)"', text):
            target = page.parent / address.split("?")[0]
            assert target.exists(), f"{page.relative_to(tmp_path)} -> {address}"


@pytest.mark.slow
def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path):
    root = tmp_path / "copy"
    for name in ("docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml", "raycache", "cache_core"):
        source, target = ROOT / name, root / name
        if name in ("raycache", "cache_core"):
            root.mkdir(exist_ok=True)
            target.symlink_to(source)
        elif source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    page = root / "docs" / "edits.md"
    page.write_text(page.read_text() + "\n[more](nowhere.md)\n")
    built = build(root, tmp_path / "site")
    assert built.returncode != 0
    assert "nowhere.md" in built.stdout + built.stderr
