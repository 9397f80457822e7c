"""Reports as people read them: a table, bars, and the change between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cortex.cli.bench.figures import Report, Row, Spread
from cortex.cli.console import table

WHOLE_MS = 100  # from here on without a fraction
BAR_COLUMNS = 40
NOTABLE = 0.02  # a smaller change has no colour
TIMES = {"TTFT": "ttft_ms", "ITL": "itl_ms", "TPOT": "tpot_ms", "E2EL": "e2el_ms"}
Figures = dict[str, tuple[float, bool]]  # and whether more is better


def table_of(report: Report) -> RenderableType:
    """Return a row for each load."""
    times = [f"{name} ms" for name in TIMES]
    counts = ("OK", "FAILED", "TOK/S", "REQ/S")
    rows = table(
        *(_load_header(report), *counts, *times),
        right=frozenset({*counts, *times}),
        wrap=frozenset(times),
    )
    for row in report.rows:
        rows.add_row(
            row.load,
            str(row.completed),
            Text(str(row.failed), "red" if row.failed else ""),
            number(row.output_tokens_per_s),
            number(row.requests_per_s),
            *(_three(getattr(row, name)) for name in TIMES.values()),
        )
    return Group(Text(_title(report)), rows, Text("times are p50 / p90 / p99", "dim"))


def bars_of(report: Report) -> RenderableType:
    """Return bars: tokens a second, and the times at their median and 99th percentile."""
    parts: list[RenderableType] = []
    charts: list[tuple[str, Callable[[Row], Iterator[tuple[str, float]]]]] = [
        ("output tokens/s", lambda row: iter([("", row.output_tokens_per_s)])),
        *((f"{name} ms", _ends(field)) for name, field in TIMES.items() if name != "TPOT"),
    ]
    for title, values in charts:
        grid = Table.grid(padding=(0, 1))
        most = max((value for row in report.rows for _, value in values(row)), default=0.0)
        for row in report.rows:
            for name, value in values(row):
                bar = ProgressBar(most or 1, value, BAR_COLUMNS, complete_style="cyan")
                grid.add_row(row.load, name, bar, number(value))
        parts += [Text(f"\n{title}", "bold"), grid]
    return Group(*parts)


def comparison(before: Report, now: Report) -> RenderableType:
    """Return the figures of both, a line each, and the change in percent."""
    rows = table(
        *(_load_header(now), "FIGURE", "BEFORE", "NOW", "CHANGE"),
        right=frozenset({"BEFORE", "NOW", "CHANGE"}),
        wrap=frozenset({"FIGURE"}),
    )
    earlier = {row.load: row for row in before.rows}
    lonely = {*earlier} ^ {row.load for row in now.rows}
    for row in now.rows:
        if row.load not in earlier:
            continue
        was, label = _figures(earlier[row.load]), row.load
        for name, (value, more_is_better) in _figures(row).items():
            change = _change(was[name][0], value, more_is_better=more_is_better)
            rows.add_row(label, name, number(was[name][0]), number(value), change)
            label = ""
    parts: list[RenderableType] = [Text(f"\n{before.when} {_title(before)}, then {now.when}"), rows]
    if different := _differences(before, now):
        parts.append(Text(f"the two asked for different things: {different}", "yellow"))
    if lonely:
        parts.append(Text(f"in one of the two only: {', '.join(sorted(lonely))}", "yellow"))
    return Group(*parts)


def number(value: float) -> str:
    """Format a figure with three digits or more."""
    if value >= WHOLE_MS:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _title(report: Report) -> str:
    asked = report.workload
    lengths = (
        "lengths of chats"
        if asked.mix
        else f"{asked.input_tokens} tokens in, {asked.output_tokens} out"
    )
    shared = f", {asked.shared_prefix} shared" if asked.shared_prefix else ""
    return f"{asked.model} at {report.endpoint}, {asked.api}, {lengths}{shared}"


def _load_header(report: Report) -> str:
    return "RATE" if any(row.rate for row in report.rows) else "CONCURRENCY"


def _three(spread: Spread) -> str:
    return " / ".join(number(value) for value in (spread.p50, spread.p90, spread.p99))


def _ends(field: str) -> Callable[[Row], Iterator[tuple[str, float]]]:
    def values(row: Row) -> Iterator[tuple[str, float]]:
        spread: Spread = getattr(row, field)
        yield "p50", spread.p50
        yield "p99", spread.p99

    return values


def _figures(row: Row) -> Figures:
    """Return what two runs are compared by."""
    found: Figures = {
        "output tokens/s": (row.output_tokens_per_s, True),
        "requests/s": (row.requests_per_s, True),
        "failed": (row.failed, False),
    }
    for name, field in TIMES.items():
        spread: Spread = getattr(row, field)
        found[f"{name} p50 ms"] = (spread.p50, False)
        found[f"{name} p99 ms"] = (spread.p99, False)
    return found


def _change(was: float, now: float, *, more_is_better: bool) -> Text:
    if not was:
        return Text("" if not now else "new")
    share = now / was - 1
    if abs(share) < NOTABLE:
        return Text(f"{share:+.1%}")
    return Text(f"{share:+.1%}", "green" if (share > 0) == more_is_better else "red")


def _differences(before: Report, now: Report) -> str:
    was, asks = attrs.asdict(before.workload), attrs.asdict(now.workload)
    changed = [name for name in asks if was[name] != asks[name]]
    return ", ".join(f"{name} {was[name]}, then {asks[name]}" for name in changed)
