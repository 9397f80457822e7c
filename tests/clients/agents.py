"""Real coding agents: how each is pointed at a server, asked something, and what its tools are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tests.clients.scripted import CONTEXT

MODEL = "scripted"
CHAT = "openai-chat"


@attrs.frozen(kw_only=True)
class Agent:
    """
    A client and how it is pointed at a server.

    Attributes:
        dialect: What it speaks.
        version: Arguments that print its version.
        command: Arguments that ask it something; the prompt follows.
        env: Its whole environment but HOME, PATH and what belongs to every program.
        files: Configuration, by its place in the home.
        read: Name and arguments of the tool that reads a file, given its path.
        shell: The same of the one that runs a command.
    """

    name: str
    dialect: str
    version: Sequence[str]
    command: Sequence[str]
    env: Callable[[str], dict[str, str]] = lambda url: {}
    files: Callable[[str], dict[str, str]] = lambda url: {}
    read: Callable[[Path], tuple[str, dict]] | None = None
    shell: Callable[[str], tuple[str, dict]] | None = None


def opencode(name: str, dialect: str, package: str) -> Agent:
    def files(url: str) -> dict[str, str]:
        limit = {"context": CONTEXT, "output": 8192}
        model = {"name": MODEL, "reasoning": True, "tool_call": True, "limit": limit}
        provider = {
            "npm": package,
            "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
            "models": {MODEL: model},
        }
        told = {
            "autoupdate": False,
            "share": "disabled",
            "model": f"cortex/{MODEL}",
            "small_model": f"cortex/{MODEL}",
            "provider": {"cortex": provider},
            "permission": "allow",
        }
        return {".config/opencode/opencode.json": json.dumps(told)}

    return Agent(
        name=name,
        dialect=dialect,
        version=["opencode", "--version"],
        command=["opencode", "run", "--format", "json"],
        env=lambda url: {
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        },
        files=files,
        read=lambda path: ("read", {"filePath": str(path)}),
        shell=lambda line: ("bash", {"command": line, "description": "Echo a word"}),
    )


def aider(name: str, dialect: str, model: str, env: Callable[[str], dict[str, str]]) -> Agent:
    quiet = "--yes-always --no-git --no-check-update --analytics-disable --no-pretty --map-tokens 0"
    quiet += " --no-show-model-warnings --no-show-release-notes --no-detect-urls"
    quiet += " --edit-format diff --file note.txt"
    return Agent(
        name=name,
        dialect=dialect,
        version=["aider", "--version"],
        command=["aider", "--model", model, *quiet.split(), "--message"],
        env=lambda url: {"LITELLM_LOCAL_MODEL_COST_MAP": "True", **env(url)},
    )


def pi(dialect: str, api: str, path: str) -> Agent:
    def files(url: str) -> dict[str, str]:
        model = {"id": MODEL, "reasoning": True, "contextWindow": CONTEXT, "maxTokens": 8192}
        told = {"baseUrl": f"{url}{path}", "api": api, "apiKey": "none", "models": [model]}
        return {".pi/agent/models.json": json.dumps({"providers": {"cortex": told}})}

    return Agent(
        name=f"pi-{api}",
        dialect=dialect,
        version=["pi", "--version"],
        command=["pi", "--provider", "cortex", "--model", MODEL, "--mode", "json", "--print"],
        env=lambda url: {"PI_OFFLINE": "1", "PI_TELEMETRY": "0", "PI_SKIP_VERSION_CHECK": "1"},
        files=files,
        read=lambda path: ("read", {"path": str(path)}),
        shell=lambda line: ("bash", {"command": line}),
    )


CODEX_TOML = """
model = "{model}"
model_provider = "cortex"
model_context_window = {context}
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.cortex]
name = "cortex"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "CORTEX_KEY"
"""
QWEN_CODE = {
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "general": {"enableAutoUpdate": False},
}
AGENTS = (
    Agent(
        name="claude-code",
        dialect="anthropic-messages",
        version=["claude", "--version"],
        command=[
            *("claude", "--model", MODEL, "--output-format", "stream-json", "--verbose"),
            *("--allowedTools", "Bash,Read", "-p"),
        ],
        env=lambda url: {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(CONTEXT),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
        },
        read=lambda path: ("Read", {"file_path": str(path)}),
        shell=lambda line: ("Bash", {"command": line, "description": "Echo a word"}),
    ),
    Agent(
        name="codex",
        dialect="openai-responses",
        version=["codex", "--version"],
        command=["codex", "exec", "--skip-git-repo-check", "-s", "danger-full-access", "--json"],
        env=lambda url: {"CORTEX_KEY": "none"},
        files=lambda url: {
            ".codex/config.toml": CODEX_TOML.format(model=MODEL, url=url, context=CONTEXT)
        },
        read=lambda path: ("exec_command", {"cmd": f"cat {path}"}),
        shell=lambda line: ("exec_command", {"cmd": line}),
    ),
    opencode("opencode", CHAT, "@ai-sdk/openai-compatible"),
    opencode("opencode-anthropic", "anthropic-messages", "@ai-sdk/anthropic"),
    aider(
        "aider",
        CHAT,
        f"openai/{MODEL}",
        lambda url: {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "none"},
    ),
    aider(
        "aider-anthropic",
        "anthropic-messages",
        f"anthropic/{MODEL}",
        lambda url: {"ANTHROPIC_API_BASE": url, "ANTHROPIC_API_KEY": "none"},
    ),
    Agent(
        name="qwen-code",
        dialect=CHAT,
        version=["qwen", "--version"],
        command=["qwen", "--auth-type", "openai", "--approval-mode", "yolo", "-m", MODEL, "-p"],
        env=lambda url: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none"},
        files=lambda url: {".qwen/settings.json": json.dumps(QWEN_CODE)},
        read=lambda path: ("read_file", {"file_path": str(path)}),
        shell=lambda line: ("run_shell_command", {"command": line, "is_background": False}),
    ),
    pi(CHAT, "openai-completions", "/v1"),
    pi("openai-responses", "openai-responses", "/v1"),
    pi("anthropic-messages", "anthropic-messages", ""),
)
