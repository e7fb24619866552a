"""ParaAttention's attention as repaired: when the one exchange is used, and when ParaAttention's own three are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from para_attn import para_attn_interface as interface

from cache_core import para_attention
from cache_core.para_attention import gather_heads, mend_is_needed, repair_if_used, repair_para_attention

MESH = "two ranks"


def _own(query: Any, key: Any, value: Any, attn_mask: Any = None, *, mesh: Any = None, attn_func: Any = None) -> Any:
    """ParaAttention's signature: no `enable_gqa`."""
    return "separate", query, key, value, attn_mask, mesh, attn_func


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(interface, "ulysses_attn_func", _own)
    monkeypatch.setattr(interface, "DP", SimpleNamespace(get_world_size={MESH: 2, "one rank": 1}.__getitem__))
    monkeypatch.setattr(interface, "_sdpa_output_all_to_all", lambda out, mesh: ("fused", out, mesh))
    monkeypatch.setattr(para_attention, "gather_heads", lambda q, k, v, mesh: (q + 1, k + 2, v + 3))
    repair_para_attention()
    return interface.ulysses_attn_func


def _states(**changed: Any) -> list[torch.Tensor]:
    parts = {"query": torch.randn(1, 2, 4, 8), "key": torch.randn(1, 2, 4, 8), "value": torch.randn(1, 2, 4, 8)}
    return list((parts | changed).values())


def test_alike_states_share_one_exchange(repaired: Any):
    query, key, value = _states()
    kind, out, mesh = repaired(query, key, value, enable_gqa=False, mesh=MESH)
    assert (kind, mesh) == ("fused", MESH)
    assert torch.equal(out, F.scaled_dot_product_attention(query + 1, key + 2, value + 3))


def test_the_attention_that_was_given_gets_what_was_given(repaired: Any):
    seen: list[Any] = []
    repaired(*_states(), "mask", mesh=MESH, attn_func=lambda *args, **kwargs: seen.append((args[3:], kwargs)), scale=2)
    assert seen == [(("mask",), {"scale": 2})]


@pytest.mark.parametrize(
    ("changed", "mesh"),
    [
        ({"key": torch.zeros(1, 2, 3, 8)}, MESH),
        ({"value": torch.zeros(1, 2, 4, 6)}, MESH),
        ({"key": torch.zeros(1, 2, 4, 8).half()}, MESH),
        ({"value": torch.zeros(1, 2, 4, 8).half()}, MESH),
        ({}, None),
        ({}, "one rank"),
    ],
)
def test_what_cannot_share_goes_as_paraattention_sends_it(repaired: Any, changed: dict[str, Any], mesh: Any):
    states = _states(**changed)
    kind, *handed, mask, its_mesh, attention = repaired(*states, "mask", mesh=mesh, attn_func="mine", enable_gqa=False)
    assert (kind, mask, its_mesh, attention) == ("separate", "mask", mesh, "mine")
    assert all(left is right for left, right in zip(handed, states, strict=True))
    assert repaired(*states, mesh=mesh, attn_mask="named")[4] == "named"


def test_grouped_queries_are_refused(repaired: Any):
    with pytest.raises(ValueError, match="does not support grouped queries"):
        repaired(*_states(), mesh=MESH, enable_gqa=True)


def test_once_is_enough_and_a_version_that_needs_no_repair_is_left_alone(
    repaired: Any, monkeypatch: pytest.MonkeyPatch
):
    assert repaired.__wrapped__ is _own
    assert mend_is_needed(), "told of ParaAttention's own function, repaired or not"
    repair_para_attention()
    assert interface.ulysses_attn_func is repaired

    def newer(query: Any, key: Any, value: Any, enable_gqa: bool = False) -> None:
        """Takes the keyword."""

    monkeypatch.setattr(interface, "ulysses_attn_func", newer)
    assert not mend_is_needed()
    repair_para_attention()
    assert interface.ulysses_attn_func is newer


@pytest.mark.parametrize("split", [True, False, None])
def test_only_what_paraattention_split_is_repaired(split: bool | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interface, "ulysses_attn_func", _own)
    repair_if_used(SimpleNamespace() if split is None else SimpleNamespace(_is_parallelized=split))
    assert (interface.ulysses_attn_func is not _own) == bool(split)


def test_a_process_without_paraattention_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Another library may mark its transformers alike."""
    import sys

    monkeypatch.delitem(sys.modules, "para_attn")
    monkeypatch.setattr(interface, "ulysses_attn_func", _own)
    repair_if_used(SimpleNamespace(_is_parallelized=True))
    assert interface.ulysses_attn_func is _own
    assert "para_attn" not in sys.modules


@pytest.mark.parametrize("ranks", [2, 3])
def test_one_exchange_brings_each_rank_its_heads_of_all_tokens(ranks: int, monkeypatch: pytest.MonkeyPatch):
    """All ranks in one process: first what each sends is written down, then each gets its part of all of it."""
    whole = torch.randn(3, 2, 6, ranks * 4, 8)  # query, key, value; batch, heads, tokens, channels
    sent: list[torch.Tensor] = []

    class Sent(Exception):
        """Far enough."""

    def send(packed: torch.Tensor, mesh: int) -> torch.Tensor:
        sent.append(packed)
        raise Sent

    monkeypatch.setattr(interface, "DP", SimpleNamespace(get_world_size=lambda mesh: ranks))
    monkeypatch.setattr(interface, "_sdpa_all_to_all_single", send)
    for rank in range(ranks):
        with pytest.raises(Sent):
            gather_heads(*whole[:, :, :, rank * 4 : rank * 4 + 4], rank)
    monkeypatch.setattr(
        interface, "_sdpa_all_to_all_single", lambda _, rank: torch.cat([each.chunk(ranks)[rank] for each in sent])
    )
    heads = 6 // ranks
    for rank in range(ranks):
        got = gather_heads(*whole[:, :, :, rank * 4 : rank * 4 + 4], rank)
        expected = whole[:, :, rank * heads : (rank + 1) * heads]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
