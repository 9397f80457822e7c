"""A node: its state, and each of its devices with what fills its memory."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text
from textual.widgets import Static

from cortex.cli.console import gib, state
from cortex.cli.overview import HOT_C, node_state
from cortex.cli.top.drawing import OTHERS, age, legend, memory, short, split_bar
from cortex.fleet.node import Device, FleetNode

NAME_COLUMNS, FIGURES_COLUMNS = 20, 30
LEAST_COLUMNS = 76
LEAST_BAR_COLUMNS, MOST_BAR_COLUMNS = 8, 40


class NodeCard(Static, can_focus=True):
    """Draws one node; Tab takes the focus there, and the keys of nodes are about it."""

    DEFAULT_CSS = """
    NodeCard { height: auto; padding: 0 1; border-left: outer $panel;
               text-wrap: nowrap; text-overflow: ellipsis; }
    NodeCard:focus { border-left: outer $accent; background: $boost; }
    """

    def __init__(self, node: FleetNode) -> None:
        super().__init__(Text(), markup=False)
        self.node, self._stale = node, False
        self._look: tuple[object, ...] = ()
        self._drawn = Text()

    def show(self, node: FleetNode, *, stale: bool) -> None:
        """Draw the node as it is now, if that looks different."""
        self.node, self._stale = node, stale
        columns = self.size.width or LEAST_COLUMNS
        look = (node, stale, columns, self.has_focus)
        if look == self._look:
            return
        self._look = look
        lines = [_title(node, columns, focused=self.has_focus, stale=stale)]
        for device in node.health.devices if node.health else ():
            lines += _device(node, device, columns)
        drawn = Text("\n").join(lines)
        if drawn != self._drawn:
            tall = len(lines) != len(self._drawn.plain.splitlines())
            self._drawn = drawn
            self.update(drawn, layout=tall)

    def on_resize(self) -> None:
        self.show(self.node, stale=self._stale)


def _title(node: FleetNode, columns: int, *, focused: bool, stale: bool) -> Text:
    mark = "▸ " if focused else ""
    title = Text.assemble((f"{mark}{node.name}", "bold"), "  ", node_state(node))
    if stale:
        title.append("  stale", "dim")
    if node.drained:
        title.append("  drained", "yellow")
    if not node.healthy:
        title.append(f"  {node.error or 'did not answer'}")
    elif node.health is not None:
        title.append(f"  up {age(node.health.uptime_secs)}  {node.health.version}", "dim")
    title.append(f"  {node.in_flight} in flight" if node.in_flight else "")
    title.truncate(columns, overflow="ellipsis")
    return title


def _device(node: FleetNode, device: Device, columns: int) -> Iterator[Text]:
    segments = memory(node, device)
    name = device.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    trouble = "" if device.state == "ok" else device.state
    room = columns - NAME_COLUMNS - FIGURES_COLUMNS - len(trouble)
    room = min(max(room, LEAST_BAR_COLUMNS), MOST_BAR_COLUMNS)
    line = Text(short(f"{device.kind}:{device.index} {name}", NAME_COLUMNS).ljust(NAME_COLUMNS + 1))
    line.append_text(split_bar(segments, device.vram_total_mb, room))
    used, total = gib(device.vram_used_mb), gib(device.vram_total_mb)
    line.append(f" {used:>5}/{total:>5} GiB")
    busy = "" if device.utilization_pct is None else f"{device.utilization_pct:.0f}%"
    line.append(f" {busy:>4}")
    hot = device.temp_c is not None and device.temp_c >= HOT_C
    heat = "" if device.temp_c is None else f"{device.temp_c:.0f}°C{'!' if hot else ''}"
    line.append(f" {heat:<6}", "red" if hot else "")
    line.append_text(state(trouble))
    line.truncate(columns, overflow="ellipsis")
    yield line
    if any(segment.fill != OTHERS for segment in segments):
        yield Text(" " * (NAME_COLUMNS + 1)).append_text(
            legend(segments, columns - NAME_COLUMNS - 1)
        )
