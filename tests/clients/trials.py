"""
Real coding agents against a gateway and a neuron whose model says what a script says.

``python -m tests.clients.trials PREFIX [NAME ...]``, by `run.sh`, which installs them; one line an
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
from tests.clients.agents import AGENTS, CHAT, MODEL, Agent
from tests.clients.fleet import Fleet, fleet
from tests.clients.scripted import Script, say

NOTE, ECHOED = "the note says seventeen", "echoed-twenty-three"
HELLO, DONE = "hello from the scripted model", "both tools answered"
THOUGHT, ANSWERED = "a thought that has to come back", "the thought came back"
NOTHING_LEFT: Script = {}
LIMIT_S = 150
SHOWN_CHARS = 6000


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
        "tests.clients.trials:NOTHING_LEFT", [ModelSpec(id=MODEL)], speaks=speaks
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
