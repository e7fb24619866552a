"""What jobs cost the gang, in seconds: learned from finished ones, for any size, number of images, steps and options.

Three phases, each a sum of a few terms: encoding (fixed), a denoising step (fixed, per token, per pair of tokens, times
the share of blocks that is computed), decoding (fixed, per token, per pair). The warm-up teaches all of them before the
first job. :mod:`raycache.gang.fit` explains how, :mod:`raycache.gang.shares` the share.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from raycache.gang.call_costs import ONE_PROMPT, LearnedCallCosts, decode_terms
from raycache.gang.schedule import JobState
from raycache.gang.shares import Shares
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import Job, JobOutput
from raycache.protocol.lora import LoraChoice
from raycache.size import Size

__all__ = ["Costs", "Work", "work_of"]

_REMEMBERED = 512
#: Placeholders until the model is known; nothing is predicted before.
_TOKEN_SIDE, _TEXT_TOKENS = 16, 512
#: Weight of the newest job in the moving averages.
_NEWEST = 0.3
#: Assumed relative error of predictions while only jobs of the warm-up have been run.
_UNSURE = 0.25


@dataclass(frozen=True)
class Work:
    """The properties of a job that determine how long it takes.

    Attributes:
        cache: an options model of cache_core.
        previews: number of previews, which rank 0 decodes while the others wait.
        calls_per_step: calls of the transformer per step; two if a negative prompt has separate calls.
        num_frames: of a video; 1 for images.
        inputs: number of input images.
        lora: the LoRA used, if any.
    """

    size: Size
    images: int
    steps: int
    cache: Any
    previews: int = 0
    calls_per_step: int = 1
    num_frames: int = 1
    inputs: int = 0
    lora: LoraChoice | None = None

    @property
    def calls(self) -> int:
        """Total number of transformer calls."""
        return self.steps * self.calls_per_step


def work_of(job: Job) -> Work:
    """The work that ``job`` is for a gang."""
    return Work(
        job.size,
        len(job.images),
        job.steps,
        job.cache,
        previews=len(job.preview_steps),
        calls_per_step=job.calls_per_step,
        num_frames=job.inputs.num_frames,
        inputs=len(job.inputs.images),
        lora=job.lora,
    )


class Costs(LearnedCallCosts):
    """Seconds of encoding, steps, decoding and whole jobs, and costs for the scheduler. Thread-safe.

    Attributes:
        error: recent relative error of predictions.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shares = Shares()
        self._text_tokens, self._token_side, self._frame_step = _TEXT_TOKENS, _TOKEN_SIDE, 0
        self._finished: OrderedDict[Work, tuple[int, float]] = OrderedDict()  # their number, and the fastest's
        self._cold_s: dict[str, float] = {}
        self.error = _UNSURE

    @property
    def known(self) -> bool:
        """Whether anything was learned."""
        return self._decode.known

    @property
    def sure(self) -> bool:
        """Whether any job outside the warm-up has finished."""
        return bool(self._finished)

    def meet(self, model: Capabilities, ranks: int = 1) -> None:
        """Set the model, and the number of ranks that it runs on."""
        with self._lock:
            self._ranks = ranks
            self._text_tokens, self._token_side = model.text_tokens, model.token_side
            self._frame_step = model.frame_step
            self._shares.num_blocks = model.num_blocks
            self._told.clear()

    def job_state(
        self, id: str, work: Work, *, arrived: float, deadline: float, caller: str, weight: float = 1.0
    ) -> JobState:
        """A waiting ``work`` as the scheduler sees it; times are as in :class:`~raycache.gang.schedule.JobState`."""
        with self._lock:
            tokens, share = self._row_tokens(work), self._share(work)
        return JobState(
            id=id,
            arrived=arrived,
            shape=(work.size, work.num_frames, work.inputs),
            calls=work.calls,
            tokens=tokens,
            rows=work.images,
            joins=None if work.cache is None else work.cache.joins,
            lora=work.lora,
            caller=caller,
            weight=weight,
            deadline=deadline,
            share=share,
            previews=work.previews,
        )

    def learn(self, work: Work, output: JobOutput, *, wall_s: float = 0.0, cold: bool = False) -> None:
        """Learn from a finished job. Its shared steps are learned elsewhere: see :meth:`called`.

        Args:
            wall_s: seconds from sending it to its complete result; 0 if other jobs were active.
            cold: a job of the warm-up: its stalls are not typical, and it counts little once other jobs have run.
        """
        with self._lock:
            if cold:
                for phase, seconds in _by_phase(output).items():
                    self._cold_s[phase] = max(seconds, self._cold_s.get(phase, 0.0))
            busy = output.encode_s + output.denoise_s + output.decode_s
            expected = None if cold else self._seconds(work)
            share = _computed(output)
            if share is not None and not cold:
                self._shares.learn(work.cache, work.steps, share)
            previews_s = work.previews * (self._preview_s(work) or 0.0)
            steps_s = max(output.denoise_s - previews_s - (output.stalls_s if cold else 0.0), 0.1 * output.denoise_s)
            key = replace(work, previews=0, lora=None)  # there are arbitrarily many scales
            if not output.known_prompt:
                self._encode.learn(1, ONE_PROMPT, output.encode_s, cold)
            share = self._share(work) if share is None else share
            if not output.shared:
                self._step.learn(key, self._step_terms(work, share), steps_s / work.calls, cold)
            self._decode.learn((work.size.pixels, work.images), self._decode_terms(work), output.decode_s, cold)
            self._told.clear()
            if cold or output.shared:
                return
            if wall_s:
                self._between_s += _NEWEST * (max(0.0, wall_s - busy) - self._between_s)
            if expected:
                self.error += _NEWEST * (min(1.0, abs(max(wall_s, busy) / expected - 1)) - self.error)
            count, fastest = self._finished.pop(work, (0, busy))
            self._finished[work] = count + 1, min(fastest, busy)
            if len(self._finished) > _REMEMBERED:
                self._finished.popitem(last=False)

    def seconds(self, work: Work) -> float | None:
        """Expected seconds of the gang's time; None before any job has run."""
        with self._lock:
            return self._seconds(work)

    def left_s(self, work: Work, step: int) -> float | None:
        """Expected seconds until ``work`` is complete, with ``step`` steps already done."""
        with self._lock:
            each = self._step.told(self._step_terms(work, self._share(work)))[0]
            decode = self._decode.told(self._decode_terms(work))[0]
            if each is None or decode is None:
                return None
            left = work.steps - step
            previews_s = work.previews * (self._preview_s(work) or 0.0) / work.steps
            return left * (each * work.calls_per_step + previews_s) + decode

    def fastest(self, work: Work) -> float:
        """Seconds of the fastest of at least two jobs of exactly this kind; 0 if there were fewer."""
        count, fastest = self.finished(work)
        return fastest if count > 1 else 0.0

    def finished(self, work: Work) -> tuple[int, float]:
        """Number of finished jobs of exactly this kind, and the seconds of the fastest."""
        with self._lock:
            return self._finished.get(work, (0, 0.0))

    def phase_s(self, work: Work, phase: str) -> float | None:
        """Seconds without visible progress in ``phase`` of ``work``: the whole phase, or one step computing all blocks.

        Beyond the sizes that were run the estimate is less certain, so it is multiplied by the root of the factor.
        """
        with self._lock:
            if phase == "decode":
                seconds, beyond = self._decode.told(self._decode_terms(work))
            elif phase == "denoise":
                seconds, beyond = self._step.told(self._step_terms(work, 1.0))
                if seconds is not None and work.previews:
                    seconds += self._preview_s(work) or 0.0
            else:
                seconds, beyond = self._encode.told(ONE_PROMPT)
            return None if seconds is None else seconds * max(1.0, beyond) ** 0.5

    def cold_s(self, phase: str) -> float | None:
        """The longest that ``phase`` took in a job of the warm-up."""
        with self._lock:
            return self._cold_s.get(phase if phase in ("denoise", "decode") else "encode")

    def _seconds(self, work: Work) -> float | None:
        encode = self._encode.told(ONE_PROMPT)[0]
        step = self._step.told(self._step_terms(work, self._share(work)))[0]
        decode = self._decode.told(self._decode_terms(work))[0]
        if encode is None or step is None or decode is None:
            return None
        previews_s = work.previews * (self._preview_s(work) or 0.0)
        return encode + work.calls * step + decode + previews_s + self._between_s

    def _share(self, work: Work) -> float:
        return self._shares.expected(work.cache, work.steps)

    def _step_terms(self, work: Work, share: float) -> tuple[float, ...]:
        tokens = self._row_tokens(work)
        rows = work.images * tokens
        return 1.0, share, share * rows, share * rows * tokens

    def _preview_s(self, work: Work) -> float | None:
        """Seconds of one preview, which has half the width and height."""
        half = replace(work, size=Size(max(1, work.size.width // 2), max(1, work.size.height // 2)))
        return self._decode.told(self._decode_terms(half, preview=True))[0]

    def _decode_terms(self, work: Work, *, preview: bool = False) -> tuple[float, ...]:
        """Previews are decoded by rank 0 alone."""
        return decode_terms(work.images if preview else self._longest(work.images), self._tokens(work))

    def _row_tokens(self, work: Work) -> float:
        """Tokens of one row of a call: an input image has about as many tokens as the result."""
        return self._tokens(work) * (1 + work.inputs) + self._text_tokens

    def _tokens(self, work: Work) -> float:
        """Tokens of one image or video."""
        frames = 1 + (work.num_frames - 1) // self._frame_step if self._frame_step else 1
        return work.size.pixels / self._token_side**2 * frames


def _by_phase(output: JobOutput) -> dict[str, float]:
    return {"encode": output.encode_s, "denoise": output.denoise_s, "decode": output.decode_s}


def _computed(output: JobOutput) -> float | None:
    """The share of blocks computed, if a report has it; without a report all were, or it is unknown."""
    if output.report is None:
        return None
    return statistics.fmean(output.report["totals"]["computed_block_fraction"] or [1.0])
