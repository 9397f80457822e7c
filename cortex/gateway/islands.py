"""
Which devices of a node a split model may have, beside those of others: pure functions.

A neuron refuses what would have groups of devices wait for each other for ever: two that have two
devices in common and are not the same, and rings of groups; see `cortex.neuron.groups`.  The same
rule is kept here before a neuron is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cortex.fleet.model import ModelSpec
from cortex.gateway.node import Node

GROUPING = ("torch", "", None)  # harnesses whose split models meet in groups; unnamed is torch
Devices = frozenset[int]


def split_on(node: Node, spec: ModelSpec, specs: Mapping[str, ModelSpec]) -> dict[str, Devices]:
    """
    Return the devices of each split model that *spec* has to get on with on *node*.

    Args:
        node: What it shows counts, and what is about to be loaded there.
        spec: The model that is to come.
        specs: The catalogue, by id.
    """
    if spec.min_devices == 1 or spec.harness not in GROUPING:
        return {}
    found = {
        name: devices
        for name, (_, devices) in node.reserved.items()
        if name not in specs or specs[name].harness in GROUPING
    }
    for name, model in node.models.items():
        if model.status != "failed" and model.harness in GROUPING:
            found[name] = model.devices
    return {
        name: frozenset(devices)
        for name, devices in found.items()
        if len(devices) > 1 and name != spec.id
    }


def islands_of(groups: Iterable[Devices]) -> list[Devices]:
    """Return the devices that wait for each other, each with all that it touches."""
    islands: list[Devices] = []
    for group in groups:
        touched = [island for island in islands if island & group]
        islands = [island for island in islands if island not in touched]
        islands.append(group.union(*touched))
    return islands


def gets_on(devices: Devices, groups: Iterable[Devices]) -> bool:
    """Tell whether a model may be split over *devices* beside *groups*."""
    others = islands_of(group for group in groups if group != devices)
    return all(len(island & devices) <= 1 for island in others)


def choose(order: Sequence[int], count: int, groups: Iterable[Devices]) -> Devices | None:
    """
    Return the devices a split model should have, None if there are none it may have.

    Those of another group, or none of any, are taken before such as have one in common with one:
    what fails takes all with it that it touches.

    Args:
        order: Devices with room for its share, the best first.
        count: How many it takes.
        groups: That are there.
    """
    there = {*groups}
    taken = frozenset[int]().union(*there)
    found = [
        group
        for group in there
        if len(group) == count and group <= {*order} and gets_on(group, there)
    ]
    if len(apart := [device for device in order if device not in taken]) >= count:
        found.append(frozenset(apart[:count]))
    if found:
        places = {device: place for place, device in enumerate(order)}
        return min(found, key=lambda group: sorted((places[d] for d in group), reverse=True))
    picked: set[int] = set()
    for device in order:
        if all(device not in island or not island & picked for island in islands_of(there)):
            picked.add(device)
        if len(picked) == count:
            return frozenset(picked)
    return None
