"""One rank: a process group, a pipeline on one device, and the jobs that are run with it.

``heartbeat`` is called by another thread than ``tick``, also while that waits in a collective.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import ray
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from raycache.logs import to_stderr
from raycache.models.arguments import pipelines_of
from raycache.models.compiling import BlockCompiler, keep_compiled
from raycache.models.denoisers import denoisers_of
from raycache.models.host_memory import told_of_casts
from raycache.models.loading import capabilities_of, import_pipeline, load_pipeline
from raycache.models.lora_files import fetch_loras
from raycache.models.quantization import configs_of
from raycache.models.registry import family_of
from raycache.models.source import cache_folder, prepare_model
from raycache.models.text_encoders import TextEncoders, load_text_encoders, text_encoders_named
from raycache.protocol.capabilities import ModelKind
from raycache.protocol.heartbeat import Heartbeat, Loaded, Settled
from raycache.protocol.tick import Tick, TickReport
from raycache.settings import AppSettings
from raycache.worker.active_job import Place, RankContext
from raycache.worker.adapters import adapters_of
from raycache.worker.encoding import OneEncodes
from raycache.worker.job_runner import JobRunner
from raycache.worker.load_stages import LoadStages, compile_seconds, tell_compiling
from raycache.worker.observer import observer_of
from raycache.worker.process_group import join_group, open_store
from raycache.worker.prompt_cache import PromptCache
from raycache.worker.remote_layers import RemoteLayers
from raycache.worker.tiles import tiled_over

__all__ = ["Rank"]

_logger = logging.getLogger("raycache.rank")


class Rank:
    """What runs in a rank's process; :mod:`raycache.worker.actor` has the actor around it."""

    def __init__(self, settings: AppSettings, rank: int, stacks: str, gpus: Sequence[str] = ()) -> None:
        self._settings, self._rank, self._gpus = settings, rank, list(gpus)
        self._world = settings.parallel.ranks_per_replica
        self._device = torch.device("cuda:0" if settings.parallel.device == "cuda" else "cpu")
        self._group: dist.ProcessGroup | None = None
        self._store: dist.TCPStore | None = None
        self._layers: RemoteLayers | None = None
        self._place, self._compiler = Place(), BlockCompiler()
        to_stderr(settings.logging)
        # The hang detector asks for the stacks of a hanging rank by signal: it works while Python itself is stuck.
        self._stacks = Path(stacks).open("w")  # noqa: SIM115 - open as long as the rank lives
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)

    def prepare(self) -> tuple[str, ModelKind]:
        """Rank 0 only: what to load; builds the noise model if that is asked for. LoRAs of the hub are fetched, too."""
        fetch_loras(self._settings.model)
        return prepare_model(self._settings.model)

    def open_store(self) -> int:
        """Rank 0 only: opens the gang's meeting point and tells its port."""
        self._store = open_store(self._world)
        return self._store.port

    def join(self, port: int) -> None:
        """Join the process group. A gang of one needs none."""
        self._claim_thread()
        if self._world > 1:
            join_group(
                device=self._device,
                port=port,
                store=self._store,
                rank=self._rank,
                world_size=self._world,
                # While ranks load and generate their first images, one may compile much longer than another.
                timeout_s=self._settings.parallel.startup_timeout_s,
            )

    def settle(self) -> Settled:
        """The gang is warm: from now on a collective may take ``collective_timeout_s`` at most.

        If a rank could not compile, none runs compiled blocks.
        """
        self._claim_thread()
        self._compiler.agree(self._group)
        if self._group is not None:
            limit = self._settings.parallel.collective_timeout_s
            _set_pg_timeout(timedelta(seconds=limit), self._group)
            if self._layers is not None:
                self._layers.limit(limit)
        free_bytes = torch.cuda.mem_get_info()[0] if self._device.type == "cuda" else None
        return Settled(free_bytes, compile_seconds() if self._settings.compiles else 0.0)

    def get_ready(self, source: str) -> None:
        """Import what :meth:`load` will need. Nothing is read, and no device is touched."""
        import_pipeline(Path(source))
        if self._world > 1:
            import raycache.worker.context_parallel  # noqa: F401 - so that it is there

    def load(self, source: str, kind: ModelKind) -> Loaded:
        """Load the pipeline and split its transformer over the ranks."""
        self._claim_thread()
        stages = LoadStages()
        self.get_ready(source)
        if self._settings.compiles:
            keep_compiled(cache_folder(self._settings.model) / "compiled")
            tell_compiling(self._place.compiles)
        stages.ended("import")
        encoders = self._load_pipeline(source, stages.ended)
        model = capabilities_of(self._pipe, self._settings.model, kind)
        family = family_of(model.pipeline, kind)
        # Before any call: with `model.compile` blocks must be compiled with a LoRA's place in them.
        adapters = adapters_of(self._pipe, self._settings.model, compiled=self._settings.compiles)
        if self._world > 1:
            from raycache.worker.context_parallel import parallelize

            for denoiser in denoisers_of(self._pipe).values():
                self._group = parallelize(denoiser, family.called)
        context = RankContext(
            self._pipe,
            family,
            self._rank,
            self._device,
            model.text_tokens,
            self._world,
            self._settings.parallel.overlaps_decoding,
            PromptCache(self._settings.parallel.prompt_cache_bytes),
            self._place,
            observer_of(self._rank),
            pipelines_of(self._pipe, family),
            adapters=adapters,
            one_encodes=None if encoders is None else self._one_encodes(encoders),
            tiled_over=tiled_over(self._settings, self._pipe),
        )
        self._jobs = JobRunner(context, self._group, self._claim_thread)
        self._place.idle()
        stages.ended("split")
        return Loaded(model, stages.seconds)

    def _load_pipeline(self, source: str, ended: Callable[[str], None]) -> TextEncoders | None:
        """Returns text encoders that stand apart from it."""
        model, folder = self._settings.model, Path(source)
        if self._rank == 0 and (casts := told_of_casts(folder, model.dtype, self._world)):
            _logger.warning(casts)
        if model.text_encoders == "every_rank" or (model.text_encoders != "cpu" and self._world == 1):
            self._pipe = load_pipeline(model, source, self._device, ended=ended, compiler=self._compiler)
            return None
        without = text_encoders_named(folder)
        self._pipe = load_pipeline(model, source, self._device, without=without, ended=ended, compiler=self._compiler)
        family = family_of(type(self._pipe).__name__)
        return load_text_encoders(
            folder,
            self._pipe,
            here=self._rank == 0 or model.text_encoders == "split",
            encode_on=self._device if model.text_encoders == "one_rank" else torch.device("cpu"),
            dtype=getattr(torch, model.dtype),
            device=self._device,
            quantized=configs_of(model, family, folder),
        )

    def _one_encodes(self, encoders: TextEncoders) -> OneEncodes:
        """As ``model.text_encoders`` says, with what :meth:`_load_pipeline` returned."""
        if self._settings.model.text_encoders != "split":
            return OneEncodes(encoders, self._group, self._device)
        assert self._group is not None  # one rank alone loads them with its pipeline
        self._layers = RemoteLayers.of(self._group, self._device, self._settings.parallel.startup_timeout_s)
        here = replace(encoders, modules=self._layers.divide(encoders.modules), device=self._device)
        return OneEncodes(here, self._group, self._device, self._layers)

    def tick(self, tick: Tick) -> TickReport:
        """Carry out what the gang's thread has planned for all ranks."""
        self._claim_thread()
        return self._jobs.tick(tick)

    def heartbeat(self) -> Heartbeat:
        """Answers also while ``tick`` is inside a collective."""
        context, place = ray.get_runtime_context(), self._place
        return Heartbeat(
            pid=os.getpid(),
            node=context.get_node_id(),
            device=str(self._device),
            gpus=self._gpus or context.get_accelerator_ids().get("GPU", []),
            jobs=place.jobs,
            phase="compile" if place.compiling else place.phase,
            step=place.step,
            calls=place.calls,
            memory=psutil.Process().memory_info().rss,
            device_memory=torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0,
            collective_wait_s=round(place.collective_wait_s, 3),
            compile_failure=self._compiler.failure,
        )

    def _claim_thread(self) -> None:
        """Methods with concurrency groups run on another thread than ``__init__``; these settings are per thread."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        if self._settings.parallel.threads_per_rank:
            torch.set_num_threads(self._settings.parallel.threads_per_rank)
