"""
What drafts are worth: the engine without them and with, in one process, on two kinds of work.

An edit says most of its prompt again, a story says little twice.  Each is answered greedily and by
all ways in turns; the answers have to be the same.  Told are tokens a second, tokens a step, and
how many of the tokens that were tried came true.

    python benchmarks/speculation.py [--model PATH] [--draft-tokens N] [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine import MODEL, model_path  # noqa: E402

from cortex.chat.request import ChatRequest, Message, Text  # noqa: E402
from cortex.neuron.engine import weights  # noqa: E402
from cortex.neuron.engine.batching import Batching  # noqa: E402
from cortex.neuron.engine.jobs import Generate, Load  # noqa: E402
from cortex.neuron.engine.model import build  # noqa: E402
from cortex.neuron.text.side import Text as TextSide  # noqa: E402

CODE = """def area(width, height):
    \"\"\"Return the area of a rectangle.\"\"\"
    if width < 0 or height < 0:
        raise ValueError("a side of a rectangle is not negative")
    return width * height


def volume(width, height, depth):
    \"\"\"Return the volume of a box.\"\"\"
    if depth < 0:
        raise ValueError("a side of a box is not negative")
    return area(width, height) * depth
"""
ASKED = {
    "an edit": f"Repeat this code word by word, and change nothing:\n\n{CODE}",
    "a story": "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
}


class Way:
    """One engine, and how it did."""

    def __init__(self, job: Load, device: torch.device) -> None:
        found = weights.load(job, device, lambda *_: None)
        model = build(job, found, device)
        if not isinstance(model.engine, Batching):
            raise SystemExit(f"it is not stepped by us: {model.body}")
        self.text, self.engine = TextSide(found.text), model.engine
        self.steps, own = 0, model.engine._runner.launch  # noqa: SLF001 - nobody else counts them

        def launch(chunks: Any) -> Any:
            self.steps += 1
            return own(chunks)

        model.engine._runner.launch = launch  # type: ignore[method-assign]  # noqa: SLF001

    def answer(self, prompt: list[int], tokens: int) -> tuple[list[int], float]:
        """Return an answer, and the seconds from its first token to its last."""
        self.engine.add(
            Generate(id="r", model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0.0)
        )
        said: list[int] = []
        began = 0.0
        while self.engine.has_work:
            told, _ = self.engine.step()
            if told and not said:
                began, self.steps = perf_counter(), 0
            said += [token.id for token in told]
        return said, perf_counter() - began


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Answer, and return what is printed."""
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = {
        way: Load(
            model=MODEL,
            path=model_path(args.model),
            context=2048,
            max_sequences=1,
            speculation=way,
            draft_tokens=args.draft_tokens,
        )
        for way in ("off", "ngram", "auto")
    }
    ways = {name: Way(job, device) for name, job in jobs.items()}
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    rows = []
    for work, words in ASKED.items():
        message = Message(role="user", parts=(Text(words),))
        request = ChatRequest(id="r", model=MODEL, messages=(message,))
        prompt = ways["off"].text.prompt(request).ids
        times: dict[str, list[float]] = {name: [] for name in ways}
        before = {name: _counts(way) for name, way in ways.items()}
        answers: list[list[int]] = []
        for number in range(args.rounds):
            order = [*ways.items()]
            for name, way in order[number % 3 :] + order[: number % 3]:
                said, took = way.answer(prompt, args.tokens)
                times[name].append((len(said) - 1) / took)
                answers.append(said)
        for name, way in ways.items():
            drafted, accepted = (a - b for a, b in zip(_counts(way), before[name], strict=True))
            rows.append(
                {
                    "work": work,
                    "speculation": name,
                    "tok_s": round(statistics.median(times[name]), 1),
                    "tokens_a_step": round((len(answers[0]) - 1) / way.steps, 2),
                    "drafted": drafted // args.rounds,
                    "accepted": accepted // args.rounds,
                    "tokens": len(answers[0]),
                    "same": all(answer == answers[0] for answer in answers),
                }
            )
    return {"machine": machine, "rounds": args.rounds, "rows": rows}


def _counts(way: Way) -> tuple[int, int]:
    plan = way.engine.scheduler
    return plan.drafted_tokens, plan.accepted_tokens


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one object on a line")
    parser.add_argument("--model", metavar="PATH", help="a .gguf or a folder (default: SmolLM2)")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with torch.inference_mode():
        found = measure(args)
    print(f"{found['machine']}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{args.draft_tokens} tokens a draft at most, medians of {found['rounds']} rounds\n")
    print(f"{'':10}{'drafts':8}{'tokens/s':>10}{'a step':>8}{'tried':>8}{'true':>8}  same answer")
    for row in found["rows"]:
        print(
            f"{row['work']:10}{row['speculation']:8}{row['tok_s']:10.1f}{row['tokens_a_step']:8.2f}"
            f"{row['drafted']:8}{row['accepted']:8}  {row['same']}, {row['tokens']} tokens"
        )
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
