"""Settings of a gang: its ranks, and how their time is shared between jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycache.strict import Strict

__all__ = ["ParallelSettings"]


class ParallelSettings(Strict):
    """One replica = one gang of ranks."""

    ranks_per_replica: int = Field(default=4, ge=1, le=8, description="Ulysses context-parallel degree (world size).")
    device: Literal["cuda", "cpu"] = Field(default="cuda", description="`cuda` runs NCCL, `cpu` runs gloo.")
    accelerator_type: str | None = Field(
        default=None, description="GPU model that every rank must run on, as Ray names it, e.g. `L20`; null = any."
    )
    rank_cpus: float = Field(default=1.0, gt=0, description="CPUs reserved per rank.")
    engine_cpus: float = Field(default=1.0, gt=0, description="CPUs reserved for the replica's own process.")
    rank_gpus: float | None = Field(
        default=None, ge=0, le=1, description="GPUs reserved per rank; default 1 for `cuda` and 0 for `cpu`."
    )
    threads_per_rank: int | None = Field(
        default=None, ge=1, description="torch CPU threads per rank; default: torch's."
    )
    scheduling: Literal["fair", "fifo"] = Field(
        default="fair",
        description="`fair`: many jobs at once, step by step, shared between callers; `fifo`: one at a time.",
    )
    max_active_jobs: int = Field(default=8, ge=1, le=64, description="Jobs that may run at once with `fair`.")
    max_active_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bytes that the caches of running jobs may hold on each rank; null = 80 % of what is free on the "
        "GPU after the warm-up.",
    )
    max_rows: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Images, of several jobs, that one transformer call may hold at once where it pays; 1 = no joined "
        "calls.",
    )
    prompt_cache_bytes: int = Field(
        default=128 << 20,
        ge=0,
        description="Bytes of encoded prompts that each encoding rank caches, on the device that encodes; 0 = none.",
    )
    overlap_decoding: bool | None = Field(
        default=None,
        description="Decode finished images during the next transformer calls; default: on `cuda`, where the device "
        "has room for both.",
    )
    spare_processes: bool | None = Field(
        default=None,
        description="A spare process for each rank with all libraries imported, for a faster rebuild after a fault: "
        "about 0.5 GB of the node's memory each, none of a GPU's. Default: on `cuda`.",
    )
    decode_tiles: Literal["auto", "never", "always"] = Field(
        default="auto",
        description="Decode images by tiles, shared by all ranks: `auto` those with more pixels than "
        "`decode_tiles_pixels`, if the model's VAE has tiles that can be shared; `always` all that are larger than a "
        "tile; `never` none.",
    )
    decode_tiles_pixels: int = Field(
        default=2 * 2048 * 2048,
        ge=1,
        description="Maximum number of pixels, over all frames of a video, that `decode_tiles: auto` decodes whole.",
    )
    collective_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="Process-group time-out in seconds, once warm: second line of defence behind the hang detector.",
    )
    nodes_may_come: bool = Field(
        default=False,
        description="Replace running engines even if no node can hold a gang: an autoscaler will add one.",
    )
    startup_timeout_s: float = Field(
        default=1800.0, gt=0, description="Seconds until all ranks must have loaded and joined (downloads included)."
    )

    @property
    def keeps_spares(self) -> bool:
        """Whether processes wait for the gang's next rebuild."""
        return self.device == "cuda" if self.spare_processes is None else self.spare_processes

    @property
    def overlaps_decoding(self) -> bool:
        """Whether images are decoded beside the next calls."""
        return self.device == "cuda" if self.overlap_decoding is None else self.overlap_decoding

    @property
    def gpus_per_rank(self) -> float:
        """GPUs in one rank's placement bundle."""
        if self.rank_gpus is not None:
            return self.rank_gpus
        return 1.0 if self.device == "cuda" else 0.0
