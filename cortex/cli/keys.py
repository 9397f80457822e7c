"""``cortex keys``: make, list and revoke the keys of a cortex.toml; show what they used."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cortex.cli import client

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cortex.config.schema import AuthSection
    from cortex.fleet.principal import Key

PREFIX = "sk-cortex-"  # some clients want the first three letters
LATER = "a running gateway goes by it after `cortex reload`"
ANYBODY = "who has no key is served too, as anonymous: see [auth] require"
LIMITS = {
    "max_concurrency": "requests under way at once",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute, of prompts and answers",
    "budget_tokens": "tokens in --budget-days",
    "budget_days": "days of --budget-tokens, today included (default: 30)",
}
EXAMPLES = """\
examples:
  cortex keys new zed --models 'Qwen/*' --tokens-per-minute 100000
  cortex keys list
  cortex keys usage --days 7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(metavar="action", dest="action", required=True, title="actions")
    for name, summary in (
        ("new", "make a key, print it, and add its digest to the configuration"),
        ("list", "list the keys of the configuration"),
        ("revoke", "remove a key from the configuration"),
        ("usage", "show what each key used of each model; asks the gateway"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        if name in ("new", "revoke"):
            action.add_argument("name", metavar="NAME", help="what the key is called")
        if name == "usage":
            client.add_arguments(action)
            days = "today and the days before it, N in all (default: 30)"
            action.add_argument("--days", metavar="N", type=int, default=30, help=days)
        else:
            action.add_argument(
                "--config",
                type=Path,
                metavar="FILE",
                help="cortex.toml (default: ./cortex.toml if there is one)",
            )
        if name == "new":
            _add_limits(action)
        action.add_argument("--json", action="store_true", help="print the same as JSON")


def _add_limits(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--models",
        metavar="MODEL",
        nargs="+",
        help="names or ids it may use; * is any (default: *)",
    )
    action.add_argument("--admin", action="store_true", help="let it use the admin API")
    for name, meaning in LIMITS.items():
        action.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=int, help=meaning)
    action.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="leave the configuration as it is, and print what belongs in it",
    )


def run(args: argparse.Namespace) -> int:
    """Make, list, revoke or show."""
    if args.action == "usage":
        return _usage(args)
    from cortex.config.load import default_file, load_gateway
    from cortex.errors import ConfigError

    path = args.config or default_file("cortex.toml")
    if args.action == "new":
        return _new(args, path)
    if path is None:
        raise ConfigError("there is no ./cortex.toml", hint="name one with --config")
    auth = load_gateway(path)[0].auth
    return _list(args, auth) if args.action == "list" else _revoke(args, auth, path)


def _new(args: argparse.Namespace, path: Path | None) -> int:
    import secrets

    from cortex.config import edit
    from cortex.config.load import check_keys, load_gateway
    from cortex.config.schema import AuthSection
    from cortex.config.strict import structure
    from cortex.fleet.principal import Key, digest

    secret = PREFIX + secrets.token_urlsafe(32)
    asked = {name: getattr(args, name) for name in ("models", *LIMITS)}
    values: dict[str, Any] = {"name": args.name, "sha256": digest(secret)}
    values |= {name: value for name, value in asked.items() if value is not None}
    if args.admin:
        values["admin"] = True
    key = structure(values, Key, "the new key")
    auth = load_gateway(path)[0].auth if path else AuthSection()
    check_keys((*auth.keys, key), "cortex.toml")
    written = path if path and not args.print_only else None
    if written is not None:
        edit.add_key(written, values)
    if args.json:
        file = str(written) if written else None
        print(json.dumps({"name": key.name, "key": secret, "sha256": key.sha256, "file": file}))
        return 0
    print(secret)
    if written is not None:
        _tell(f"{written}: {key.name} is added", auth)
    else:
        print(f"\n{edit.key_table(values)}", end="")
    print("the key is shown this once: nothing keeps it", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace, auth: AuthSection) -> int:
    import attrs

    if args.json:
        print(json.dumps([attrs.asdict(key) for key in auth.keys], indent=2))
        return 0
    from cortex.cli.console import console, table

    shown = table("KEY", "MODELS", "LIMITS", "DIGEST", wrap=frozenset({"MODELS", "LIMITS"}))
    for key in auth.keys:
        name = f"{key.name} (admin)" if key.admin else key.name
        shown.add_row(name, " ".join(key.models), _limits(key), key.sha256[:8])
    console().print(shown if auth.keys else "no key is configured: everybody may do everything")
    return 0


def _limits(key: Key) -> str:
    parts = [
        (key.max_concurrency, "at once"),
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.budget_tokens, f"tokens in {key.budget_days} days"),
    ]
    return ", ".join(f"{value} {what}" for value, what in parts if value is not None)


def _revoke(args: argparse.Namespace, auth: AuthSection, path: Path) -> int:
    from cortex.config import edit
    from cortex.errors import ConfigError
    from cortex.registry import did_you_mean

    names = [key.name for key in auth.keys]
    if args.name not in names:
        hint = did_you_mean(args.name, dict.fromkeys(names))
        raise ConfigError(f"{path}: no key is called {args.name!r}", hint=hint)
    if auth.require and len(names) == 1 and auth.use == ("keys",):
        raise ConfigError(
            f"{path}: {args.name} is the only key, and auth.require wants one",
            hint="make another one first",
        )
    edit.remove_key(path, args.name)
    if args.json:
        print(json.dumps({"name": args.name, "file": str(path)}))
    else:
        print(f"revoked: {args.name}")
        _tell(f"{path}: {args.name} is removed", auth)
    return 0


def _tell(done: str, auth: AuthSection) -> None:
    print(f"{done}; {LATER}", file=sys.stderr)
    if not auth.require:
        print(ANYBODY, file=sys.stderr)


def _usage(args: argparse.Namespace) -> int:
    gateway = client.Gateway.of(args)
    answer = gateway.get_as(dict[str, Any], f"/api/v1/usage?days={args.days}")
    if args.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return 0
    from cortex.cli.console import console

    console().print(_used(answer))
    return 0


def _used(answer: dict[str, Any]) -> RenderableType:
    from collections import Counter

    from cortex.cli.console import table

    what = ("requests", "prompt_tokens", "completion_tokens")
    sums: dict[tuple[str, str], Counter[str]] = {}
    for row in answer["usage"]:
        counts = sums.setdefault((row["principal"], row["model"]), Counter())
        counts.update({name: row[name] for name in what})
    if not sums:
        return f"nothing was used since {answer['since']}"
    numbers = ("REQUESTS", "PROMPT TOKENS", "ANSWER TOKENS")
    shown = table("KEY", "MODEL", *numbers, right=frozenset(numbers), wrap=frozenset({"MODEL"}))
    for (principal, model), counts in sorted(sums.items()):
        shown.add_row(principal, model or "-", *(f"{counts[name]:,}" for name in what))
    return shown
