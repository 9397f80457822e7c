"""``cortex reload``: have the gateway read its configuration again."""

from __future__ import annotations

import argparse
import json

from cortex.cli import client

EXAMPLES = """\
examples:
  cortex config check && cortex reload
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what the gateway says, as JSON")


def run(args: argparse.Namespace) -> int:
    """Reload, and say what changed."""
    answer = client.Gateway.of(args).post_as(dict, "/api/v1/reload", {})
    if args.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return 0
    for change in answer["changed"]:
        print(f"{change['key']}: {_said(change['now'])}, was {_said(change['was'])}")
    for change in answer["restart"]:
        print(f"{change['key']}: stays {_said(change['was'])} until a restart")
    if not answer["changed"]:
        print("nothing changed")
    return 0


def _said(value: object) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False)
