"""A report as a short table for people."""

from __future__ import annotations

from cache_core.report import CacheReport, ImageDecision

__all__ = ["format_summary"]


def format_summary(reports: dict[str, CacheReport]) -> str:
    """One line per image and branch: cached steps, share of blocks computed, and one character for each step.

    There ``.`` is a computed step, ``#`` a cached one, and a digit the tenths of the step's blocks that were pruned.
    """
    if not reports:
        return "no cached call yet"
    lines = []
    for name, report in reports.items():
        totals = report.to_dict()["totals"]
        lines.append(
            f"{name}: {report.method}, {totals['steps']} steps of {report.num_blocks} blocks, "
            f"{totals['collectives']} collectives, {totals['non_finite']} non-finite"
        )
        lines.append(f"{'image':>7} {'branch':>8} {'cached':>7} {'computed':>9}  steps")
        for image in range(len(totals["computed_block_fraction"])):
            for branch in dict.fromkeys(step.branch for step in report.steps):
                steps = [step.images for step in report.steps if step.branch == branch]
                decisions = [images[image] for images in steps if image < len(images)]
                if not decisions:
                    continue
                strip = "".join("#" if d.cached else _pruned(d, report.num_blocks) for d in decisions)
                share = sum(d.computed_blocks for d in decisions) / (report.num_blocks * len(decisions))
                cached = sum(d.cached or bool(d.pruned_blocks) for d in decisions)
                lines.append(f"{image:>7} {branch:>8} {cached:>7} {share:>9.1%}  {strip}")
    return "\n".join(lines)


def _pruned(decision: ImageDecision, num_blocks: int) -> str:
    if not decision.pruned_blocks:
        return "."
    return str(min(9, 10 * len(decision.pruned_blocks) // num_blocks))
