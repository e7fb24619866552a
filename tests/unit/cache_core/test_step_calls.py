"""Which calls belong to one step, told from values alone: what is alive, what is gone, what was written over."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from cache_core import calls
from cache_core.calls import StepCalls, call_inputs

TEXTS = (
    "encoder_hidden_states",
    "pooled_projections",
    "cap_feats",
    "class_labels",
    "encoder_hidden_states_image",
    "image_embeds",
    "encoder_hidden_states_2",
    "encoder_attention_mask",
    "encoder_attention_mask_2",
    "encoder_hidden_states_mask",
    "attention_mask",
    "guidance",
    "siglip_feats",
    "control_hidden_states",
    "added_cond_kwargs",
    "joint_attention_kwargs",
    "attention_kwargs",
)


class Model(nn.Module):
    def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any = None, **more: Any) -> None:
        """Names as most transformers have them."""


class Other(nn.Module):
    def forward(self, x: Any, t: Any, cap_feats: Any, **more: Any) -> None:
        """Names as Z-Image has them."""


LATENTS = torch.zeros(1, 4)


def _places(*calls: tuple[Any, Any]) -> list[int]:
    """The place of each call, told by its timestep and its text."""
    step, places = StepCalls(), []
    for timestep, text in calls:
        places.append(step.begin(call_inputs(Model(), (LATENTS, timestep, text), {})))
        step.end()
    return places


def _text(*values: float) -> torch.Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize("name", TEXTS)
def test_each_kind_of_conditioning_tells_two_calls_apart(name: str):
    step, texts = StepCalls(), [_text(1.0, 2.0), _text(3.0, 4.0)]
    model = Other() if name == "cap_feats" else Model()
    time = {"t": 1.0} if name == "cap_feats" else {"timestep": 1.0}
    places = []
    for text in (*texts, *texts):
        places.append(step.begin(call_inputs(model, (LATENTS,), {**time, name: text})))
        step.end()
    assert places == [1, 2, 1, 2]


@pytest.mark.parametrize(("model", "names"), [(Model(), ("hidden_states", "timestep")), (Other(), ("x", "t"))])
def test_inputs_by_position_and_by_name(model: nn.Module, names: tuple[str, str]):
    time, text = torch.tensor([7.0]), _text(1.0)
    third = "encoder_hidden_states" if names[0] == "hidden_states" else "cap_feats"
    by_position = call_inputs(model, (LATENTS, time, text), {})
    by_name = call_inputs(model, (), {names[0]: LATENTS, names[1]: time, third: text})
    mixed = call_inputs(model, (LATENTS,), {names[1]: time, third: text})
    for inputs in (by_position, by_name, mixed):
        assert inputs.timestep is time
        assert inputs.latents is LATENTS
        assert any(each is text for each in inputs.conditioning)


def test_a_step_ends_with_its_timestep():
    first, second = _text(1.0), _text(2.0)
    assert _places((1.0, first), (1.0, second), (0.9, first), (0.9, second)) == [1, 2, 1, 2]
    assert _places((1.0, first), (0.9, second), (0.8, first)) == [1, 1, 1]
    assert _places((1, first), (1, second)) == [1, 2]
    assert _places((None, first), (None, second)) == [1, 1], "no timestep, no way to tell a step"


def test_a_text_seen_before_begins_a_step_whatever_the_timestep():
    """Also the middle one of three, and not the last alone."""
    a, b, c = (_text(value) for value in (1.0, 2.0, 3.0))
    assert _places(*[(1.0, text) for text in (a, b, c, a, b, c, b, c, a)]) == [1, 2, 3, 1, 2, 3, 2, 3, 1]


def test_a_text_keeps_its_branch_whatever_the_order_of_the_calls():
    wanted, unwanted, none = _text(1.0), _text(2.0), _text(3.0)
    assert _places((1.0, wanted), (1.0, unwanted), (0.5, unwanted), (0.5, wanted)) == [1, 2, 2, 1]
    turns = [(1.0, wanted), (1.0, unwanted), (1.0, none), (0.5, none), (0.5, wanted), (0.5, unwanted), (0.2, unwanted)]
    assert _places(*turns) == [1, 2, 3, 3, 1, 2, 2]


def test_guidance_that_ends_leaves_the_prompt_in_its_branch():
    wanted, unwanted = _text(1.0), _text(2.0)
    guided = [(time, text) for time in (1.0, 0.9) for text in (unwanted, wanted)]
    assert _places(*guided, (0.8, wanted), (0.7, wanted)) == [1, 2, 1, 2, 2, 2]


def test_guidance_that_begins_is_a_branch_of_its_own_also_if_it_is_asked_first():
    wanted, unwanted = _text(1.0), _text(2.0)
    alone = [(1.0, wanted), (0.9, wanted)]
    assert _places(*alone, (0.8, unwanted), (0.8, wanted), (0.7, unwanted), (0.7, wanted)) == [1, 1, 2, 1, 2, 1]


def test_texts_that_change_at_every_step_are_told_by_their_place():
    texts = [_text(float(number)) for number in range(6)]
    times = (1.0, 1.0, 0.9, 0.9, 0.8, 0.8)
    assert _places(*zip(times, texts, strict=True)) == [1, 2, 1, 2, 1, 2]


def test_timesteps_are_compared_in_all_their_values():
    """One for each image or token; image-to-video holds the first frame's at zero."""
    first, second = _text(1.0), _text(2.0)
    assert _places((torch.tensor([0.0, 0.9]), first), (torch.tensor([0.0, 0.9]), second)) == [1, 2]
    assert _places((torch.tensor([0.0, 0.9]), first), (torch.tensor([0.0, 0.8]), second)) == [1, 1]
    assert _places((torch.tensor([0.0]), first), (torch.tensor([0.0, 0.9]), second)) == [1, 1]


def test_a_timestep_written_over_is_another():
    """Pipelines with a buffer of their own write the next step's time into it."""
    time, first, second = torch.tensor([1.0]), _text(1.0), _text(2.0)
    step = StepCalls()
    assert step.begin(call_inputs(Model(), (LATENTS, time, first), {})) == 1
    step.end()
    time.fill_(0.9)
    assert step.begin(call_inputs(Model(), (LATENTS, time, second), {})) == 1


SAME_OR_NOT = {
    "the same": (_text(1.0, 2.0), True),
    "its first value": (_text(1.5, 2.0), False),
    "its last value": (_text(1.0, 2.0001), False),
    "in another order": (_text(2.0, 1.0), False),
    "in another shape": (torch.tensor([1.0, 2.0]), False),
    "longer": (_text(1.0, 2.0, 0.0), False),
    "as a list": ([_text(1.0, 2.0)], False),
    "none": (None, False),
}


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(("text", "same"), SAME_OR_NOT.values(), ids=SAME_OR_NOT)
def test_a_text_is_known_again_by_its_values(text: Any, same: bool, gone: bool):
    """Whether the pipeline still holds what it passed, or makes it anew at every call."""
    held = [_text(1.0, 2.0)]
    step = StepCalls()
    step.begin(call_inputs(Model(), (LATENTS, 1.0, held[0]), {}))
    step.end()
    if gone:
        held.clear()
    assert step.begin(call_inputs(Model(), (LATENTS, 1.0, text), {})) == (1 if same else 2)


def test_texts_that_are_still_there_are_compared_value_by_value():
    """Their weighted sums are equal."""
    assert _places((1.0, text := _text(1.0, 2.0)), (1.0, _text(3.0, 1.0)), (1.0, text)) == [1, 2, 1]


def test_no_text_is_kept_alive():
    """That of a long prompt is tens of megabytes, and its owner may have moved it off the GPU."""
    texts = [[_text(1.0), _text(2.0)], _text(3.0)]
    gone = [weakref.ref(each) for each in (*texts[0], texts[1])]
    step = StepCalls()
    while texts:
        step.begin(call_inputs(Model(), (LATENTS, 1.0, texts.pop()), {}))
        step.end()
    assert [each() for each in gone] == [None] * 3


@pytest.mark.parametrize("gone", [False, True])
def test_texts_on_two_devices_are_two(gone: bool):
    held = [torch.zeros(1, 2)]
    step = StepCalls()
    step.begin(call_inputs(Model(), (LATENTS, 1.0, held[0]), {}))
    step.end()
    if gone:
        held.clear()
    assert step.begin(call_inputs(Model(), (LATENTS, 1.0, torch.zeros(1, 2, device="meta")), {})) == 2


def test_a_list_is_known_by_all_of_it():
    """Z-Image passes a text for each image."""
    a, b, c = (_text(value) for value in (1.0, 2.0, 3.0))
    assert _places((1.0, [a, b]), (1.0, [a, c]), (1.0, [a, b]), (1.0, (a, c))) == [1, 2, 1, 2]
    assert _places((1.0, [a, b]), (1.0, [a]), (1.0, [a, b, c])) == [1, 2, 3]
    assert _places((1.0, [a]), (1.0, a), (1.0, None)) == [1, 2, 3]


def test_numbers_and_words_as_conditioning():
    assert _places((1.0, 3), (1.0, 4), (1.0, 3)) == [1, 2, 1]
    assert _places((1.0, "left"), (1.0, "right"), (1.0, "".join(["le", "ft"]))) == [1, 2, 1]


def test_a_dict_is_known_by_its_names_and_values_as_they_were():
    """A pipeline may change the dict that it passed, between two calls."""
    a, b = _text(1.0), _text(2.0)
    first, second = {"scale": a, "mode": 1}, {"scale": b, "mode": 1}
    assert _places((1.0, first), (1.0, second), (1.0, dict(first)), (1.0, second)) == [1, 2, 1, 2]
    assert _places((1.0, first), (1.0, first | {"mode": 2})) == [1, 2]
    assert _places((1.0, first), (1.0, {"scale": a}), (1.0, first | {"more": 3}), (1.0, [])) == [1, 2, 3, 4]
    assert _places((1.0, {"scale": a}), (1.0, {"mask": a})) == [1, 2]
    step, changed = StepCalls(), {"scale": a}
    assert step.begin(call_inputs(Model(), (LATENTS, 1.0, changed), {})) == 1
    step.end()
    changed["scale"] = b
    assert step.begin(call_inputs(Model(), (LATENTS, 1.0, changed), {})) == 2


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", [torch.cat, list])
def test_a_call_of_other_rows_is_another(kind: Any, tokens: int):
    """Skip-layer guidance asks for the prompt's rows once more: the same text, and the same time for each row or token.

    Rows are a tensor, or a list (Z-Image).
    """
    step, text = StepCalls(), _text(1.0)
    places = []
    for time in (5.0, 4.0):
        for rows in (2, 1):
            timestep = torch.full((rows,) if tokens == 1 else (rows, tokens), time)
            places.append(step.begin(call_inputs(Model(), (kind([LATENTS] * rows), timestep, text), {})))
            step.end()
    assert places == [1, 2, 1, 2]


def test_a_call_that_raised_keeps_its_place_if_it_is_repeated_at_once():
    a, b = _text(1.0), _text(2.0)
    step = StepCalls()

    def begin(text: torch.Tensor, time: float = 1.0, ends: bool = True) -> int:
        place = step.begin(call_inputs(Model(), (LATENTS, time, text), {}))
        if ends:
            step.end()
        else:
            step.undo()
        return place

    assert [begin(a), begin(b, ends=False), begin(b), begin(a, 0.9), begin(b, 0.9)] == [1, 2, 2, 1, 2]
    assert [begin(a), begin(b), begin(b)] == [1, 2, 2], "it returned: the same once more is a new step of its branch"
    assert [begin(a, 0.5), begin(b, 0.5, ends=False), begin(a, 0.5), begin(b, 0.5)] == [1, 2, 1, 2], "drawn anew"
    assert [begin(a, 0.4, ends=False), begin(b, 0.4)] == [1, 2], "given up, and on with the other"


def test_tensors_that_come_again_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    """Not at every step: text and images may be large."""
    looked: list[torch.Tensor] = []
    mark = calls._mark
    monkeypatch.setattr(calls, "_mark", lambda tensor: looked.append(tensor) or mark(tensor))
    prompt, negative = _text(1.0, 2.0), _text(3.0, 4.0)
    assert _places(*((time, text) for time in (1.0, 0.9, 0.8) for text in (prompt, negative))) == [1, 2] * 3
    assert [id(tensor) for tensor in looked] == [id(prompt), id(negative)]


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_are_compared_whole_unless_the_batch_was_split(rows: int):
    """Shares of two images' latents may be equal; a share of the batch has rows that the whole batch does not."""
    whole, share = torch.arange(8.0).reshape(2, 4), torch.zeros(rows, 2)
    given = call_inputs(Model(), (whole, 1.0, _text(1.0)), {})
    assert call_inputs(Model(), (share, 1.0, _text(1.0)), {}).within(given).latents is (whole if rows == 2 else share)
