"""Every code block of the documents is run or checked by a test, or has its reason here why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tests.helpers.snippet_checks import check_keys, check_settings, check_shell
from tests.helpers.snippets import PAGES, ROOT, Snippet, snippets


@pytest.fixture(autouse=True)
def _one_thread():
    """More than one is ten times slower where tests share the cores."""
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "raycache/demo/flux_tiny/README.md"], ids=["readme", "card"])
def test_the_example_without_a_service_runs(page: str, capsys: pytest.CaptureFixture[str]):
    (example,) = snippets(page, "python")
    names: dict[str, object] = {}
    example.run(names)
    assert names["image"].size == (128, 128)
    assert len(set(names["image"].getdata())) > 100  # an image, not a blank


#: Who runs all blocks of a page in a language.
RUN = {
    ("README.md", "python"): "tests/unit/test_snippets.py",
    ("raycache/demo/flux_tiny/README.md", "python"): "tests/unit/test_snippets.py",
    ("docs/start.md", "python"): "tests/serving/test_docs.py",
    ("docs/python.md", "python"): "tests/serving/test_docs.py",
    ("docs/edits.md", "python"): "tests/unit/ingress/test_edits_doc.py",
    ("docs/edits.md", "bash"): "tests/unit/ingress/test_edits_doc.py",
    ("docs/requests.md", "python"): "tests/unit/ingress/test_requests_doc.py",
}
#: Blocks that nobody runs, by page and how they begin, and why.
NOT_RUN = {
    (
        "docs/videos.md",
        "import openai",
    ): "needs a video model; the client's calls: ingress/stored/test_openai_videos.py",
    ("docs/videos.md", "from ray import serve"): "needs a video model; the request: protocol/test_videos.py",
    ("docs/reliability.md", "client_header_timeout"): "settings of nginx, which is not at hand",
    ("docs/capacity.md", "seconds ="): "a formula",
    ("docs/forecasting.md", "|r(t) - r(s)| <"): "a formula",
    ("docs/forecasting.md", "error(w) ="): "a formula",
    ("docs/forecasting.md", "G v = b,"): "a formula",
    ("docs/forecasting.md", "error > mean of"): "a formula",
    ("docs/design.md", "sequenceDiagram"): "a drawing",
    ("README.md", "flowchart LR"): "a drawing",
}


def reason(snippet: Snippet) -> str | None:
    """Why nobody runs it; None where somebody does."""
    return next((NOT_RUN[page, start] for page, start in NOT_RUN if _is(snippet, page, start)), None)


def _is(snippet: Snippet, page: str, start: str) -> bool:
    return snippet.page == page and snippet.code.startswith(start)


def check(snippet: Snippet, folder: Path) -> None:
    """That what can be known of it without running it is right."""
    if snippet.language in ("bash", "sh", "indented"):
        check_shell(snippet.code)
    elif snippet.language == "yaml":
        check_settings(snippet.code)
    elif snippet.language == "":
        check_keys(snippet.code, folder)
    else:
        raise AssertionError(
            f"{snippet.page}:{snippet.line}: nobody runs this block; run it, or say why not in NOT_RUN"
        )


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_checked_or_has_its_reason(page: str, tmp_path: Path):
    for snippet in snippets(page):
        if reason(snippet):
            if snippet.language == "python":
                ast.parse(snippet.code)
        elif (page, snippet.language) not in RUN:
            check(snippet, tmp_path)


def test_who_runs_them_knows_the_page():
    for (page, language), test in RUN.items():
        assert snippets(page, language), f"{page} has no {language}"
        assert page in (ROOT / test).read_text()


def test_no_reason_outlives_its_block():
    for page, start in NOT_RUN:
        assert len([snippet for snippet in snippets(page) if _is(snippet, page, start)]) == 1, (page, start)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "raycache serve --prot 80"),
        ("bash", "raycache paint x"),
        ("bash", "python -m loadtests.run open --speed 3"),
        ("bash", "make everything"),
        ("bash", "rm -r x"),
        ("bash", "kubectl apply -f deploy/nothing.yaml"),
        ("bash", "python -m raycache.tune --target 3"),
        ("bash", "curl localhost:8000/v1/images -d '{}'"),
        ("bash", """curl localhost:8000/v1/images/generations -d '{"promt": "x"}'"""),
        ("yaml", "limits: {max_step: 3}"),
        ("yaml", "deployments: [{name: Engine, user_config: {limits: {max_steps: 0}}}]"),
        ("yaml", "applications: [{args: {model: {}}}]"),
        ("", "two words"),
        ("ruby", "puts 1"),
        ("indented", "x = y + z"),
    ],
)
def test_what_is_wrong_in_a_block_is_found(language: str, code: str, tmp_path: Path):
    with pytest.raises((AssertionError, ValueError)):
        check(Snippet("page.md", 0, language, code), tmp_path)
