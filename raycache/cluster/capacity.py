"""Checks whether the cluster can hold the gangs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Bundle", "Gangs", "fit_together", "room_for_each", "shortage", "shortage_of_all", "total"]

Bundle = Mapping[str, float]

#: Maximum number of placements tried; if that is not conclusive, nothing is refused.
_WAYS = 500


@dataclass(frozen=True)
class Gangs:
    """The gangs of one model.

    Attributes:
        model: its name.
        bundles: the resources that one gang needs.
        number: gangs wanted.
    """

    model: str
    bundles: Sequence[Bundle]
    number: int = 1


def total(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Sum of resources over bundles."""
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in names}


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Bundle], replicas: int = 1) -> str | None:
    """Why ``replicas`` gangs cannot be placed, with advice; None if they can.

    A gang is placed STRICT_PACK, so one node must hold all of its bundles.

    Args:
        bundles: the resources that one gang needs.
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


def shortage_of_all(gangs: Sequence[Gangs], nodes: Sequence[Bundle]) -> str | None:
    """:func:`shortage` for the gangs of several models: each model alone, then all together."""
    if len(gangs) == 1:
        return shortage(gangs[0].bundles, nodes, gangs[0].number)
    for of_one in gangs:
        if reason := shortage(of_one.bundles, nodes, of_one.number):
            return f"model {of_one.model!r}: {reason}"
    if fit_together([of_one.bundles for of_one in gangs for _ in range(of_one.number)], nodes):
        return None
    asked = [(of_one, total(of_one.bundles)) for of_one in gangs if of_one.number]
    wanted = "; ".join(f"{of_one.number} of {of_one.model!r} with {_words(one, one)} each" for of_one, one in asked)
    names = dict.fromkeys(name for _, one in asked for name in one)
    there = "; ".join(_words(node, names) for node in nodes)
    advice = "Lower num_replicas or parallel.ranks_per_replica of a model, serve fewer, or add nodes."
    return f"this cluster holds each model's gangs, but not all together: {wanted}. It has {there}. {advice}"


def fit_together(gangs: Sequence[Sequence[Bundle]], nodes: Sequence[Bundle]) -> bool:
    """Whether all these gangs can be placed at the same time, each on one node.

    False is certain: every placement was tried. With too many placements the answer is True, because nothing may be
    refused on a guess.
    """
    # The largest first: they have the fewest places, so impossible cases end early.
    asked = sorted(map(total, gangs), key=lambda one: sorted(one.values(), reverse=True), reverse=True)
    hopeless: set[tuple[int, tuple[tuple[float, ...], ...]]] = set()
    names = dict.fromkeys(name for one in asked for name in one)
    ways = 0

    def placed(index: int, free: tuple[tuple[float, ...], ...]) -> bool:
        nonlocal ways
        ways += 1
        if index == len(asked) or ways > _WAYS:
            return True
        if (index, free) in hopeless:
            return False
        takes = [asked[index].get(name, 0.0) for name in names]
        for node in dict.fromkeys(free):
            left = tuple(round(there - taken, 6) for there, taken in zip(node, takes, strict=True))
            if min(left, default=0.0) >= 0:
                others = list(free)
                others.remove(node)
                if placed(index + 1, tuple(sorted([*others, left]))):
                    return True
        hopeless.add((index, free))
        return False

    return placed(0, tuple(sorted(tuple(node.get(name, 0.0) for name in names) for node in nodes)))


def room_for_each(gangs: Sequence[Sequence[Bundle]], nodes: Sequence[Bundle]) -> list[bool]:
    """For each gang, one per model, whether it fits on some node wherever the others are placed first."""
    asked = [total(bundles) for bundles in gangs]
    together = total(asked)
    whole = any(_gangs_on(node, together) for node in nodes)
    # Each other gang takes up space on one node.
    return [whole or sum(_gangs_on(node, one) > 0 for node in nodes) >= len(asked) for one in asked]


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
        return f"Set parallel.accelerator_type to an available one ({', '.join(found) or 'null'}), or add such nodes."
    if "GPU" in short:
        return f"Set parallel.ranks_per_replica to {_power_of_two(most['GPU'])} (the largest gang that fits a node)."
    if "CPU" in short:
        return "Lower parallel.rank_cpus and parallel.engine_cpus; serve_configs/laptop_dbcache.yaml fits 2 CPUs."
    return "No single node has all of these resources."


def _power_of_two(limit: float) -> int:
    return 1 << max(0, int(limit).bit_length() - 1)
