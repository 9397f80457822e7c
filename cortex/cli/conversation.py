"""The interactive half of ``cortex chat``: read a line, stream the answer, remember both."""

from __future__ import annotations

import contextlib
import sys

from cortex.cli.answers import Answer, Printer, ask
from cortex.cli.catalogue import models
from cortex.cli.client import Gateway
from cortex.cli.loads import warm
from cortex.errors import CortexError, ModelNotFound
from cortex.registry import did_you_mean

HELP = """\
/model NAME  talk to another model     /clear  forget what was said
/model       name the models there are /quit   leave (or Ctrl-D)
Ctrl-C stops an answer; what came of it stays in the conversation."""


class Conversation:
    """A conversation at the terminal; its history is in memory only."""

    def __init__(
        self,
        gateway: Gateway,
        model: str,
        sampling: dict[str, object],
        system: str | None,
        stats: bool,
    ) -> None:
        self._gateway = gateway
        self._model = model
        self._sampling = sampling
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)
        self._stats = stats

    def run(self) -> int:
        """Talk until the user leaves."""
        with contextlib.suppress(ImportError):  # not in every Python; lines then have no history
            import readline  # noqa: F401
        print(f"talking to {self._model}; /help says what else there is", file=sys.stderr)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if line in {"/quit", "/exit"}:
                return 0
            self._do(line)

    def _do(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._obey(*line.split(None, 1))
            elif line:
                self._answer(line)
        except CortexError as error:
            print(f"cortex chat: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()

    def _obey(self, command: str, argument: str = "") -> None:
        if command == "/clear":
            self._messages = list(self._start)
            print("forgotten", file=sys.stderr)
        elif command == "/model":
            self._switch(argument)
        else:
            print(HELP, file=sys.stderr)

    def _switch(self, name: str) -> None:
        listed = {
            known: "*" if known == self._model else " "
            for entry in models(self._gateway)
            for known in (entry.id, *entry.aliases)
        }
        if not name:
            print("\n".join(f"{mark} {known}" for known, mark in listed.items()), file=sys.stderr)
            return
        if name not in listed:
            raise ModelNotFound(f"no model is called {name!r}", hint=did_you_mean(name, listed))
        self._model = name
        print(f"talking to {name}", file=sys.stderr)

    def _answer(self, prompt: str) -> None:
        """Ask; what came of an answer is kept, a question nothing came of is dropped."""
        answer = Answer()
        messages = [*self._messages, {"role": "user", "content": prompt}]
        body = {**self._sampling, "model": self._model, "messages": messages}
        warm(self._gateway, self._model)
        try:
            ask(self._gateway, body, Printer(), answer)
        finally:
            if answer.text:
                self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        if self._stats:
            print(answer.stats(), file=sys.stderr)
