"""diffusers' Ulysses with query, key and value in one all-to-all: the bits of three, in fewer messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch

from tests.helpers.ranks import run_ranks

#: Joint attention with a mask that ranks gather, self-attention beside a cross attention that stays local, and one
#: sequence of image and text with a mask for rows of different lengths.
MODELS = ("HunyuanImageTransformer2DModel", "WanTransformer3DModel", "ZImageTransformer2DModel")


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Elements of each all-to-all."""
    seen: list[int] = []
    module: Any = attention_dispatch
    own = module._all_to_all_single

    def count(states: torch.Tensor, group: Any) -> torch.Tensor:
        seen.append(states.numel())
        sent: torch.Tensor = own(states, group)
        return sent

    module._all_to_all_single = count
    try:
        yield seen
    finally:
        module._all_to_all_single = own


def _both_ways(rank: int, world_size: int) -> dict[str, Any]:
    from raycache.worker.context_parallel import parallelize
    from raycache.worker.fused_ulysses import FusedUlysses
    from tests.helpers.conditioned_images import Images
    from tests.helpers.tiny_transformers import TINY, build

    answers: dict[str, Any] = {}
    module: Any = attention_dispatch
    for name in MODELS:
        model = build(name)
        parallelize(model)
        for way in (FusedUlysses.__bases__[0], FusedUlysses):
            module.TemplatedUlyssesAttention = way
            inputs = TINY[name].inputs(Images((1, 2, 3), (0.0, 0.0, 0.0), 0))
            with torch.no_grad(), _counted() as sent:
                output = model(**inputs, return_dict=False)[0]
            answers[name, way.__name__] = torch.stack(list(output)), sent
    return answers


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_ranks(2, _both_ways)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_in_half_the_messages(answers: list[dict[str, Any]], name: str):
    for answer in answers:
        (wanted, separate), (output, fused) = (
            answer[name, way] for way in ("TemplatedUlyssesAttention", "FusedUlysses")
        )
        assert torch.equal(output, wanted)
        assert len(separate) > 0
        assert len(fused) * 2 == len(separate)
        assert sum(fused) == sum(separate), "nothing is sent twice"


def _gradients(rank: int, world_size: int) -> list[list[torch.Tensor]]:
    from raycache.worker.context_parallel import parallelize
    from raycache.worker.fused_ulysses import FusedUlysses
    from tests.helpers.conditioned_images import Images
    from tests.helpers.tiny_transformers import TINY, build

    name = "WanTransformer3DModel"
    model = build(name)
    parallelize(model)
    module: Any = attention_dispatch
    found = []
    for way in (FusedUlysses.__bases__[0], FusedUlysses):
        module.TemplatedUlyssesAttention = way
        inputs = TINY[name].inputs(Images((1,), (0.0,), 0))
        inputs["hidden_states"].requires_grad_()
        model(**inputs, return_dict=False)[0].square().sum().backward()
        found.append([inputs["hidden_states"].grad])
    return found


def test_gradients_are_the_same():
    for separate, fused in run_ranks(2, _gradients):
        assert bool(separate[0].any())
        assert torch.equal(fused[0], separate[0])


def _compiled(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.conditioned_images import Images
    from tests.helpers.tiny_transformers import TINY, build

    name, graphs = "QwenImageTransformer2DModel", []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    outputs = []
    for compiled in (False, True):
        model: Any = build(name)
        for block in model.transformer_blocks if compiled else ():
            block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
        parallelize(model)
        with torch.no_grad():
            inputs = TINY[name].inputs(Images((1, 2), (0.0, 0.0), 0))
            outputs.append(model(**inputs, return_dict=False)[0])
    return outputs[0], outputs[1], len(graphs)


def test_a_block_is_one_graph():
    for eager, compiled, graphs in run_ranks(2, _compiled):
        torch.testing.assert_close(compiled, eager)
        assert graphs > 0
