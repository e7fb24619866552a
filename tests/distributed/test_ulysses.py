"""Query, key and value in one all-to-all: the same numbers as in three, half the messages of a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.helpers.ranks import run_ranks

HEADS, TOKENS, CHANNELS = 4, 3, 8


def _attend(rank: int, world_size: int) -> dict[str, Any]:
    from para_attn import para_attn_interface as interface
    from para_attn.context_parallel import init_context_parallel_mesh

    from cache_core import repair_para_attention

    mesh = init_context_parallel_mesh("cpu")["ulysses"]
    draws = torch.Generator().manual_seed(rank)
    shape = (2, HEADS, TOKENS, CHANNELS)
    states = [torch.randn(shape, generator=draws).to(torch.bfloat16) for _ in range(3)]
    other = [torch.randn(2, HEADS, 2 * TOKENS, CHANNELS, generator=draws).to(torch.bfloat16) for _ in range(2)]
    sent = [0]
    exchange = interface._sdpa_all_to_all_single

    def counted(x: torch.Tensor, group: Any) -> torch.Tensor:
        sent[0] += 1
        return exchange(x, group)

    interface._sdpa_all_to_all_single = counted
    record: dict[str, Any] = {}

    def attention(name: str, *qkv: torch.Tensor, **keywords: Any) -> None:
        sent[0] = 0
        record[name] = (interface.ulysses_attn_func(*qkv, mesh=mesh, **keywords), sent[0])

    attention("separate", *states)
    attention("separate, scaled", *states, scale=0.5)
    attention("separate, cross", states[0], *other)
    repair_para_attention()
    repair_para_attention()  # a second pipeline in the process: once is enough
    attention("fused", *states, enable_gqa=False)
    attention("fused, scaled", *states, scale=0.5)
    attention("fused, cross", states[0], *other)
    leaf = states[0].float().requires_grad_()
    attention("gradient", leaf, states[1].float(), states[2].float())
    record["gradient"][0].square().sum().backward()
    record["gradient"] = leaf.grad
    # What one process computes from everybody's tokens.
    everyone = [[torch.empty_like(part) for _ in range(world_size)] for part in states]
    for parts, part in zip(everyone, states, strict=True):
        dist.all_gather(parts, part)
    whole = F.scaled_dot_product_attention(*(torch.cat(parts, dim=2).float() for parts in everyone))
    record["alone"] = whole[:, :, rank * TOKENS : (rank + 1) * TOKENS]
    with pytest.raises(ValueError, match="does not support grouped queries"):
        interface.ulysses_attn_func(*states, mesh=mesh, enable_gqa=True)
    return record


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_ranks(2, _attend)


def test_one_message_instead_of_three_and_the_same_bits(ranks):
    for record in ranks:
        for kind in ("", ", scaled"):
            (separate, four), (fused, two) = record[f"separate{kind}"], record[f"fused{kind}"]
            assert torch.equal(fused, separate)
            assert (four, two) == (4, 2)
        assert not torch.equal(record["fused"][0], record["fused, scaled"][0])


def test_it_is_attention_over_all_tokens(ranks):
    for record in ranks:
        torch.testing.assert_close(record["fused"][0].float(), record["alone"], rtol=0.02, atol=0.02)


def test_cross_attention_goes_the_old_way(ranks):
    for record in ranks:
        assert torch.equal(record["fused, cross"][0], record["separate, cross"][0])


def test_gradients_go_back_through_the_exchange(ranks):
    assert all(record["gradient"].abs().sum() > 0 for record in ranks)
