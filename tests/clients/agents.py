"""
Real coding agents against a gateway and a neuron whose model says what a script says.

``python -m tests.clients.agents PREFIX [NAME ...]``, by `run.sh`, which installs them; one line an
agent and turn.  Each agent has a home and a folder of its own, a dummy key, and no other server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from cortex.chat.request import ChatRequest, Thinking, ToolResult
from cortex.fleet.model import ModelSpec
from tests.clients.fleet import Fleet, fleet
from tests.clients.scripted import CONTEXT, Script, say

MODEL = "scripted"
NOTE, ECHOED = "the note says seventeen", "echoed-twenty-three"
HELLO, DONE = "hello from the scripted model", "both tools answered"
THOUGHT, ANSWERED = "a thought that has to come back", "the thought came back"
NOTHING_LEFT: Script = {}
LIMIT_S = 150
SHOWN_CHARS = 6000
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
    output: Callable[[str], str] = lambda said: said


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
)


class Failure(Exception):
    """What an agent did not do."""


@attrs.frozen
class Trial:
    """One agent in front of one fleet."""

    agent: Agent
    servers: Fleet
    prefix: Path

    @property
    def home(self) -> Path:
        return self.prefix / "homes" / self.agent.name

    @property
    def work(self) -> Path:
        return self.prefix / "work" / self.agent.name

    def prepare(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "note.txt").write_text(f"{NOTE}\n")
        for place, text in self.agent.files(self.servers.url).items():
            path = self.home / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.home.mkdir(parents=True, exist_ok=True)

    def run(self, arguments: Sequence[str]) -> str:
        """Run the agent; return what it printed."""
        folders = [self.prefix / name / "node_modules" / ".bin" for name in ("agents", "node")]
        folders = [self.prefix / "node/node_modules/node/bin", *folders, self.prefix / "aider/bin"]
        env = {
            "PATH": os.pathsep.join([*map(str, folders), "/usr/local/bin", "/usr/bin", "/bin"]),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
            **self.agent.env(self.servers.url),
        }
        process = subprocess.Popen(
            arguments,
            env=env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            raise Failure(f"nothing came of it in {LIMIT_S} s\n{said}") from None
        if process.returncode:
            raise Failure(f"exit status {process.returncode}\n{said}")
        return said

    def ask(self, prompt: str, expected: str) -> None:
        said = self.run([*self.agent.command, prompt])
        if expected not in said:
            raise Failure(f"{expected!r} is not in what it said\n{said}")

    def arrived(self) -> list[ChatRequest]:
        return self.servers.harness.requests

    # Turns.

    def text(self) -> None:
        self.servers.harness.script = {"greet": [say(*HELLO.partition(" "))], "": [say("A title")]}
        self.ask("Please greet me.", HELLO)

    def tools(self) -> None:
        """Two tools in one turn."""
        calls = [
            self.agent.read(self.work / "note.txt"),
            self.agent.shell(f"echo {ECHOED}"),
        ]
        self.servers.harness.script = {
            "note": [say("I look.", calls=numbered(calls)), say(*DONE.partition(" "))],
            "": [say("A title")],
        }
        self.ask("What does the note say?", DONE)
        results = {
            part.call_id: part.text
            for message in self.arrived()[-1].messages
            for part in message.parts
            if isinstance(part, ToolResult)
        }
        if NOTE not in results.get("call_0", "") or ECHOED not in results.get("call_1", ""):
            raise Failure(f"the tools' results are not what they should be: {results}")

    def thinking(self) -> None:
        """A thought, then a tool, then the answer: the thought has to come back."""
        calls = numbered([self.agent.shell(f"echo {ECHOED}")])
        self.servers.harness.script = {
            "ponder": [say("Hm.", think=THOUGHT.partition(" "), calls=calls), say(ANSWERED)],
            "": [say("A title")],
        }
        self.ask("Please ponder this.", ANSWERED)
        self.came_back()

    def came_back(self) -> None:
        thoughts = [
            part.text
            for message in self.arrived()[-1].messages
            for part in message.parts
            if isinstance(part, Thinking)
        ]
        if thoughts != [THOUGHT]:
            raise Failure(f"what came back of the thought: {thoughts}")

    def edit(self) -> None:
        """A change of a file, said in text."""
        block = f"note.txt\n```\n<<<<<<< SEARCH\n{NOTE}\n=======\n{DONE}\n>>>>>>> REPLACE\n```\n"
        lines = block.splitlines(keepends=True)
        self.servers.harness.script = {
            "change": [say(*lines, think=THOUGHT.partition(" "))],
            "": [say("A title")],
        }
        self.ask("Please change the note.", "Applied edit")
        if (self.work / "note.txt").read_text() != f"{DONE}\n":
            raise Failure("the file is as it was")

    def turns(self) -> list[Callable[[], None]]:
        return [self.text, *([self.tools, self.thinking] if self.agent.shell else [self.edit])]


def numbered(calls: Sequence[tuple[str, dict]]) -> list[tuple[str, str, Sequence[str]]]:
    """Return *calls* with ids, the arguments in pieces."""
    found = []
    for number, (name, arguments) in enumerate(calls):
        text = json.dumps(arguments)
        found.append((f"call_{number}", name, [text[:9], text[9:]]))
    return found


def main() -> int:
    prefix, *names = sys.argv[1:]
    chosen = [agent for agent in AGENTS if not names or agent.name in names]
    trials = [(agent, None) for agent in chosen]
    trials += [(agent, CHAT) for agent in chosen if agent.dialect != CHAT]
    failed = sum(trial(agent, speaks, Path(prefix).resolve()) for agent, speaks in trials)
    print(f"{failed} turns failed" if failed else "every turn of every agent is well")
    return bool(failed)


def trial(agent: Agent, speaks: str | None, prefix: Path) -> int:
    """Put an agent in front of a fleet; print how its turns went, return how many failed."""
    failed = 0
    with fleet(
        "tests.clients.agents:NOTHING_LEFT", [ModelSpec(id=MODEL)], speaks=speaks
    ) as servers:
        asked = Trial(agent, servers, prefix)
        asked.prepare()
        version = asked.run(agent.version).split("\n")[-2].strip()
        over = f", from a server that speaks {speaks}" if speaks else ""
        print(f"{agent.name} ({version}), {agent.dialect}{over}", flush=True)
        for turn in asked.turns():
            asked.prepare()
            servers.forget()
            began, cause = time.monotonic(), ""
            try:
                turn()
            except Failure as failure:
                cause, failed = str(failure), failed + 1
            state = "FAILED" if cause else "ok"
            took = f"{time.monotonic() - began:5.1f} s, {len(asked.arrived())} requests"
            print(f"  {turn.__name__:10} {state:7} {took}", flush=True)
            if cause:
                print("    " + cause[-SHOWN_CHARS:].replace("\n", "\n    "), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
