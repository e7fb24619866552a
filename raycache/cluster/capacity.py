"""Can this cluster hold the gang? Ray and Serve wait for ever and in silence when it cannot; this module says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Bundle = Mapping[str, float]


def total(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Sum of resources over bundles."""
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Bundle], replicas: int = 1) -> str | None:
    """Why ``replicas`` gangs cannot be placed, with advice; None when they can.

    A gang is placed STRICT_PACK, so one node must hold all of its bundles.

    Args:
        bundles: what one gang asks.
        nodes: total resources of each live node.
        replicas: gangs wanted.
    """
    asked = total(bundles)
    places = sum(_gangs_on(node, asked) for node in nodes)
    if places >= replicas:
        return None
    there = "; ".join(_words(node, asked) for node in nodes) or "no node"
    what = f"{replicas} gang{'s' if replicas > 1 else ''}, each on one node with {_words(asked, asked)}"
    return f"this cluster cannot hold {what}. It has {there}. {_advice(asked, nodes, places)}"


def _gangs_on(node: Bundle, asked: Bundle) -> int:
    return int(min((node.get(name, 0.0) / amount + 1e-9 for name, amount in asked.items() if amount), default=0))


def _words(resources: Bundle, names: Mapping[str, object]) -> str:
    shown = [name for name in resources if name in names or name.startswith("accelerator_type:")]
    missing = [name for name in names if name not in resources]
    return ", ".join([*(f"{resources[name]:g} {name}" for name in shown), *(f"0 {name}" for name in missing)])


def _advice(asked: Bundle, nodes: Sequence[Bundle], places: int) -> str:
    if places:
        return f"Set num_replicas: {places}, or add nodes."
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
    short = [name for name, amount in asked.items() if most[name] < amount - 1e-9]
    if asked.get("GPU") and not most["GPU"]:
        return "No node has a GPU: serve_configs/laptop_dbcache.yaml needs none."
    kinds = [name for name in short if name.startswith("accelerator_type:")]
    if kinds:
        found = sorted({n for node in nodes for n in node if n.startswith("accelerator_type:")})
        return f"Set parallel.accelerator_type to what is there ({', '.join(found) or 'null'}), or add such nodes."
    if "GPU" in short:
        return f"Set parallel.ranks_per_replica to {_power_of_two(most['GPU'])} (the largest gang that fits a node)."
    if "CPU" in short:
        return "Lower parallel.rank_cpus and parallel.engine_cpus; serve_configs/laptop_dbcache.yaml fits 2 CPUs."
    return "No single node has all of it at once."


def _power_of_two(limit: float) -> int:
    return 1 << max(0, int(limit).bit_length() - 1)
