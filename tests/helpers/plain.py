"""The published methods again, written as simply as possible: the reference for the real ones.

Nothing here is shared with ``cache_core``: one image, no hooks, no sessions, everything stored directly. Options are
dicts with the published names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tests.helpers.tiny_flux import Job

Block = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Walk = Callable[[int, list[Block], torch.Tensor, torch.Tensor], torch.Tensor]


def draw_plainly(model: Any, job: Job, walk: Walk) -> list[torch.Tensor]:
    """FLUX with its two stacks as one list of blocks ``(h, e) -> (h, e)``, executed by ``walk(step, blocks, h, e)``."""
    latents, static, outputs = job.start(), job.static(), []
    ids = torch.cat([static["txt_ids"], static["img_ids"]])
    with torch.no_grad():
        for step in range(job.steps):
            temb = model.time_text_embed(job.timestep(step) * 1000, static["pooled_projections"])
            rotary = model.pos_embed(ids)

            def blocks(module: Any, temb=temb, rotary=rotary) -> Block:
                def block(h, e):
                    e, h = module(hidden_states=h, encoder_hidden_states=e, temb=temb, image_rotary_emb=rotary)
                    return h, e

                return block

            stack = [blocks(module) for module in [*model.transformer_blocks, *model.single_transformer_blocks]]
            hidden = walk(
                step, stack, model.x_embedder(latents), model.context_embedder(static["encoder_hidden_states"])
            )
            output = model.proj_out(model.norm_out(hidden, temb))
            outputs.append(output)
            latents = latents - 0.1 * output + job.drift(step)
    return outputs


def _ratio(stored: torch.Tensor, current: torch.Tensor) -> float:
    return float((stored.double() - current.double()).abs().mean() / stored.double().abs().mean())


def plain_prune(model: Any, job: Job, options: dict[str, Any]):
    """DBPrune. Returns outputs, and for every step the pruned blocks and ``{block: (difference, threshold)}``."""
    doubles = len(model.transformer_blocks)
    count = doubles + len(model.single_transformer_blocks)
    inputs: dict[int, torch.Tensor] = {}
    residuals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    pruned_by_step: list[list[int]] = []
    compared_by_step: list[dict[int, tuple[float, float]]] = []

    def walk(step, blocks, h, e):
        steps_with_prunes = sum(1 for pruned in pruned_by_step if pruned)
        gate_open = (
            step >= options["warmup_steps"]
            and not (options["max_pruned_steps"] >= 0 and steps_with_prunes >= options["max_pruned_steps"])
            and options["residual_diff_threshold"] > 0
        )
        pruned, compared = [], {}
        for b in range(count):
            prunable = (
                options["Fn_compute_blocks"] <= b < count - options["Bn_compute_blocks"]
                and b not in options["non_prune_blocks_ids"]
            )
            seen_by_block = h if b < doubles else torch.cat([e, h], dim=1)
            prune = False
            if prunable and gate_open and b in inputs:
                threshold = options["residual_diff_threshold"]
                earlier = [difference for difference, _ in compared.values() if difference > 0]
                if options["enable_dynamic_prune_threshold"] and earlier:
                    relaxed = options["dynamic_prune_threshold_relax_ratio"] * (sum(earlier) / len(earlier))
                    cap = options["max_dynamic_prune_threshold"]
                    if relaxed < (2 * threshold if cap is None else cap):
                        threshold = max(threshold, relaxed)
                compared[b] = (_ratio(inputs[b], seen_by_block), threshold)
                prune = compared[b][0] < threshold
            if prune:
                pruned.append(b)
                h, e = h + residuals[b][0], e + residuals[b][1]
            else:
                new_h, new_e = blocks[b](h, e)
                if step % options["residual_cache_update_interval"] == 0:
                    inputs[b] = seen_by_block.clone()
                    residuals[b] = (new_h - h, new_e - e)
                h, e = new_h, new_e
        pruned_by_step.append(pruned)
        compared_by_step.append(compared)
        return h

    return draw_plainly(model, job, walk), pruned_by_step, compared_by_step


def plain_dual(model: Any, job: Job, options: dict[str, Any]):
    """DBCache with all its limits and with partial Bn. Returns outputs, cached steps, differences by block and step.

    It deliberately differs from the publication in one point: in the last step that ``max_cached_steps`` allows, the Bn
    blocks outside ``Bn_compute_blocks_ids`` are compared as in any other cached step. In the published code they passed
    the limit check a second time after their own step had been counted, and were all computed.
    """
    doubles = len(model.transformer_blocks)
    count = doubles + len(model.single_transformer_blocks)
    first, tail = options["Fn_compute_blocks"], count - options["Bn_compute_blocks"]
    always = {tail + i for i in options["Bn_compute_blocks_ids"]} or set(range(tail, count))
    fn: dict[str, torch.Tensor] = {}
    kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    cached_steps: list[int] = []
    compared_by_step: list[dict[int, float]] = []

    def walk(step, blocks, h, e):
        entry, compared = h, {}
        for b in range(first):
            h, e = blocks[b](h, e)
        moved = h - entry
        run = 0
        while step - 1 - run in cached_steps:
            run += 1
        may = (
            step >= options["warmup_steps"]
            and not 0 <= options["max_cached_steps"] <= len(cached_steps)
            and not 0 <= options["max_continuous_cached_steps"] <= run
            and options["residual_diff_threshold"] > 0
            and "moved" in fn
        )
        cached = False
        if may:
            compared[first - 1] = _ratio(fn["moved"], moved)
            cached = compared[first - 1] < options["residual_diff_threshold"]
        if cached:
            cached_steps.append(step)
            h, e = h + fn["middle_h"], e + fn["middle_e"]
        else:
            h0, e0 = h, e
            for b in range(first, tail):
                h, e = blocks[b](h, e)
            fn.update(moved=moved, middle_h=h - h0, middle_e=e - e0)
        for b in range(tail, count):
            seen_by_block = h if b < doubles else torch.cat([e, h], dim=1)
            if cached and b not in always and b in kept:
                compared[b] = _ratio(kept[b][0], seen_by_block)
                if compared[b] < (options["non_compute_blocks_diff_threshold"] or options["residual_diff_threshold"]):
                    h, e = h + kept[b][1], e + kept[b][2]
                    continue
            new_h, new_e = blocks[b](h, e)
            if not cached:
                kept[b] = (seen_by_block.clone(), new_h - h, new_e - e)
            h, e = new_h, new_e
        compared_by_step.append(compared)
        return h

    outputs = draw_plainly(model, job, walk)
    return outputs, cached_steps, compared_by_step


def least_squares(nodes: Sequence[torch.Tensor], now: torch.Tensor) -> tuple[list[float], float]:
    """The weights of the nodes, with sum 1, nearest to ``now``, and the error relative to the last node; in float64."""
    vectors = [node.double().flatten().numpy() for node in nodes]
    last, target = vectors[-1], now.double().flatten().numpy()
    solved: list[float] = []
    if len(vectors) > 1:
        differences = np.stack([vector - last for vector in vectors[:-1]], 1)
        solved = np.linalg.lstsq(differences, target - last, rcond=None)[0].tolist()
    weights = [*solved, 1 - sum(solved)]
    forecast = sum(w * vector for w, vector in zip(weights, vectors, strict=True))
    return weights, float(np.linalg.norm(target - forecast) / np.linalg.norm(last))


def plain_forecast(model: Any, job: Job, options: dict[str, Any]):
    """ForecastCache. Returns outputs, cached steps, and for each step the error and the weights, oldest node first.

    The weights are from numpy's least squares on the vectors themselves.
    """
    count = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    first, tail = options["Fn_compute_blocks"], count - options["Bn_compute_blocks"]
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    cached_steps: list[int] = []
    told: list[tuple[float, list[float]] | None] = []

    def walk(step, blocks, h, e):
        entry = h
        for b in range(first):
            h, e = blocks[b](h, e)
        moved = h - entry
        run = 0
        while step - 1 - run in cached_steps:
            run += 1
        told.append(None)
        if step >= options["warmup_steps"] and kept and run != options["max_continuous_cached_steps"]:
            weights, error = least_squares([node for node, _, _ in kept], moved)
            told[-1] = error, weights
        if told[-1] is not None and told[-1][0] < options["residual_diff_threshold"]:
            cached_steps.append(step)
            h = h + sum(w * middle for w, (_, middle, _) in zip(told[-1][1], kept, strict=True))
            e = e + sum(w * text for w, (_, _, text) in zip(told[-1][1], kept, strict=True))
        else:
            h0, e0 = h, e
            for b in range(first, tail):
                h, e = blocks[b](h, e)
            kept.append((moved, h - h0, e - e0))
            del kept[: -options["forecast_nodes"]]
        for b in range(tail, count):
            h, e = blocks[b](h, e)
        return h

    return draw_plainly(model, job, walk), cached_steps, told
