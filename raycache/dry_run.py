"""The builder's checks before Serve acts: a configuration that cannot work never replaces one that does.

Serve runs the builder first. An error here ends the deployment, and running engines keep serving. Files are checked
where they will be read: the builder's own node, often a head without models and keys, does not count.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycache.cluster.capacity import Bundle, Gangs, shortage, shortage_of_all
from raycache.cluster.port_check import check_port, living_replicas
from raycache.ingress.auth import read_keys
from raycache.model_names import ENGINE
from raycache.models.folder import capabilities_told, folder_faults
from raycache.models.lora_files import lora_faults
from raycache.models.quantized_folder import quantization_faults
from raycache.models.registry import family_of, own_model
from raycache.models.source import ModelNotFound, model_outline
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import check_deployment
from raycache.protocol.sizes import check_size
from raycache.settings import AppSettings, ServiceSettings
from raycache.store.folder_check import check_folder

__all__ = ["CannotWork", "Findings", "look_here", "refuse_what_cannot_work"]

logger = logging.getLogger("ray.serve")

#: Seconds to wait for a node; one that does not answer has no objections.
_NODE_S = 60.0


class CannotWork(RayServeException, ValueError):
    """This configuration cannot work; the message says where and why. Running engines keep serving.

    A Serve exception: its build task reports such a message unchanged, and retries three times for other errors.
    """


@dataclass
class Findings:
    """Objections to the settings on one node: for an ingress or store, and for engines by model."""

    ingress: list[str] = field(default_factory=list)
    store: list[str] = field(default_factory=list)
    engines: dict[str, list[str]] = field(default_factory=dict)


def refuse_what_cannot_work(settings: ServiceSettings, bundles: Mapping[str, Sequence[Bundle]]) -> None:
    """Check everything that can be known without loading a model.

    Args:
        settings: the application's.
        bundles: resources that one gang of each model needs.

    Raises:
        CannotWork: before anything was changed.
    """
    _refuse(_of_model(settings, one, wrong) for one in settings.engines for wrong in _contradictions(one))
    if not ray.is_initialized():  # `serve run` of an application object: the cluster starts later
        here = look_here(settings)
        _refuse([*(wrong for one in here.engines.values() for wrong in one), *here.ingress, *here.store])
        return
    if problem := check_port():
        raise CannotWork(problem)
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    front = [{"CPU": settings.ingress.num_cpus}]
    if _replaces_engines():
        # If nothing serves yet, nodes may still be starting; the ingress reports what is missing.
        _refuse(_lacking(settings, bundles, front, list(nodes.values())))
    found = _look(settings, list(nodes))
    for model, asked in bundles.items():
        _agree("engine", {node: found[node].engines.get(model, []) for node in _places(asked, nodes) if node in found})
    _agree("ingress", {node: found[node].ingress for node in _places(front, nodes) if node in found})
    if settings.store:
        places = _places([{"CPU": settings.store.num_cpus}], nodes)
        _agree("store", {node: found[node].store for node in places if node in found})


def look_here(settings: ServiceSettings) -> Findings:
    """Objections to the settings on this node: its models, presets, keys and store folder."""
    engines = {}
    for one in settings.engines:
        wrong = _said(partial(_check_engine, one))
        engines[one.model.name] = [_of_model(settings, one, reason) for reason in wrong]
    store = settings.store
    kept = _said(lambda: check_folder(store.folder)) if store else []
    return Findings(ingress=_said(lambda: _check_ingress(settings)), store=kept, engines=engines)


def _lacking(
    settings: ServiceSettings, bundles: Mapping[str, Sequence[Bundle]], front: Sequence[Bundle], nodes: Sequence[Bundle]
) -> Iterable[str]:
    """What the cluster lacks for one gang of each model, and for an ingress."""
    settled = [one for one in settings.engines if not one.parallel.nodes_may_come]
    # Models that can have no engines running need no place next to others.
    number = {one.model.name: min(1, one.engines_kept) if len(settled) > 1 else 1 for one in settled}
    gangs = [Gangs(name, bundles[name], count) for name, count in number.items()]
    if gangs and (reason := shortage_of_all(gangs, nodes)):
        yield reason
    if gangs and (reason := shortage(front, nodes)):
        yield reason


def _of_model(settings: ServiceSettings, one: AppSettings, reason: str) -> str:
    """``reason`` with the name of its model, if there are several."""
    return f"model {one.model.name!r}: {reason}" if settings.models else reason


def _check_engine(settings: AppSettings) -> None:
    policy = settings.policy  # reads the presets
    with tempfile.TemporaryDirectory(prefix="raycache-look-") as scratch:
        folder = model_outline(settings.model, Path(scratch))
        model = None
        if folder is not None:
            downloaded = settings.model.path in ("demo", "noise") or Path(settings.model.path).expanduser().is_dir()
            faults = folder_faults(folder, weights=downloaded or settings.model.local_files_only)
            faults += lora_faults(settings.model) + quantization_faults(settings.model, folder)
            if faults:
                raise ValueError("; ".join(faults))
            model = capabilities_told(folder, settings.model.max_sequence_length)
    # A model of unknown capabilities causes no objections.
    ranks = settings.parallel.ranks_per_replica
    side = _token_side(settings)
    check_deployment(settings, policy, model or Capabilities("folder", 1_000_000, ranks, ranks, "", side, uneven=True))
    if model and (faults := list(_warmup_faults(settings, model.token_side, model.uneven))):
        raise ValueError("; ".join(faults))


def _check_ingress(settings: ServiceSettings) -> None:
    read_keys(settings.ingress.api_keys_file)


def _contradictions(settings: AppSettings) -> Iterable[str]:
    """Errors that do not depend on the node. How a folder's model can be split is checked where the folder is."""
    return _warmup_faults(settings, _token_side(settings), uneven=own_model(settings.model.path) is None)


def _warmup_faults(settings: AppSettings, side: int, uneven: bool) -> Iterable[str]:
    ranks = settings.parallel.ranks_per_replica
    for shape in settings.warmup:
        try:
            check_size(shape.size, side=side, ranks=ranks, max_pixels=max(shape.size.pixels, 1), uneven=uneven)
        except RequestError as error:
            yield f"warmup: {error}"


def _token_side(settings: AppSettings) -> int:
    """The token side of a model that was not read: that of the family for its name."""
    return (own_model(settings.model.path) or family_of("")).token_side


def _said(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except OSError as error:
        return [f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"]
    except (ValueError, ModelNotFound) as error:
        return [str(error)]
    return []


def _look(settings: ServiceSettings, nodes: Iterable[str]) -> dict[str, Findings]:
    """Each node's findings, by its id; nodes that do not answer are left out."""
    here = ray.get_runtime_context().get_node_id()
    there = {
        _look_there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(settings): node
        for node in nodes
        if node != here
    }
    found = {here: look_here(settings)}
    for ref in ray.wait(list(there), num_returns=len(there), timeout=_NODE_S)[0] if there else ():
        try:
            found[there[ref]] = ray.get(ref)
        except RayError as error:
            logger.warning("Node %s could not check models, keys and folders: %s", there[ref], error)
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _look_there(settings: ServiceSettings) -> Findings:
    return look_here(settings)


def _places(bundles: Sequence[Bundle], nodes: Mapping[str, Bundle]) -> list[str]:
    """The nodes that could hold all of ``bundles``."""
    return [name for name, node in nodes.items() if shortage(bundles, [node]) is None]


def _agree(who: str, said: Mapping[str, Sequence[str]]) -> None:
    """Refuse if all nodes that could hold a ``who`` object; warn if some do.

    Args:
        said: the objections of each such node.
    """
    objections = {node: reasons for node, reasons in said.items() if reasons}
    for node, reasons in objections.items():
        if len(objections) < len(said):
            logger.warning("No %s can start on node %s: %s", who, node, "; ".join(reasons))
    if said and len(objections) == len(said):
        _refuse(next(iter(objections.values())))


def _replaces_engines() -> bool:
    """Whether an application that is being deployed has engines that serve."""
    deploying = [name for name, app in serve.status().applications.items() if app.status == "DEPLOYING"]
    engines = [f"{app}#{ENGINE}{mark}" for app in deploying for mark in ("#", "-")]
    return any(name.startswith(tuple(engines)) for name in living_replicas())


def _refuse(reasons: Iterable[str]) -> None:
    if reasons := list(dict.fromkeys(reasons)):
        raise CannotWork("this configuration cannot work and is not deployed: " + "; ".join(reasons))
