"""Text encoders on one rank only: images are what they are with encoders everywhere, and a failure costs one job."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from transformers import PreTrainedModel

from raycache.models.loading import load_pipeline
from raycache.models.text_encoders import load_text_encoders, text_encoders_named
from raycache.protocol.job import Job
from raycache.settings import AppSettings, ModelSettings
from raycache.worker import exchange
from raycache.worker.encoding import OneEncodes, remember_prompts
from raycache.worker.prompt_cache import PromptCache
from raycache.worker.rank import Rank
from tests.helpers.jobs import make_job
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import draw, whole
from tests.helpers.tiny_models import load_tiny, tiny_folder

CPU = torch.device("cpu")


def _rank(folder: Path, rank: int, world: int, where: str) -> Rank:
    settings = AppSettings(
        model={"path": str(folder), "dtype": "float32", "text_encoders": where, "max_sequence_length": 32},
        parallel={"ranks_per_replica": world, "device": "cpu", "threads_per_rank": 1},
    )
    made = Rank(settings, rank, f"{folder}-{where}-{rank}.stacks")
    made.load(str(folder), "folder")
    return made


def _jobs() -> dict[Job, int]:
    return {
        make_job("first", seeds=(7,), steps=3): 0,
        make_job("same prompt", seeds=(9,), steps=2): 1,
        make_job("other prompt", seeds=(7, 8), steps=3, prompt="two green squares", true_cfg_scale=2.0): 1,
        make_job("dropped", seeds=(1,), steps=4, prompt="nothing"): 0,
    }


def _encoders_held() -> list[str]:
    gc.collect()
    return [type(held).__name__ for held in gc.get_objects() if issubclass(type(held), PreTrainedModel)]


def _failing(rank: Rank, first: int) -> dict[str, Any]:
    """An encoder that fails once, in the middle of another job's steps."""

    def fail(module: torch.nn.Module, args: Any) -> None:
        raise RuntimeError("no room for this prompt")

    one = rank._jobs._context.one_encodes
    assert one is not None
    hooks = [module.register_forward_pre_hook(fail) for module in one.encoders.modules.values()]
    beside = draw(rank, {make_job("beside", steps=3): 0, make_job("bad", prompt="never seen", steps=3): 1}, first=first)
    for hook in hooks:
        hook.remove()
    after = draw(rank, {make_job("bad", prompt="never seen", steps=3): 0}, first=first + 50)
    return {"beside": beside, "after": after}


def _ranks(rank: int, world: int, folder: Path, edit: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for number, where in enumerate(("one_rank", "split", "cpu")):
        made = _rank(folder, rank, world, where)
        answer[where] = draw(made, _jobs(), abort={"dropped": 2})
        answer[f"{where} fails"] = _failing(made, 100 + number)
        answer[f"{where} remembers"] = made._jobs._context.prompts.held_bytes
    answer["edit"] = _with_image(rank, edit)
    answer["held"] = _encoders_held()
    answer["every_rank"] = draw(_rank(folder, rank, world, "every_rank"), _jobs(), abort={"dropped": 2})
    return answer


def _with_image(rank: int, folder: Path) -> tuple[Any, Any]:
    """What an encoder that sees an image gives: as every rank gets it, and as it is on rank 0 by itself."""
    settings = ModelSettings(path=str(folder), dtype="float32")
    pipe = load_pipeline(settings, str(folder), CPU, without=text_encoders_named(folder))
    encoders = load_text_encoders(folder, pipe, here=rank == 0, encode_on=CPU, dtype=torch.float32, device=CPU)
    asked = {"prompt": ["a red circle"], "image": Image.new("RGB", (56, 56), "red"), "device": CPU}
    remember_prompts(pipe, PromptCache(0), OneEncodes(encoders, torch.distributed.group.WORLD, CPU))
    with torch.no_grad():
        return pipe.encode_prompt(**asked), load_tiny(folder).encode_prompt(**asked) if rank == 0 else None


def test_one_rank_encodes_for_all(tmp_path: Path):
    ranks = run_ranks(2, _ranks, tiny_folder("flux"), tiny_folder("qwen-image-edit"), timeout=300)
    expected = whole([told["every_rank"] for told in ranks])
    assert sorted(expected) == ["first", "other prompt", "same prompt"]
    assert expected["other prompt"].images.std() > 5
    for where in ("one_rank", "split", "cpu"):
        drawn = whole([told[where] for told in ranks])
        assert drawn.keys() == expected.keys()
        for name, output in drawn.items():
            np.testing.assert_array_equal(output.images, expected[name].images)
            assert output.known_prompt == expected[name].known_prompt == (name == "same prompt")
        assert ranks[0][f"{where} remembers"] > ranks[1][f"{where} remembers"] == 0
        failed = [told[f"{where} fails"] for told in ranks]
        for told in failed:
            (failure,) = told["beside"].failures
            assert failure.place == ("error", ("bad",), "encode", 0, "FirstFailed")
            assert failure.message == "RuntimeError: no room for this prompt"
            assert not told["after"].failures
        assert sorted(whole([told["beside"] for told in failed])) == ["beside"]
        assert sorted(whole([told["after"] for told in failed])) == ["bad"], "it was not remembered as encoded"
    alone = ranks[0]["edit"][1]
    for got, _ in (told["edit"] for told in ranks):
        for tensor, same in zip(got, alone, strict=True):
            assert (tensor is None and same is None) or torch.equal(tensor, same)
    assert {"CLIPTextModel", "T5EncoderModel"} <= set(ranks[0]["held"])
    assert ranks[1]["held"] == []


class _Full:
    """torch on a device that is full."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")


def _no_room(rank: int, world_size: int) -> list[str]:
    """What each of two exchanges ends with; rank 1 has no memory for what the first brings."""
    words = []
    for used in (_Full() if rank else torch, torch):
        exchange.torch = used
        try:
            made = exchange.from_first(lambda: {"embeds": torch.ones(3)}, dist.group.WORLD, CPU)
            words.append(str(made))
        except exchange.FirstFailed as error:
            words.append(str(error))
    return words


def test_a_rank_without_room_stops_all_before_anything_is_sent():
    both = ["rank 1: OutOfMemoryError: full", "{'embeds': tensor([1., 1., 1.])}"]
    assert run_ranks(2, _no_room, timeout=120) == [both, both]
