"""``cortex bench``: its options, and a run from the first request to the report."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cortex.cli import client
from cortex.errors import CortexError

if TYPE_CHECKING:
    from cortex.cli.bench.figures import Report
    from cortex.cli.bench.workload import Workload

T = TypeVar("T")
INPUT_TOKENS, OUTPUT_TOKENS = 256, 128
SECONDS = 30.0
MAX_COMPARED = 2
EXAMPLES = """\
examples:
  cortex bench
  cortex bench --concurrency 1,8,64 --save before.json
  cortex bench --concurrency 1,8,64 --compare before.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        *("--url", "--gateway"),
        metavar="URL",
        dest="gateway",
        help=f"the endpoint, of any server (default: $CORTEX_URL, else {client.DEFAULT_URL})",
    )
    add("--key", "--api-key", help="API key (default: $CORTEX_KEY)")
    add("-m", "--model", help="its id (default: the first that is loaded, else the first)")
    add("--api", choices=("chat", "completions"), default="chat", help="default: chat")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        metavar="N,...",
        type=_several(_whole(1)),
        help="clients that ask one request after the other (default: 1); a row each",
    )
    load.add_argument(
        "--rate",
        metavar="R,...",
        type=_several(_positive),
        help="requests a second instead, whatever is answered (Poisson); a row each",
    )
    add("--requests", metavar="N", type=_whole(1), help="of each row")
    add(
        "--seconds",
        metavar="S",
        type=_positive,
        help=f"begin none after that (default: {SECONDS:g}, unless --requests says how many)",
    )
    _add_workload(parser)
    add("--json", action="store_true", help="print one object")
    add("--plot", action="store_true", help="draw bars below the table")
    add("--save", metavar="FILE", type=Path, help="write that object there")
    add(
        "--compare",
        metavar=("FILE", "FILE"),
        nargs="+",
        type=Path,
        help="show the change since a saved run; of two saved runs, if there are two",
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--input-tokens",
        metavar="N",
        type=_whole(1),
        help=f"of a prompt, about (default: {INPUT_TOKENS})",
    )
    add(
        "--output-tokens",
        metavar="N",
        type=_whole(1),
        help=f"of an answer (default: {OUTPUT_TOKENS})",
    )
    add("--mix", choices=("chat",), help="lengths as people's chats have them instead")
    add(
        "--shared-prefix",
        metavar="N",
        type=_whole(0),
        default=0,
        help="tokens that all prompts begin with, on top of their own (default: 0)",
    )
    add("--ignore-eos", action="store_true", help="have a server that can go on to the full length")
    add("--temperature", metavar="T", type=float, default=0.0, help="default: 0")
    add("--seed", metavar="N", type=int, default=0, help="of lengths, words, arrivals (default: 0)")
    add(
        "--warm-up",
        metavar="N",
        type=_whole(0),
        default=1,
        help="requests before each row that do not count (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and show what was found; or compare what was found before."""
    from cortex.cli.bench import figures

    if args.compare and len(args.compare) > MAX_COMPARED:
        raise CortexError(f"--compare takes one or two files, got {len(args.compare)}")
    before = [figures.read(file) for file in args.compare or ()]
    if len(before) == MAX_COMPARED:
        return _show(args, before[1], before[0])
    report = measure(args)
    if args.save:
        figures.write(report, args.save)
    return _show(args, report, before[0] if before else None)


def measure(args: argparse.Namespace) -> Report:
    """
    Put the load on the endpoint.

    Raises:
        CortexError: It is not there, refuses us, has no such model, or fails the warm-up.
    """
    import uvloop

    from cortex.cli.bench import asking
    from cortex.cli.bench.endpoint import choose_model

    args.gateway = args.gateway and args.gateway.rstrip("/").removesuffix("/v1")
    gateway = client.Gateway.of(args)
    workload = _workload(args, choose_model(gateway, args.model))
    loads = [asking.Load(rate=rate) for rate in args.rate or ()]
    if not loads:
        loads = [asking.Load(concurrency=many) for many in args.concurrency or (1,)]
    seconds = args.seconds or (None if args.requests else SECONDS)
    limits = asking.Limits(requests=args.requests, seconds=seconds, warm_up=args.warm_up)
    return uvloop.run(asking.measure(gateway, workload, loads, limits))


def _workload(args: argparse.Namespace, model: str) -> Workload:
    from cortex.cli.bench.workload import Workload

    if args.mix and (args.input_tokens or args.output_tokens):
        raise CortexError("--mix draws the lengths that --input-tokens and --output-tokens fix")
    return Workload(
        model=model,
        api=args.api,
        mix=args.mix,
        input_tokens=None if args.mix else args.input_tokens or INPUT_TOKENS,
        output_tokens=None if args.mix else args.output_tokens or OUTPUT_TOKENS,
        shared_prefix=args.shared_prefix,
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        seed=args.seed,
    )


def _show(args: argparse.Namespace, report: Report, earlier: Report | None) -> int:
    from cortex.cli.bench import pictures
    from cortex.cli.console import console

    out, err = console(), console(stderr=True)
    if args.json:
        print(report.json())
    else:
        out.print(pictures.table_of(report))
        if args.plot:
            out.print(pictures.bars_of(report))
    if earlier is not None:
        (err if args.json else out).print(pictures.comparison(earlier, report))
    for sentence in report.remarks():
        print(sentence, file=sys.stderr)
    return int(not all(row.completed for row in report.rows))


def _several(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(one(part) for part in text.split(","))


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
        return int(text)

    return read


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value
