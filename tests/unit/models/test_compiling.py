"""Compiled blocks: two graphs of each class for any size and number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from raycache.models.compiling import BlockCompiler, keep_compiled
from raycache.models.denoisers import blocks_of
from raycache.worker.active_job import Place
from raycache.worker.load_stages import tell_compiling
from tests.helpers.compiling import Counting
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_flux import Job, draw, tiny_flux
from tests.helpers.tiny_transformers import build, shared


class Broken(Counting):
    """A compiler that does not work."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        super().__call__(graph, inputs)
        raise RuntimeError("no compiler here\nand more")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    dynamo.reset()
    yield
    dynamo.callback_handler.clear()


@pytest.mark.slow  # traces for seconds
def test_any_number_of_images_and_any_size_have_two_graphs_of_a_class_of_blocks():
    """Whatever comes first; of several blocks of a class, of which the first gets other strides than those after it."""
    backend, eager = Counting(), tiny_flux(2, 3)
    model = tiny_flux(2, 3)
    BlockCompiler(backend).compile(model)
    classes = {type(block.module) for block in blocks_of(model)}
    for rows in (3, 1, 8, 2, 4, 5, 6, 7):
        for side in (4, 6, 8, 10, 3):
            job = Job(seeds=tuple(range(rows)), steps=1, side=side)
            before = backend.calls
            torch.testing.assert_close(draw(model, job), draw(eager, job), rtol=0, atol=0)
            assert backend.calls - before == 5, "every block runs compiled"
    assert backend.graphs == 2 * len(classes) == 4


@pytest.mark.slow  # traces for seconds
def test_blocks_that_are_told_their_size_have_two_graphs_of_a_class_too():
    """Sana's height and width are numbers, of which Dynamo would compile the first, and then any other."""
    name = "SanaTransformer2DModel"
    backend, eager, model = Counting(), shared(name), build(name)
    BlockCompiler(backend).compile(model)
    for rows in (1, 3, 2):
        for height, width in ((4, 4), (6, 6), (4, 8)):
            text, mask = torch.randn(rows, 6, 16), torch.ones(rows, 6, dtype=torch.int64)
            inputs = (torch.randn(rows, 4, height, width), text, torch.full((rows,), 500.0))
            before = backend.calls
            drawn, other = (each(*inputs, encoder_attention_mask=mask).sample for each in (model, eager))
            torch.testing.assert_close(drawn, other, rtol=0, atol=0)
            assert backend.calls - before == 4, "every block runs compiled"
    assert backend.graphs == 2


def test_where_compiling_fails_blocks_run_as_they_are(caplog):
    backend, model = Broken(), tiny_flux(1, 1)
    compiler = BlockCompiler(backend)
    compiler.compile(model)
    assert compiler.failure == ""
    torch.testing.assert_close(draw(model, Job(steps=2)), draw(tiny_flux(1, 1), Job(steps=2)), rtol=0, atol=0)
    assert compiler.failure == "RuntimeError: no compiler here"
    assert backend.graphs == 1, "it is not tried again"
    assert [record.exc_info is not None for record in caplog.records if record.name == "raycache.rank"] == [True]


def test_what_a_block_raises_itself_is_no_failure_to_compile():
    model, compiler = tiny_flux(1, 1), BlockCompiler(Counting())
    compiler.compile(model)
    with pytest.raises(Exception, match="size"):
        draw(model, Job(steps=1, extra={"txt_ids": torch.zeros(9, 3)}))


def test_a_rank_says_that_it_compiles():
    place, seen = Place(), []
    tell_compiling(place.compiles)

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(place.compiling)
        return graph.forward

    twice = torch.compile(lambda x: 2 * x, backend=backend)
    for _ in range(2):
        twice(torch.ones(2))
        seen.append(place.compiling)
    assert seen == [True, False, False]


def _started(rank: int, world_size: int, folder: Path) -> tuple[torch.Tensor, str, int, int]:
    """What a compiled layer gives, and how often its code was found or not found on disk.

    Not a block: torch multiplies matrices without the C++ compiler, which takes a minute for a block.
    """
    keep_compiled(folder)
    compiler, layer = BlockCompiler(), torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    layer.weight.fill_(0.5)
    output = compiler._compiled(layer.forward)(torch.ones(3, 2))
    found = counters["inductor"]
    return output, compiler.failure, found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]


@pytest.mark.slow
def test_a_process_compiles_nothing_that_one_before_it_did(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as Dynamo does when it is imported
    cold, warm = (run_ranks(1, _started, tmp_path / "kept", timeout=250)[0] for _ in range(2))
    assert cold[1:] == ("", 0, 1)
    assert warm[1:] == ("", 1, 0)
    assert any(path.is_file() for path in (tmp_path / "kept").rglob("*")), "there, and not in torch's own folder"
    assert torch.equal(cold[0], torch.ones(3, 2))
    assert torch.equal(warm[0], cold[0])


@pytest.mark.slow
def test_a_rank_keeps_what_it_compiles_where_the_settings_say(tmp_path: Path):
    """In a process of its own: the modules that a rank imports leave a mark in its environment."""
    code = (
        "import os, sys; from pathlib import Path; import raycache.worker.rank as rank; "
        "rank.keep_compiled(Path(sys.argv[1])); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, "-c", code, str(tmp_path / "kept")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == str(tmp_path / "kept")


def test_where_the_folder_cannot_be_made_torch_keeps_its_own(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    keep_compiled(tmp_path / "file" / "compiled")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert "model.cache_dir" in caplog.text
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    keep_compiled(tmp_path / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
