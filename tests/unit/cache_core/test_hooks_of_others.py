"""Other hooks on the transformer (offloading, context parallelism, patches): the cache stays, inside them, and the
image is the same, whoever came first and whoever went since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import FluxPipeline
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from torch import nn

from cache_core import apply_cache_on_pipe, cache_reports, remove_cache
from tests.helpers.flux_pipe import DBCACHE, draw, load
from tests.helpers.tiny_flux import Job, draw_cached, gap, tiny_flux
from tests.helpers.tiny_flux import draw as draw_steps

#: The method, and what must be cached by it for a test to mean something.
METHODS = {
    "DBCache": DBCACHE | {"residual_diff_threshold": 0.8},
    "DBPrune": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "warmup_steps": 2, "residual_diff_threshold": 0.4},
}


def _saved(pipe: Any) -> int:
    decisions = [step.images[0] for step in cache_reports(pipe)["transformer"].steps]
    return sum(d.cached or bool(d.pruned_blocks) for d in decisions)


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, torch.Tensor]:
    """Images of the cache alone."""
    images = {}
    for method, options in METHODS.items():
        pipe = apply_cache_on_pipe(load(folder), method, **options)
        images[method] = draw(pipe)
        assert _saved(pipe) > 1
    return images


def _blocks(pipe: FluxPipeline) -> list[nn.Module]:
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


# --- (a) hooks that come and go ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cache_first", [True, False])
def test_model_offloading_takes_its_hooks_off_after_every_image(pipe, expected, cache_first):
    if cache_first:
        apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    pipe.enable_model_cpu_offload(device="cpu")
    if not cache_first:
        apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    for _ in range(3):
        assert torch.equal(draw(pipe), expected["DBCache"])
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), expected["DBCache"])
    remove_cache(pipe)
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.transformer.modules())


def _accelerate_everywhere(pipe: FluxPipeline) -> None:
    for module in (pipe.transformer, *_blocks(pipe)):
        add_hook_to_module(module, AccelerateHook())


def test_all_hooks_of_accelerate_are_removed(pipe, expected):
    _accelerate_everywhere(pipe)
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    assert torch.equal(draw(pipe), expected["DBCache"])
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), expected["DBCache"])


def test_a_device_map_is_reset(pipe, expected):
    _accelerate_everywhere(pipe)
    pipe.hf_device_map = {"transformer": "cpu"}
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    pipe.reset_device_map()
    assert torch.equal(draw(pipe), expected["DBCache"])
    assert _saved(pipe) > 1


def test_hooks_go_while_an_image_is_drawn(pipe, expected):
    _accelerate_everywhere(pipe)
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])

    def callback(_pipe: Any, step: int, _time: Any, _tensors: Any) -> dict[str, Any]:
        if step == 2:
            remove_hook_from_module(pipe.transformer, recurse=True)
        if step == 3:
            _accelerate_everywhere(pipe)
        return {}

    assert torch.equal(draw(pipe, callback_on_step_end=callback), expected["DBCache"])


def _patched(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "transformer_blocks.0", "single_transformer_blocks.1"])
def test_a_forward_is_put_back_to_what_it_was_before_the_cache(pipe, expected, where):
    module = pipe.transformer.get_submodule(where)
    remembered = module.forward
    module.forward = _patched(remembered)
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    for forward in (remembered, _patched(remembered)):
        module.forward = forward
        assert torch.equal(draw(pipe), expected["DBCache"])
        assert len(cache_reports(pipe)["transformer"].steps) == 6
        assert _saved(pipe) > 1


def test_a_wrapper_that_hides_what_it_calls(pipe, expected):
    """The old hook, inside it, must not count the block twice."""
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    for module in (pipe.transformer, pipe.transformer.transformer_blocks[1]):
        hidden = {"forward": module.forward}
        module.forward = lambda *args, hidden=hidden, **kwargs: hidden["forward"](*args, **kwargs)
    assert torch.equal(draw(pipe), expected["DBCache"])


def test_a_class_is_patched_after_the_cache(pipe, monkeypatch):
    apply_cache_on_pipe(pipe, "DBCache", **METHODS["DBCache"])
    cls = type(pipe.transformer.transformer_blocks[0])
    original, calls = cls.forward, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, "forward", counted)
    draw(pipe)
    assert calls


# --- (b) offloading in groups --------------------------------------------------------------------------------------


def _offload(transformer: nn.Module, tmp_path: Any, **settings: Any) -> None:
    """To the disk: what is not loaded for a block is garbage in memory, on a CPU as on a GPU."""
    apply_group_offloading(
        transformer, onload_device="cpu", offload_device="cpu", offload_to_disk_path=str(tmp_path), **settings
    )


GROUPS = {
    "one": {"offload_type": "block_level", "num_blocks_per_group": 1},
    "two": {"offload_type": "block_level", "num_blocks_per_group": 2},
    "leaf": {"offload_type": "leaf_level"},
}


@pytest.mark.slow
@pytest.mark.parametrize("cache_first", [True, False])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("method", METHODS)
def test_group_offloading(pipe, expected, tmp_path, method, groups, cache_first):
    if cache_first:
        apply_cache_on_pipe(pipe, method, **METHODS[method])
    _offload(pipe.transformer, tmp_path, **GROUPS[groups])
    if not cache_first:
        apply_cache_on_pipe(pipe, method, **METHODS[method])
    image = draw(pipe)
    assert gap([image], [expected[method]]) < 1e-4  # weights from a file lie at other addresses: other kernels
    assert _saved(pipe) > 1


class _Loads(ModelHook):
    """Each block's hook loads what the next one needs, as prefetching does."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.log.append(f"+{self.name}")
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.log.append(f"-{self.name}")
        return output


@pytest.mark.parametrize("between", [False, True])
def test_every_hook_of_a_skipped_block_runs(between):
    """Also below accelerate's hooks and a patch, and with a hook on either side of those."""
    flux, log = tiny_flux(), []
    for i, block in enumerate([*flux.transformer_blocks, *flux.single_transformer_blocks]):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(_Loads(log, f"a{i}"), "theirs")
        if between:
            add_hook_to_module(block, AccelerateHook())
            block.forward = _patched(block.forward)
            HookRegistry.check_if_exists_or_initialize(block).register_hook(_Loads(log, f"b{i}"), "later")
    options = {"type": "DBCache", **METHODS["DBCache"]}
    outputs, report = draw_cached(flux, options, Job(pace=0.1))
    assert any(step.images[0].cached for step in report.steps)
    assert len(log) == 10 * 8 * 2 * (1 + between)
    expected, _ = draw_cached(tiny_flux(), options, Job(pace=0.1))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


# --- (c) context parallelism splits at the first block ---------------------------------------------------------------


class _Split(ModelHook):
    """Half of the image's tokens, as on one of two ranks."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": hidden[:, : hidden.shape[1] // 2]}


class _Gather(ModelHook):
    def post_forward(self, module: nn.Module, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output, output], dim=1)


class _HalfTheIds(ModelHook):
    def pre_forward(self, module: nn.Module, ids: torch.Tensor) -> Any:
        return (torch.cat([ids[:4], ids[4 : 4 + (len(ids) - 4) // 2]]),), {}


def _split(flux: nn.Module) -> nn.Module:
    for module, hook in ((flux.pos_embed, _HalfTheIds()), (flux.transformer_blocks[0], _Split())):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "split")
    HookRegistry.check_if_exists_or_initialize(flux.proj_out).register_hook(_Gather(), "gather")
    return flux


@pytest.mark.slow
@pytest.mark.parametrize("first", ["split", "cache"])
@pytest.mark.parametrize("method", METHODS)
def test_a_split_at_the_first_block(method, first):
    from cache_core.hooks import Attachment

    flux, job = tiny_flux(), Job(pace=0.1)
    if first == "cache":
        Attachment(flux)
    _split(flux)
    options = {"type": method, **METHODS[method]}
    outputs, report = draw_cached(flux, options, job)
    assert [step.images[0].reason for step in report.steps][2:] != ["threshold"] * 8
    uncached = _split(tiny_flux())
    assert all(torch.equal(a, b) for a, b in zip(outputs[:2], draw_steps(uncached, job)[:2], strict=True))
    inside = [s for s in report.steps if s.images[0].differences]
    assert inside, "the first block's input and output have one size: both halves"
