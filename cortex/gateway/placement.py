"""
Where a model could be loaded, and what has to go for it: pure functions of the fleet's state.

Memory is counted per device.  The order of choice is: fits as it is, fits after evicting what the
policy would let go first, fewest requests under way, name.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Literal

import attrs

from cortex.api import EvictionPolicy
from cortex.fleet.model import LoadedModel, ModelSpec
from cortex.fleet.node import Device
from cortex.gateway.islands import Devices, choose, gets_on, split_on
from cortex.gateway.node import Node
from cortex.plugins import at_fault

MIB = 1 << 20
LOOK_AT = 8  # nodes to compare, of those that would do
LOOK_AT_MOST = 64  # nodes to look for a place on before a load waits; then it looks at others


@attrs.frozen(kw_only=True)
class Placement:
    """Load it on these devices of this node, after unloading `evict` there."""

    node: Node
    devices: tuple[int, ...]
    evict: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Nowhere:
    """
    It cannot be loaded now, or not ever.

    Attributes:
        waits: A node that works may have room later, or one may turn out to work.
        why: Tells the reasons, which are many words of many nodes, to whoever wants to know.
    """

    ever: bool
    waits: bool
    why: Callable[[], Mapping[str, str]]

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why not, by node."""
        return self.why()

    def __str__(self) -> str:
        return (
            "; ".join(f"{node}: {why}" for node, why in self.reasons.items())
            or "none is configured"
        )


@attrs.frozen(kw_only=True)
class Rules:
    """
    What placement goes by besides the nodes.

    Attributes:
        needs_mb: Measured memory of models, by id.
        specs: The catalogue, by id: ranks and pins of what is loaded.
        now: Monotonic seconds.
        reserved_mb: Tells what loads under way will yet take of a device.
        making_room: Names of nodes where a load evicts right now.
        claimed: Devices that another model takes its turn on, with their node.
        wanted: Models that requests wait for.
        polite: Models in use, or waited for, stay.
    """

    policy: EvictionPolicy
    min_residency_s: float
    needs_mb: Mapping[str, int]
    specs: Mapping[str, ModelSpec]
    now: float
    reserved_mb: Callable[[Node, int], int] = lambda _node, _device: 0
    making_room: Container[str] = ()
    claimed: Container[tuple[str, int]] = ()
    wanted: Container[str] = ()
    polite: bool = True


def place(
    spec: ModelSpec,
    nodes: Sequence[Node],
    without: Container[str],
    rules: Rules,
    roomy: Sequence[Node] | None = None,
) -> Placement | Nowhere:
    """
    Choose where to load *spec*.

    Args:
        spec: What is wanted.
        nodes: The fleet.
        without: Names of nodes not to try.
        rules: The policy, and what was learned.
        roomy: Those of *nodes* that have room on a device, if that is known.
    """
    return (
        _with_room(spec, nodes if roomy is None else roomy, without, rules)
        or _making_room(spec, nodes, without, rules)
        or _nowhere(spec, nodes, without, rules)
    )


def _with_room(
    spec: ModelSpec, nodes: Sequence[Node], without: Container[str], rules: Rules
) -> Placement | None:
    """Return the least busy node where nothing has to go."""
    able = _able(spec, nodes, without, rules)
    while some := list(islice(able, LOOK_AT)):
        for node in sorted(some, key=_least_busy):
            if options := _best(spec, node, rules, evicting=False):
                return _placement(node, options)
    return None


def _making_room(
    spec: ModelSpec, nodes: Sequence[Node], without: Container[str], rules: Rules
) -> Placement | None:
    """Return where what has to go is what the policy would let go first."""
    found: list[tuple[Node, list[Option], LoadedModel | None]] = []
    for seen, node in enumerate(_able(spec, nodes, without, rules)):
        if seen >= (LOOK_AT if found else LOOK_AT_MOST):
            break
        if options := _best(spec, node, rules, evicting=True):
            found.append((node, options, _last(options)))
    if not found:
        return None
    found.sort(key=lambda row: _least_busy(row[0]))
    node, options, _ = found[0]
    if len(found) > 1:
        all_last = [last for _, _, last in found if last is not None]
        first = next(iter(_victims(1, spec, all_last, rules)), None)
        node, options, _ = next((row for row in found if row[2] is first), found[0])
    return _placement(node, options)


def _able(
    spec: ModelSpec, nodes: Sequence[Node], without: Container[str], rules: Rules
) -> Iterator[Node]:
    """Yield the nodes that may load it, of many others first each time."""
    count = len(nodes)
    start = int(rules.now * 1e6) % max(count, 1)
    for at in range(start, start + count):
        node = nodes[at % count]
        name = node.name
        is_open = node.in_service and not (name in without or name in rules.making_room)
        if is_open and feasible_on(spec, node, rules.needs_mb) is None:
            yield node


def _least_busy(node: Node) -> tuple[int, str]:
    return node.in_flight.total(), node.name


def _nowhere(
    spec: ModelSpec, nodes: Sequence[Node], without: Container[str], rules: Rules
) -> Nowhere:
    fit = (node for node in nodes if feasible_on(spec, node, rules.needs_mb) is None)
    first = next(fit, None)
    waits = first is not None and any(
        (node.in_service or node.is_new) and node.name not in without
        for node in chain((first,), fit)
    )
    return Nowhere(
        ever=first is not None,
        waits=waits,
        why=lambda: {node.name: _reason(spec, node, without, rules) for node in nodes},
    )


def _reason(spec: ModelSpec, node: Node, without: Container[str], rules: Rules) -> str:
    if (why := feasible_on(spec, node, rules.needs_mb)) is not None:
        return why
    if node.name in without:
        return "it failed there"
    if not node.healthy:
        return node.error or "it is not healthy"
    if node.drained:
        return "it is drained"
    if node.name in rules.making_room:
        return "it makes room for another model"
    return why_not(spec, node, rules)


def feasible_on(
    spec: ModelSpec, node: Node, needs_mb: Mapping[str, int] | None = None
) -> str | None:
    """Return why *node* could never hold *spec*, or None if it could, empty."""
    if node.is_upstream:
        may = spec.id in node.models or node.health is None  # as below
        return None if may else "it serves only what it has"
    if spec.pinned_on and node.name not in spec.pinned_on:
        return f"the model is pinned on {', '.join(spec.pinned_on)}"
    if node.discovery is None:
        return None  # it never answered: no opinion
    if spec.harness is not None and spec.harness not in node.discovery.harnesses:
        return f"it has no harness {spec.harness!r}"
    per_device_mb = max(share_mb(spec, needs_mb or {}), spec.min_device_vram_mb)
    large = [d for d in node.discovery.devices if d.vram_total_mb >= per_device_mb]
    if len(large) < spec.min_devices:
        largest = max((d.vram_total_mb for d in node.discovery.devices), default=0)
        count = f"{spec.min_devices} devices" if spec.min_devices > 1 else "a device"
        has = f"the largest here has {largest} MiB"
        if largest >= per_device_mb:
            has = f"there are {len(large)} here"
        size = f" of {per_device_mb} MiB" if per_device_mb else ""
        return f"it needs {count}{size}, {has}"
    return None


def share_mb(spec: ModelSpec, needs_mb: Mapping[str, int]) -> int:
    """Return the memory *spec* takes on each of its devices: measured, else as configured."""
    return -(-(needs_mb.get(spec.id) or spec.vram_mb or 0) // spec.min_devices)


def usable(spec: ModelSpec, node: Node) -> list[Device]:
    """Return the devices of *node* that work and are large enough for a share of *spec*."""
    devices = node.health.devices if node.health else ()
    return [d for d in devices if d.state == "ok" and d.vram_total_mb >= spec.min_device_vram_mb]


def why_not(spec: ModelSpec, node: Node, rules: Rules) -> str:
    """Return why *spec* cannot be placed on a healthy node now."""
    if len(usable(spec, node)) < spec.min_devices:
        states = (
            ", ".join(f"{d.index} is {d.state}" for d in node.health.devices) if node.health else ""
        )
        return f"too few of its devices work: {states or 'it shows none'}"
    there = split_on(node, spec, rules.specs)
    if there and len(list(_options(spec, node, rules, evicting=True))) >= spec.min_devices:
        groups = (f"{name} on {sorted(devices)}" for name, devices in sorted(there.items()))
        return (
            f"split models run there, {', '.join(groups)}: another may have the same devices, or"
            " others, and too few of those have room"
        )
    return "its devices are full of models that are pinned, busy or new"


@attrs.define
class Option:
    """A device, and what would have to go from it."""

    device: int
    free_mb: int
    victims: Sequence[LoadedModel]


def _options(spec: ModelSpec, node: Node, rules: Rules, *, evicting: bool) -> Iterator[Option]:
    need_mb = share_mb(spec, rules.needs_mb)
    for device in usable(spec, node):
        if (node.name, device.index) in rules.claimed:
            continue
        free_mb = device.vram_free_mb - rules.reserved_mb(node, device.index)
        missing_mb = need_mb - free_mb
        victims: Sequence[LoadedModel] = ()
        if missing_mb > 0 and not evicting:
            continue
        if missing_mb > 0:
            movable = evictable(node, device.index, rules)
            victims = _victims(missing_mb * MIB, spec, movable, rules)
            if not victims:
                continue
        yield Option(device.index, free_mb, victims)


def _victims(
    need_bytes: int, spec: ModelSpec, loaded: Sequence[LoadedModel], rules: Rules
) -> Sequence[LoadedModel]:
    try:
        return rules.policy.victims(need_bytes, spec, loaded, rules.now)
    except Exception as error:  # noqa: BLE001 - a stranger's
        raise at_fault("eviction policy", rules.policy, error) from None


def _best(spec: ModelSpec, node: Node, rules: Rules, *, evicting: bool) -> list[Option]:
    """Return as many as it takes, those first from which least has to go; none if too few."""
    options = list(_options(spec, node, rules, evicting=evicting))
    if len(options) < spec.min_devices:
        return []
    options.sort(key=lambda option: (len(option.victims), -option.free_mb, option.device))
    groups = split_on(node, spec, rules.specs)
    if not groups:
        return options[: spec.min_devices]
    order = [option.device for option in options]
    if found := choose(order, spec.min_devices, groups.values()):
        return [option for option in options if option.device in found]
    return _cleared(spec, node, rules, options, groups) if evicting else []


def _cleared(
    spec: ModelSpec, node: Node, rules: Rules, options: list[Option], groups: dict[str, Devices]
) -> list[Option]:
    """Return devices that split models have to leave for *spec*, which could not share them."""
    movable = {m.id: m for option in options for m in evictable(node, option.device, rules)}
    stay = [devices for name, devices in groups.items() if name not in movable]
    order = [option.device for option in options]
    if not (found := choose(order, spec.min_devices, stay)):
        return []
    best = [option for option in options if option.device in found]
    going = {model.id for option in best for model in option.victims}
    leaving: list[LoadedModel] = []
    for name in sorted({*groups} & {*movable} - going, key=lambda name: -movable[name].last_used):
        if gets_on(found, [*stay, groups[name]]):
            stay.append(groups[name])
        else:
            leaving.append(movable[name])
    best[0].victims = sorted([*leaving, *best[0].victims], key=lambda model: model.last_used)
    return best


def _last(options: Sequence[Option]) -> LoadedModel | None:
    """Return which of what has to go was used last."""
    last = [option.victims[-1] for option in options if option.victims]
    return last[0] if len(last) == 1 else max(last, key=lambda m: m.last_used, default=None)


def _placement(node: Node, options: Sequence[Option]) -> Placement:
    return Placement(
        node=node,
        devices=tuple(option.device for option in options),
        evict=tuple(dict.fromkeys(model.id for option in options for model in option.victims)),
    )


def evictable(node: Node, device: int, rules: Rules) -> list[LoadedModel]:
    """Return what may be unloaded from a device: not in use, not pinned, resident long enough."""
    movable = []
    for model in node.models.values():
        if (rules.polite and node.busy(model.id)) or device not in model.devices:
            continue
        spec = rules.specs.get(model.id)
        if spec is not None and node.name in spec.pinned_on:
            continue
        if not model.routable or node.age_s(model.id, rules.now) < rules.min_residency_s:
            continue
        if rules.polite and model.id in rules.wanted and model.id not in node.closing:
            continue
        movable.append(
            LoadedModel(
                id=model.id,
                used_bytes=model.vram_used_mb * MIB // max(len(model.devices), 1),
                last_used=node.last_used.get(model.id, 0.0),
                priority=spec.priority if spec else 0,
                heat=node.heat_at(model.id, rules.now),
                load_s=node.load_s.get(model.id, 0.0),
            )
        )
    return movable


State = Literal["loaded", "coming", "absent"]


def state_of(model: str, nodes: Iterable[Node]) -> State:
    """Tell whether a model can be asked, is on its way by itself, or neither, where we may ask."""
    found = [n.models[model] for n in nodes if n.in_service and model in n.models]
    if any(row.routable for row in found):
        return "loaded"
    coming = ("loaded", "loading", "recovering", "poisoned")
    return "coming" if any(row.status in coming for row in found) else "absent"
