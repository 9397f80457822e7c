"""``cortex chat``: one answer for a prompt, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cortex.cli import client
from cortex.errors import CortexError

if TYPE_CHECKING:
    from cortex.cli.catalogue import Entry
EXAMPLES = """\
examples:
  cortex chat why is the sky blue
  cortex chat -m Qwen/Qwen3-8B --stats
  git diff | cortex chat --system 'write a commit message'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    client.add_arguments(parser)
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="*",
        help="what to say (default: a conversation; without a terminal, what stdin has)",
    )
    parser.add_argument(
        "-m", "--model", help="an id or alias `cortex models` lists (default: the one loaded)"
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions that go before all else")
    parser.add_argument("--temperature", metavar="T", type=float, help="0 (greedy) to 2")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="length of an answer at most")
    parser.add_argument(
        "--json", action="store_true", help="print one object: text, usage, timings"
    )
    parser.add_argument(
        "--stats", action="store_true", help="print tokens and tokens per second on stderr"
    )


def run(args: argparse.Namespace) -> int:
    """Answer once, or hold a conversation."""
    gateway = client.Gateway.of(args)
    prompt = " ".join(args.prompt)
    if not prompt and not args.json and sys.stdin.isatty() and sys.stdout.isatty():
        from cortex.cli.conversation import Conversation

        model = args.model or choose_model(gateway)
        return Conversation(gateway, model, _sampling(args), args.system, args.stats).run()
    prompt = prompt or sys.stdin.read()
    if not prompt.strip():
        raise CortexError(
            "the prompt is empty", hint="say something: cortex chat 'why is the sky blue?'"
        )
    return _once(gateway, args, prompt)


def _once(gateway: client.Gateway, args: argparse.Namespace, prompt: str) -> int:
    from cortex.cli.answers import Answer, Printer, Silent, ask
    from cortex.cli.loads import warm

    model = args.model or choose_model(gateway)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": prompt})
    answer = Answer()
    body = {**_sampling(args), "model": model, "messages": messages}
    warm(gateway, model)
    ask(gateway, body, Silent() if args.json else Printer(), answer)
    if args.json:
        print(json.dumps(answer.report(model), indent=2, ensure_ascii=False))
    if args.stats:
        print(answer.stats(), file=sys.stderr)
    return 0


def _sampling(args: argparse.Namespace) -> dict[str, object]:
    asked = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    return {name: value for name, value in asked.items() if value is not None}


def choose_model(gateway: client.Gateway) -> str:
    """
    Return the model to talk to if nobody named one: the only one loaded, else the only one.

    Raises:
        CortexError: There is none, or a choice; names the models.
    """
    from cortex.cli.catalogue import models

    known = [entry for entry in models(gateway) if entry.chats]
    loaded = [entry for entry in known if entry.loaded]
    if not known:
        raise CortexError(
            "the gateway knows no model to talk to", hint="add [[models]] to models.toml"
        )
    if len(loaded) == 1 or len(known) == 1:
        return (loaded or known)[0].id
    which = "loaded" if loaded else "in the catalogue and none is loaded"
    names = _names(loaded or known)
    raise CortexError(f"several models are {which}: {names}", hint="choose one with -m MODEL")


def _names(entries: list[Entry]) -> str:
    return ", ".join(entry.id for entry in entries)
