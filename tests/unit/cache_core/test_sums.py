"""The sums behind every decision: exact enough on images of real size, in any layout."""

from __future__ import annotations

import importlib.util
import sysconfig

import pytest
import torch

from cache_core import difference
from cache_core.difference import absolute_sum, difference_sum

#: 4096 tokens x 3072 channels of FLUX.1-dev at 1024 x 1024. Small or uniform values would not show a naive sum.
TOKENS, CHANNELS = 4096, 3072


@pytest.fixture(scope="module")
def normal() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(TOKENS, CHANNELS, generator=generator) for _ in range(3))


def _exact(values: torch.Tensor) -> float:
    """In float64, chunk by chunk."""
    return sum(float(piece.double().abs().sum()) for piece in values.split(256))


def _relative(sum_: torch.Tensor, exact: float) -> float:
    assert sum_.dtype == torch.float32
    assert sum_.shape == ()
    return abs(float(sum_) - exact) / exact


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twelve_million_normal_values(normal, dtype):
    """``vector_norm(ord=1)`` is 0.9 % off here; that this test would see it stands below."""
    current, reference, entry = (tensor.to(dtype) for tensor in normal)
    assert _relative(absolute_sum(current), _exact(current)) <= 1e-6
    # The difference is taken in float32, operands cast first; bfloat16 differences would be rounded.
    assert _relative(difference_sum(current, reference), _exact(current.float() - reference.float())) <= 1e-6
    # A residual is rounded to the common dtype, as the stored one was.
    moved = (current - entry).float() - reference.float()
    assert _relative(difference_sum(current, reference, minus=entry), _exact(moved)) <= 1e-6


def test_the_test_above_can_fail(normal):
    """The obvious one-liner misses by far more than the bound."""
    wrong = torch.linalg.vector_norm(normal[0].flatten(), ord=1)
    assert _relative(wrong, _exact(normal[0])) > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 8), (21, 3072), (22, 3072), (4097, 61), (3, 70001), (1, 70001), (70001, 1), (0, 64)]
)
def test_ends_of_chunks(shape, dtype):
    """Rows that fill the last chunk only partly, rows longer than a chunk, single columns, nothing at all."""
    generator = torch.Generator().manual_seed(1)
    current, reference, entry = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    for got, values in (
        (absolute_sum(current), current),
        (difference_sum(current, reference), current.float() - reference.float()),
        (difference_sum(current, reference, minus=entry), (current - entry).float() - reference.float()),
    ):
        assert float(got) == pytest.approx(_exact(values), rel=1e-6)


@pytest.mark.parametrize("shape", [(7, 16), (3000, 64)])
def test_rows_that_are_not_contiguous(shape):
    """The image part of a joint [text | image] buffer, every second row, and a transposed view."""
    tokens, channels = shape
    joint = torch.randn(2, tokens + 5, channels, generator=torch.Generator().manual_seed(2))
    image = joint[:, 5:][1]
    sparse = torch.randn(2 * tokens, channels, generator=torch.Generator().manual_seed(3))[::2]
    turned = torch.randn(channels, tokens, generator=torch.Generator().manual_seed(4)).T
    assert not sparse.is_contiguous()
    assert not turned.is_contiguous()
    for current, reference in ((image, sparse), (sparse, turned), (turned, image)):
        assert float(absolute_sum(current)) == pytest.approx(_exact(current), rel=1e-6)
        assert float(difference_sum(current, reference)) == pytest.approx(_exact(current - reference), rel=1e-6)
        moved = current - turned - reference
        assert float(difference_sum(current, reference, minus=turned)) == pytest.approx(_exact(moved), rel=1e-6)


def test_inputs_are_not_written_to():
    """They are live activations."""
    tensors = [torch.randn(3000, 64) for _ in range(3)]
    difference_sum(tensors[0], tensors[1], minus=tensors[2])
    absolute_sum(tensors[0])
    assert [tensor._version for tensor in tensors] == [0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rows", [4, 3000])
def test_a_value_that_is_not_finite_reaches_the_sum(bad, rows):
    values, other = torch.ones(rows, 64), torch.zeros(rows, 64)
    values[rows - 1, 63] = bad
    assert not absolute_sum(values).isfinite()
    assert not difference_sum(values, other).isfinite()
    assert not difference_sum(values, other, minus=other).isfinite()
    assert not difference_sum(other, values).isfinite()


def test_eager_and_chunked_agree(monkeypatch):
    """Two ways of one sum: a rank must not decide otherwise because its shard is small."""
    tensors = [torch.randn(900, 64) for _ in range(3)]
    small = [float(difference_sum(*tensors[:2], minus=tensors[2])), float(absolute_sum(tensors[0]))]
    monkeypatch.setattr(difference, "_CHUNK", 1000)
    chunked = [float(difference_sum(*tensors[:2], minus=tensors[2])), float(absolute_sum(tensors[0]))]
    assert small == pytest.approx(chunked, rel=1e-6)


def test_kernels_are_fused_only_where_triton_can_build_them(monkeypatch, tmp_path):
    """torch's wheel brings Triton, a slim image no compiler: sums must not fail at the first decision on a GPU."""
    can_fuse = difference.can_fuse.__wrapped__
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert can_fuse()
    monkeypatch.setenv("PATH", "")
    assert not can_fuse()
    monkeypatch.setenv("CC", str(compiler))
    assert can_fuse()
    (tmp_path / "Python.h").unlink()
    assert not can_fuse()
