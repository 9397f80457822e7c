"""
What drafts are worth: the engine without them and with, in one process, on two kinds of work.

An edit says most of its prompt again, a story says little twice.  Each is answered greedily and by
all ways in turns; the answers have to be the same.  Told are tokens a second, tokens a step, and
how many of the tokens that were tried came true.

    python benchmarks/speculation.py [--model PATH] [--draft-tokens N] [--rounds N] [--json]
    python benchmarks/speculation.py --shapes 0.6B,8B,3.5-9B

The second, on a GPU, takes random weights of the real shapes, of which nothing can be guessed: it
is told what was said before, and guesses that or what it was not, and tells what that is worth and
what it costs; and for a model with a layer that guesses, also what that layer costs.  In 16 bits an
answer among others is not always what it was, so what came true is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import attrs
import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine import MODEL, model_path  # noqa: E402

from cortex.chat.request import ChatRequest, Message, Text  # noqa: E402
from cortex.neuron.engine import mtp, weights  # noqa: E402
from cortex.neuron.engine.batching import Batching  # noqa: E402
from cortex.neuron.engine.jobs import Generate, Load, Lost  # noqa: E402
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

MANY = (1, 8, 32)  # at once, of random weights
PROMPT = 128  # tokens of each
Said = dict[tuple[int, ...], list[int]]  # answers, by prompt


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
        for way in ways.values():  # warm
            way.answer(prompt, 2)
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


class Told:
    """Guesses what was said last in answer to a prompt, or for each token another."""

    def __init__(self, said: Said, count: int, *, right: bool) -> None:
        self._said = said
        self._count = count
        self._right = right

    def drafts(self, tokens: Sequence[int], foreseen: Sequence[int]) -> list[int]:
        del foreseen
        done = len(tokens) - PROMPT
        answer = self._said[tuple(tokens[:PROMPT])]
        return [token ^ (not self._right) for token in answer[done : done + self._count]]

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn nothing."""


@attrs.frozen(kw_only=True)
class Pace:
    """How a round went, from its first token on; *tokens* is of all answers."""

    tokens: int
    steps: int
    took_s: float
    drafted: int
    accepted: int

    @property
    def tok_s(self) -> float:
        return self.tokens / self.took_s

    def told(self, many: int, without: Pace) -> str:
        """Return its figures, of so many at once, beside those without drafts."""
        each = self.tokens / self.steps / many
        true = f", {self.accepted / self.drafted:.0%} came true" if self.drafted else ""
        return (
            f"{self.tok_s:.0f} tok/s, {self.tok_s / without.tok_s:.2f} of without; "
            f"{each:.2f} tokens and {1e3 * self.took_s / self.steps:.2f} ms a step; "
            f"{self.drafted} tokens tried{true}"
        )


def costs(name: str, args: argparse.Namespace) -> None:
    """Print what drafts are worth to random weights of a shape, and what they cost."""
    from gpu import GPU, SHAPES, made

    has_layer = "family" in SHAPES[name]
    for way in ("ngram", "auto") if has_layer else ("ngram",):
        found = made(name)
        job = Load(
            model=name,
            path="",
            max_sequences=max(MANY),
            memory_bytes=found.used_bytes + (20 << 30),
            speculation=way,
            draft_tokens=args.draft_tokens,
        )
        with patch("cortex.neuron.engine.model.mtp_of", random_layer):
            model = build(job, found, GPU)
        engine: Any = model.engine
        print(f"\n## {name}, drafts by {way}: {model.body}", flush=True)
        itself = engine._guesser  # noqa: SLF001
        for many in MANY:
            costs_of(engine, many, itself if way == "auto" else None, args)
        del model, engine, found
        gc.collect()
        torch.cuda.empty_cache()


def costs_of(engine: Any, many: int, itself: Any, args: argparse.Namespace) -> None:
    """Print that of so many requests at once, drafted for by the model's own layer as well."""
    prompts = torch.randint(0, 150_000, (many, PROMPT)).tolist()
    said: Said = {}
    told = partial(Told, said, args.draft_tokens)
    guessers: dict[str, Any] = {"without": None}
    if itself is not None:
        guessers["by its own layer, none true"] = itself
    guessers |= {
        "all true": partial(told, right=True),
        "none true": partial(told, right=False),
    }
    paces: dict[str, Pace] = {}
    for words, guesser in guessers.items():
        engine._guesser = guesser  # noqa: SLF001
        paces[words] = pace(engine, prompts, args.tokens, said)
        print(f"{many} at once, {words}: {paces[words].told(many, paces['without'])}", flush=True)
    even = paces["without"].tok_s / paces["none true"].tok_s
    print(f"{many} at once, drafts are worth it from {even:.2f} tokens a step on", flush=True)


def pace(engine: Any, prompts: list[list[int]], tokens: int, said: Said) -> Pace:
    """Have *prompts* answered twice, since graphs are made the first time; tells of the second."""
    plan = engine.scheduler
    for _ in range(2):
        for number, prompt in enumerate(prompts):
            engine.add(
                Generate(id=str(number), model="m", prompt=prompt, max_tokens=tokens, temperature=0)
            )
        answers: list[list[int]] = [[] for _ in prompts]
        began, steps, before = 0.0, 0, (plan.drafted_tokens, plan.accepted_tokens)
        while engine.has_work:
            told, ended = engine.step()
            if lost := [event.message for event in ended if isinstance(event, Lost)]:
                raise SystemExit(lost[0])
            steps += bool(began)
            began = began or (perf_counter() if told else 0.0)
            for token in told:
                answers[int(token.request)].append(token.id)
        took_s = perf_counter() - began
        said |= {tuple(prompt): answer for prompt, answer in zip(prompts, answers, strict=True)}
    return Pace(
        tokens=len(prompts) * (tokens - 1),
        steps=steps,
        took_s=took_s,
        drafted=plan.drafted_tokens - before[0],
        accepted=plan.accepted_tokens - before[1],
    )


def random_layer(_: Path, module: Any, stack: Any) -> tuple[mtp.Mtp, str]:
    """Return a layer that guesses nothing right, of the model's own shapes; as `mtp.mtp_of`."""
    body = module.model
    like = next(layer for layer in body.layers if hasattr(layer, "self_attn"))
    width = module.config.get_text_config().hidden_size
    told = {f"layers.0.{name}": weight for name, weight in like.state_dict().items()}
    norm = body.norm.weight
    told |= {"fc.weight": norm.new_empty(width, 2 * width).normal_(std=0.02), "norm.weight": norm}
    told |= dict.fromkeys(mtp.OWN[1:], norm)
    return mtp._made(told, module, stack), "random"  # noqa: SLF001 - it is read from files elsewhere


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
    parser.add_argument("--shapes", metavar="NAMES", help="of gpu.py, with random weights")
    args = parser.parse_args()
    if args.shapes:
        print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}")
        with torch.inference_mode():
            for name in args.shapes.split(","):
                costs(name, args)
        return
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
