"""Merges the reports of all ranks on a tick into one, and checks that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raycache.gang.worker_group import Fault
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import JobOutput
from raycache.protocol.tick import TickReport

__all__ = ["agreed", "of_all"]


def agreed(reports: Sequence[TickReport]) -> TickReport:
    """Rank 0's report, with the images of all ranks; a job fails if any rank could not decode one of its rows.

    Args:
        reports: one per rank, in order.

    Raises:
        Fault: a rank had a failure that others did not have, or the process group is broken.
    """
    first, alike = reports[0], [of_all(report) for report in reports]
    broken = [failure for failures in alike for failure in failures if failure.kind == "group"]
    places = {(report.skipped, tuple(f.place for f in own)) for report, own in zip(reports, alike, strict=True)}
    if broken or len(places) > 1:
        words = dict.fromkeys(str(failure) for failures in alike for failure in failures)
        raise Fault("error", "; ".join(words) or "some ranks skipped a tick that others carried out")
    undecoded = {f.jobs[0]: f for report in reports for f in report.failures if f.phase == "decode"}
    outputs = {id: _whole(id, output, reports) for id, output in first.outputs.items() if id not in undecoded}
    return replace(first, failures=[*alike[0], *undecoded.values()], outputs=outputs)


def of_all(report: TickReport) -> list[Failure]:
    """The failures that every rank must have: all except in decoding, where each rank has its own rows.

    Failures of the process group are always among them: ranks send each other tiles.
    """
    return [failure for failure in report.failures if failure.phase != "decode" or failure.kind == "group"]


def _whole(id: str, output: JobOutput, reports: Sequence[TickReport]) -> JobOutput:
    rows = {row: image for report in reports for row, image in report.decoded.get(id, {}).items()}
    seconds = max(report.decode_s.get(id, 0.0) for report in reports)
    sound = next((report.sounds[id] for report in reports if id in report.sounds), None)
    return replace(output, images=np.stack([rows[row] for row in sorted(rows)]), decode_s=seconds, sound=sound)
