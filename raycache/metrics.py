"""Every metric of the application: name, unit, help. Scraped from Ray's metrics port as ``ray_<name>``.

Names end in their unit (``_seconds``, ``_ratio``) or in ``_total`` for counts. Inside a replica Serve adds the tags
``deployment``, ``replica`` and ``application``. A new metric needs one spec here and a place that sets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from raycache.metric_specs import Spec, Specified
from raycache.protocol.errors import RequestError
from raycache.protocol.job import GangStatus
from raycache.store_metrics import StoreMetrics

__all__ = ["SPECS", "IngressMetrics", "Metrics"]

#: From a preview-sized image on a GPU to a large one on a CPU.
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_DIFFERENCES = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0)


class Metrics(Specified):
    """The metrics of one engine. ``size`` is ``WIDTHxHEIGHT`` where declared for warm-up, else ``other``."""

    requests = Spec(
        Counter,
        "raycache_requests_total",
        "Requests by outcome (done, refused, aborted, failed) and cause (the error's code; empty when done).",
        ("outcome", "cause"),
    )
    images = Spec(Counter, "raycache_images_total", "Images generated.", ("method", "size"))
    queue_seconds = Spec(
        Histogram,
        "raycache_queue_seconds",
        "Seconds that a job waited: before its start, and during the turns of others.",
        ("method",),
        _SECONDS,
    )
    predicted_queue_seconds = Spec(
        Gauge, "raycache_predicted_queue_seconds", "Predicted seconds by which others delay a job that arrives now."
    )
    queued_jobs = Spec(Gauge, "raycache_queued_jobs", "Jobs admitted and not yet started.")
    encode_seconds = Spec(
        Histogram, "raycache_encode_seconds", "Seconds in the text encoders.", ("method", "size"), _SECONDS
    )
    denoise_seconds = Spec(
        Histogram,
        "raycache_denoise_seconds",
        "Seconds in transformer calls; one that several jobs share counts in full for each.",
        ("method", "size"),
        _SECONDS,
    )
    decode_seconds = Spec(
        Histogram, "raycache_decode_seconds", "Seconds in the VAE decoder.", ("method", "size"), _SECONDS
    )
    # Ray sums histograms from the middles of their buckets; these sums are exact.
    stage_seconds = Spec(
        Counter,
        "raycache_stage_seconds_total",
        "Seconds that finished jobs spent in a stage: queue, encode, denoise, decode.",
        ("stage",),
    )
    cached_steps_ratio = Spec(
        Histogram,
        "raycache_cached_steps_ratio",
        "Share of an image's steps that reused the cache.",
        ("method",),
        _RATIOS,
    )
    computed_blocks_ratio = Spec(
        Histogram,
        "raycache_computed_blocks_ratio",
        "Share of an image's block calls that were computed.",
        ("method",),
        _RATIOS,
    )
    residual_difference = Spec(
        Histogram,
        "raycache_residual_difference",
        "Relative L1 difference behind each decision.",
        ("method",),
        _DIFFERENCES,
    )
    non_finite = Spec(Counter, "raycache_non_finite_total", "Differences that were not finite.", ("method",))
    restarts = Spec(
        Counter,
        "raycache_rank_restarts_total",
        "Replacements of all ranks, by kind of fault (death, hang, error).",
        ("cause",),
    )
    retries = Spec(
        Counter,
        "raycache_retries_total",
        "Jobs run again after a fault, by kind of fault (death, hang, error).",
        ("cause",),
    )
    fault_to_image_seconds = Spec(
        Histogram,
        "raycache_fault_to_next_image_seconds",
        "Seconds from noticing a fault to the next image.",
        boundaries=_SECONDS,
    )
    collective_wait_seconds = Spec(
        Counter,
        "raycache_collective_wait_seconds_total",
        "Seconds a rank waited for the others in the decisions' all-reduce; the slowest rank waits least.",
        ("rank",),
    )
    rank_memory = Spec(Gauge, "raycache_rank_memory_bytes", "Resident memory of a rank's process.", ("rank",))
    rank_device_memory = Spec(
        Gauge, "raycache_rank_device_memory_bytes", "Peak memory a rank has allocated on its GPU.", ("rank",)
    )
    rank_uncompiled = Spec(
        Gauge,
        "raycache_rank_uncompiled",
        "1 while a rank runs transformer blocks uncompiled because compiling failed, else 0.",
        ("rank",),
    )
    user_config_refused = Spec(
        Gauge,
        "raycache_user_config_refused",
        "1 while the last `user_config` is illegal and an older one is in force, else 0.",
    )
    ready = Spec(Gauge, "raycache_engine_ready", "1 while a warm gang without faults serves, else 0.")

    def __init__(self, sizes: Iterable[str] = ()) -> None:
        super().__init__()
        self._sizes = frozenset(sizes)
        self._counted: dict[tuple[str, str], float] = {}

    def done(self, method: str, size: str, images: int, stages: dict[str, float]) -> None:
        """Record a finished job; ``stages`` in seconds: queue, encode, denoise, decode."""
        tags = {"method": method, "size": size if size in self._sizes else "other"}
        self.requests.inc(tags={"outcome": "done", "cause": ""})
        self.images.inc(images, tags)
        self.queue_seconds.observe(max(stages["queue"], 0.0), {"method": method})
        self.encode_seconds.observe(stages["encode"], tags)
        self.denoise_seconds.observe(stages["denoise"], tags)
        self.decode_seconds.observe(stages["decode"], tags)
        for stage, seconds in stages.items():
            if seconds > 0:
                self.stage_seconds.inc(seconds, {"stage": stage})

    def decided(self, report: dict[str, Any]) -> None:
        """Record the cache's decisions in a finished job; ``report`` is ``CacheReport.to_dict()``."""
        method, totals = {"method": report["method"]}, report["totals"]
        for cached in totals["cached_steps"]:
            self.cached_steps_ratio.observe(cached / max(1, totals["steps"]), method)
        for computed in totals["computed_block_fraction"]:
            self.computed_blocks_ratio.observe(computed, method)
        for step in report["steps"]:
            for image in step["images"]:
                if image["residual_diff"] is not None:
                    self.residual_difference.observe(image["residual_diff"], method)
        if totals["non_finite"]:
            self.non_finite.inc(totals["non_finite"], method)

    def gang(self, status: GangStatus) -> None:
        """Record the gang's status; counters advance by the changes since the last call."""
        self.ready.set(float(status.ready))
        for cause, count in status.retry_causes.items():
            self._advance(self.retries, cause, count, {"cause": cause})
        for cause, count in status.causes.items():
            self._advance(self.restarts, cause, count, {"cause": cause})
        for heartbeat in status.ranks:
            tags = {"rank": str(heartbeat["rank"])}
            if "memory" in heartbeat:
                self.rank_memory.set(heartbeat["memory"], tags)
                self.rank_device_memory.set(heartbeat["device_memory"], tags)
                self.rank_uncompiled.set(float(bool(heartbeat.get("compile_failure"))), tags)
                key = f"{heartbeat['rank']} of {heartbeat['pid']}"  # a new process counts from zero
                self._advance(self.collective_wait_seconds, key, heartbeat["collective_wait_s"], tags)

    def _advance(self, counter: Counter, key: str, value: float, tags: dict[str, str]) -> None:
        counted = (counter.info["name"], key)
        if (new := value - self._counted.get(counted, 0.0)) > 0:
            counter.inc(new, tags)
            self._counted[counted] = value

    def ended(self, outcome: str, cause: str) -> None:
        """Record a request without a result: ``refused`` before it started, ``aborted`` or ``failed`` after."""
        self.requests.inc(tags={"outcome": outcome, "cause": cause})


class IngressMetrics(Specified):
    """The metrics of one ingress: errors that it answers itself never reach an engine's counters."""

    errors = Spec(
        Counter, "raycache_http_errors_total", "Errors answered over HTTP, by status and code.", ("status", "code")
    )
    rerouted = Spec(
        Counter,
        "raycache_rerouted_total",
        "Jobs asked of another engine after the first was lost, by the code of that error.",
        ("model", "cause"),
    )
    ready = Spec(
        Gauge,
        "raycache_service_ready",
        "1 while a request would be served or would wake an engine, as `/readyz` says, else 0.",
    )

    model_ready = Spec(
        Gauge,
        "raycache_model_ready",
        "1 while a request for this model would be served or would wake an engine, else 0.",
        ("model",),
    )

    def answered(self, error: RequestError) -> None:
        """Record an error sent to a client."""
        self.errors.inc(tags={"status": str(error.status), "code": error.code})

    def asked_again(self, failure: RequestError, model: str) -> None:
        """Record a job sent to another engine of the model after ``failure``, which the client did not get."""
        self.rerouted.inc(tags={"model": model, "cause": failure.code})


#: All metrics, in the order of the documents.
SPECS = (*Metrics.specs, *IngressMetrics.specs, *StoreMetrics.specs)
