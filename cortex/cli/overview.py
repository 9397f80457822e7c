"""The fleet as tables: nodes, devices, models, loads, and what is wrong in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cortex.cli.console import bar, duration, gib, state, table
from cortex.cli.loads import left, stage, under_way
from cortex.fleet.node import Device, Fleet, FleetNode, ModelHealth, NodeModel

WIDE_COLUMNS = 110  # from here on there is room for bars
HOT_C = 85.0


def overview(fleet: Fleet, url: str) -> RenderableType:
    """Return everything `cortex status` shows of *fleet*, the gateway at *url*."""
    healthy = sum(node.healthy for node in fleet.nodes)
    head = Text.assemble(
        ("cortex", "bold"),
        f" {fleet.version} at {url}, up {duration(fleet.uptime_s)}, ",
        (f"{healthy} of {len(fleet.nodes)}", "green" if healthy == len(fleet.nodes) else "red"),
        " nodes healthy",
    )
    if not fleet.nodes:
        return Group(head, "", "no node is configured: add [[neurons]] to cortex.toml")
    parts: list[RenderableType] = [head, "", _nodes(fleet), "", _Devices(fleet), "", _models(fleet)]
    if jobs := under_way(fleet):
        parts += ["", _Loads(fleet)]
    there = {m.id for node in fleet.nodes for m in node.models if m.status != "unloaded"}
    there |= {job.model for job in jobs}
    if rest := [model for model in fleet.catalogue if model not in there]:
        parts += ["", Text(f"not loaded: {', '.join(rest)}", "dim")]
    if problems := list(_problems(fleet)):
        parts += ["", *problems]
    return Group(*parts)


def _nodes(fleet: Fleet) -> Table:
    rows = table("NODE", "STATE", "VERSION", "UPTIME", "ADDRESS", wrap=frozenset({"ADDRESS"}))
    for node in fleet.nodes:
        health = node.health
        version = health.version if health else ""
        uptime = duration(health.uptime_secs) if health and node.healthy else ""
        rows.add_row(Text(node.name), node_state(node), version, uptime, Text(node.endpoint))
    return rows


def node_state(node: FleetNode) -> Text:
    """Return a node's state as a word, and how far its first loads are."""
    if not node.healthy:
        return state("unreachable")
    if node.health is None:
        return state("ok")
    warming = node.health.activation
    if warming.state == "ready":
        return state(node.health.status)
    done = len(warming.completed) + len(warming.failed)
    total = done + len(warming.pending) + (warming.in_progress is not None)
    return state(node.health.status, f", warming {done}/{total}")


class _Devices:
    """The table of devices; where there is room, with a bar of the memory in use."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE_COLUMNS
        bars = ("",) if wide else ()
        rows = table(
            *("DEVICE", "NAME", *bars, "MEMORY", "", "UTIL", "TEMP", "STATE"),
            right=frozenset({"MEMORY", "", "UTIL", "TEMP"}),
            wrap=frozenset({"NAME"}),
        )
        for node in self._fleet.nodes:
            for device in node.health.devices if node.health else ():
                rows.add_row(*_device(node, device, wide=wide))
        yield rows if rows.row_count else Text("no device is known yet", "dim")


def _device(node: FleetNode, device: Device, *, wide: bool) -> Iterator[RenderableType]:
    used = device.vram_used_mb / (device.vram_total_mb or 1)
    name = device.name
    yield Text(f"{node.name} {device.kind}:{device.index}")
    yield Text(name if wide else name.removeprefix("NVIDIA ").removeprefix("GeForce "))
    if wide:
        yield bar(used)
    yield f"{gib(device.vram_used_mb)} / {gib(device.vram_total_mb)} GiB"
    yield f"{used:.0%}"
    yield "" if device.utilization_pct is None else f"{device.utilization_pct:.0f}%"
    yield _temperature(device)
    yield state(device.state if node.healthy else "stale")


def _temperature(device: Device) -> Text:
    if device.temp_c is None:
        return Text()
    return Text(f"{device.temp_c:.0f} °C", "red" if device.temp_c >= HOT_C else "")


def _models(fleet: Fleet) -> RenderableType:
    figures = ("GiB", "IN FLIGHT", "QUEUED", "TOK/S", "KV", "HIT")
    rows = table(
        *("MODEL", "STATE", "WHERE", *figures),
        right=frozenset(figures),
        wrap=frozenset({"MODEL", "WHERE"}),
    )
    for node in fleet.nodes:
        now = {health.id: health for health in node.health.models} if node.health else {}
        for model in node.models:
            if model.status not in {"loading", "unloaded"}:
                rows.add_row(*_model(node, model, now.get(model.id)))
    if rows.row_count:
        return rows
    if under_way(fleet):
        return Text("no model is loaded yet", "dim")
    return Text("no model is loaded; load one with: cortex models load MODEL")


def _model(node: FleetNode, model: NodeModel, now: ModelHealth | None) -> Iterator[Text]:
    yield Text(model.id)
    if not node.healthy:
        yield state("unreachable")
    elif model.status == "loaded" and not model.servable.ok:
        yield state("unservable")
    else:
        yield state(model.status)
    yield Text(f"{node.name}:{','.join(map(str, model.devices))}".rstrip(":"))
    yield Text(gib(model.vram_used_mb) if model.vram_used_mb else "")
    if now is None or not node.healthy:
        return
    yield Text(str(now.in_flight))
    yield Text(str(now.queue_depth))
    yield Text(f"{now.tok_s_decode:.0f}" if now.tok_s_decode else "")
    yield Text("" if now.kv_used_pct is None else f"{now.kv_used_pct:.0f}%")
    yield Text("" if now.prefix_hit_pct is None else f"{now.prefix_hit_pct:.0f}%")


class _Loads:
    """The table of loads under way."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE_COLUMNS
        rows = table(
            *("LOADING", "WHERE", "STAGE", *([""] if wide else []), "%", "LEFT", "WAITING"),
            right=frozenset({"%", "WAITING"}),
            wrap=frozenset({"LOADING", "STAGE"}),
        )
        for job in under_way(self._fleet):
            progress = job.progress
            rows.add_row(
                Text(job.model),
                Text(job.node or ""),
                Text(stage(job), "yellow"),
                *([bar(progress or 0)] if wide else []),
                "" if progress is None else f"{progress:.0%}",
                left(job).removesuffix(" left"),
                str(job.waiting) if job.waiting else "",
            )
        yield rows


def _problems(fleet: Fleet) -> Iterator[Text]:
    for node in fleet.nodes:
        if not node.healthy:
            yield Text(f"{node.name}: {node.error or 'did not answer'}", "red")
            continue
        for failed in node.health.activation.failed if node.health else ():
            yield Text(f"{node.name}: {failed.model_id} could not be loaded: {failed.error}", "red")
        for model in node.models:
            if model.error:
                yield Text(f"{node.name}: {model.id} {model.status}: {model.error}", "red")
            elif model.status == "loaded" and not model.servable.ok:
                why = model.servable.reason or "it gave no reason"
                yield Text(f"{node.name}: {model.id} cannot answer: {why}", "red")
        found = node.discovery
        if found and found.cuda_unavailable_reason and not found.lacks_driver:
            yield Text(f"{node.name}: no CUDA: {found.cuda_unavailable_reason}", "yellow")
        for row in node.health.models if node.health else ():
            if row.body and row.body.startswith("plain: "):
                why = row.body.removeprefix("plain: ")
                yield Text(f"{node.name}: {row.id} runs without batching: {why}", "yellow")
