"""
How each client is pointed at a gateway: arguments, environment, and files of ours.

A pure function a client; `docs/clients.md` says the same for doing it by hand.  What changes from
request to request at the start of a prompt is switched off: it would spoil the node's prefix cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import attrs

from cortex.cli.launch.target import Target

KEY = "CORTEX_KEY"


@attrs.frozen(kw_only=True)
class Plan:
    """
    What to start.

    Attributes:
        env: Set besides what is there.
        unset: Removed: it would win over `env`, or send a vendor's key to the gateway.
        defaults: Set where the user has not.
        files: Written, by their place; all in folders of ours.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = attrs.field(factory=dict)
    unset: tuple[str, ...] = ()
    defaults: Mapping[str, str] = attrs.field(factory=dict)
    files: Mapping[Path, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Client:
    """
    A program.

    Attributes:
        names: What it may be called.
        install: How to get it.
        plan: What to start, given a target and a folder of ours for its files.
    """

    names: tuple[str, ...]
    install: str
    plan: Callable[[Target, Path], Plan]


def claude(target: Target, _: Path) -> Plan:
    """Claude Code: messages; every one of its model names is ours."""
    env = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line of the prompt that differs each time
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # to elsewhere
    }
    kinds = ("OPUS", "SONNET", "HAIKU")
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{kind}_MODEL" for kind in kinds))
    env |= dict.fromkeys((*names, "CLAUDE_CODE_SUBAGENT_MODEL"), target.model)
    if target.context:
        env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(target.context)
    unset = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX")
    return Plan(command=("claude", "--model", target.model), env=env, unset=unset)


def codex(target: Target, _: Path) -> Plan:
    """Codex: responses; its own -c goes before its config.toml."""
    told = {
        "model_provider": "cortex",
        "model_providers.cortex.name": "cortex",
        "model_providers.cortex.base_url": f"{target.url}/v1",
        "model_providers.cortex.wire_api": "responses",
        "model_providers.cortex.env_key": KEY,
    }
    options = [f"{key}={json.dumps(value)}" for key, value in told.items()]  # as TOML has strings
    if target.context:
        options.append(f"model_context_window={target.context}")
    overrides = (part for option in options for part in ("-c", option))
    return Plan(command=("codex", "-m", target.model, *overrides), env={KEY: target.key})


def opencode(target: Target, _: Path) -> Plan:
    """Opencode: chat completions; what the variable says goes before its files."""
    model: dict[str, object] = {
        "name": target.model,
        "tool_call": "tools" in target.capabilities or not target.capabilities,
        "reasoning": "reasoning" in target.capabilities,
        "attachment": "vision" in target.capabilities,
    }
    if target.context:
        model["limit"] = {"context": target.context, "output": target.output}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "cortex",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY}}}"},
        "models": {target.model: model},
    }
    told = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"cortex/{target.model}",
        "small_model": f"cortex/{target.model}",
        "provider": {"cortex": provider},
    }
    env = {"OPENCODE_CONFIG_CONTENT": json.dumps(told), KEY: target.key}
    return Plan(command=("opencode",), env=env)


def aider(target: Target, folder: Path) -> Plan:
    """Aider: chat completions; its map of the repository stays until files change."""
    model = f"openai/{target.model}"
    command = ["aider", "--model", model, "--weak-model", model, "--no-show-model-warnings"]
    files: dict[Path, str] = {}
    if target.context:
        place = folder / "aider-models.json"
        known = {
            "max_tokens": target.output,
            "max_input_tokens": target.context,
            "max_output_tokens": target.output,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
        files[place] = json.dumps({model: known}, indent=2)
        command += ["--model-metadata-file", str(place)]
    return Plan(
        command=tuple(command),
        env={"OPENAI_API_BASE": f"{target.url}/v1", "OPENAI_API_KEY": target.key},
        defaults={"AIDER_MAP_REFRESH": "files", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        files=files,
    )


def zed(target: Target, folder: Path) -> Plan:
    """Zed: chat completions; only its settings can name a server, so it gets a profile of ours."""
    profile = folder / "zed"
    settings = json.dumps(zed_settings(target), indent=2)
    return Plan(
        command=("zed", "--user-data-dir", str(profile)),
        env={"CORTEX_API_KEY": target.key},
        files={profile / "config" / "settings.json": settings},
    )


def zed_settings(target: Target) -> dict[str, object]:
    """Return what belongs in Zed's settings.json."""
    model = {
        "name": target.model,
        "max_tokens": target.context or 32768,
        "max_output_tokens": target.output,
        "capabilities": {
            "tools": "tools" in target.capabilities or not target.capabilities,
            "images": "vision" in target.capabilities,
            "parallel_tool_calls": True,
            "prompt_cache_key": True,  # by which the gateway finds the node that has the prefix
        },
    }
    server = {"api_url": f"{target.url}/v1", "available_models": [model]}
    return {
        "language_models": {"openai_compatible": {"cortex": server}},
        "agent": {"default_model": {"provider": "cortex", "model": target.model}},
    }


PLANS: Mapping[str, Client] = MappingProxyType(
    {
        "claude": Client(
            names=("claude",), install="npm install -g @anthropic-ai/claude-code", plan=claude
        ),
        "codex": Client(names=("codex",), install="npm install -g @openai/codex", plan=codex),
        "opencode": Client(
            names=("opencode",), install="npm install -g opencode-ai", plan=opencode
        ),
        "aider": Client(
            names=("aider",),
            install="python3 -m pip install aider-install && aider-install",
            plan=aider,
        ),
        "zed": Client(
            names=("zed", "zeditor", "zedit"),  # as packages of distributions call it
            install="see https://zed.dev/download",
            plan=zed,
        ),
    }
)
