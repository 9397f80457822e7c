"""
A GPU host over HTTP: a neuron, a gateway before it, random weights, and ``cortex bench``.

    python benchmarks/gpu_http.py                    Qwen3-8B's shape, bf16, about two minutes
    python benchmarks/gpu_http.py --model 0.6B
    python benchmarks/gpu_http.py --devices 2 --drill

Prints throughput and first tokens, how long ``/health`` took meanwhile, and what unloading gives
back; with a drill also how long the model is gone when a worker dies, and when it hangs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from gpu import made
from health import cpu_s
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cortex.cli.bench.workload import WORDS

NEURON, GATEWAY = "127.0.0.1:13131", "127.0.0.1:31313"
CORTEX = [sys.executable, "-m", "cortex"]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
POLL_S = 0.05
WATCHDOG_S = 20
PATIENCE_S = 90
TEMPLATE_TOKENS = 9  # that a prompt gets on top of its own
LOADS = (  # clients, tokens in and out
    (1, 128 - TEMPLATE_TOKENS, 128),
    (64, 128 - TEMPLATE_TOKENS, 128),
    (256, 128 - TEMPLATE_TOKENS, 128),
    (1, 2048 - TEMPLATE_TOKENS, 2),
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default="8B", help="a shape of benchmarks/gpu.py")
    parser.add_argument("--quant", help="fp8 or int8")
    parser.add_argument("--memory-mb", type=int, default=80_000, help="for weights and cache")
    parser.add_argument("--devices", type=int, default=1, help="GPUs the model is split over")
    parser.add_argument("--drill", action="store_true", help="kill a worker, and stop one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(asked.model, folder / asked.model)
        with fleet(folder, asked.memory_mb, asked.devices) as neuron:
            measure(asked, f"file:{folder / asked.model}", neuron.pid)


def save(shape: str, folder: Path) -> None:
    """Save random weights of a shape, and a tokenizer that has the words of `WORDS`."""
    began = time.perf_counter()
    module = made(shape).module
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"{space}{word}" for space in ("", "Ġ") for word in WORDS if len(word) > 1]
    tokens += [f"Ġfiller{number}" for number in range(module.config.vocab_size - len(tokens))]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[0], chat_template=TEMPLATE
    ).save_pretrained(folder)
    module.generation_config.eos_token_id = 0
    module.save_pretrained(folder)
    del module
    torch.cuda.empty_cache()
    print(f"saved in {time.perf_counter() - began:.0f} s", flush=True)


@contextmanager
def fleet(folder: Path, memory_mb: int, devices: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a neuron, which is yielded, and a gateway that knows the folder's model."""
    model = next(path for path in folder.iterdir() if path.is_dir())
    (folder / "neuron.toml").write_text(f"[harness.torch]\nwatchdog_s = {WATCHDOG_S}\n", "utf-8")
    (folder / "models.toml").write_text(
        f'[[models]]\nid = "{model.name}"\nsource = "file:{model}"\nvram_mb = {memory_mb}\n'
        f"min_devices = {devices}\n",
        "utf-8",
    )
    (folder / "cortex.toml").write_text(
        f'[gateway]\nmetrics_listen = "127.0.0.1:0"\n'
        f'[[neurons]]\nname = "gpu"\nendpoint = "http://{NEURON}"\n',
        "utf-8",
    )
    running = [
        subprocess.Popen([*CORTEX, *command, "--log-level", "warning"], cwd=folder)  # noqa: S603
        for command in (
            ["neuron", "--config", "neuron.toml", "--listen", NEURON],
            ["serve", "--config", "cortex.toml", "--listen", GATEWAY],
        )
    ]
    try:
        for place in (NEURON, GATEWAY):
            wait_for(place)
        yield running[0]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


def wait_for(place: str) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            call(place, "/health")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nobody listens at {place}")


def call(place: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return what a server says."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"http://{place}{path}", data, headers), timeout=300) as response:
        return json.load(response)


def used_mb() -> list[int]:
    """Return how much of each device is in use."""
    return [device["vram_used_mb"] for device in call(NEURON, "/health")["devices"]]


def measure(asked: argparse.Namespace, source: str, pid: int) -> None:
    """Load, ask, unload."""
    before = used_mb()
    loaded = call(
        NEURON,
        "/models/load",
        {
            "model_id": asked.model, "source": source, "harness": "torch",
            "quant": asked.quant, "vram_mb": asked.memory_mb, "tensor_parallel": asked.devices,
        },
    )  # fmt: skip
    print(f"loaded in {loaded['load_s']:.1f} s; {used_mb()} MB in use, {before} before")
    if asked.drill:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            drill(asked.model, pid, number)
    polls = Polls()
    for place, name in ((NEURON, "neuron"), (GATEWAY, "gateway")):
        for many, given, wanted in LOADS:
            began, cpu = time.perf_counter(), cpu_s(pid)
            row = bench(asked.model, place, many, given, wanted)
            busy = (cpu_s(pid) - cpu) / (time.perf_counter() - began)
            print(f"{name}, {row}, neuron at {busy:.0%}", flush=True)
    polls.stop()
    print(f"/health of the neuron meanwhile: {polls.told()}")
    call(NEURON, "/models/unload", {"model_id": asked.model})
    print(f"unloaded: {used_mb()} MB in use", flush=True)


def drill(model: str, pid: int, number: signal.Signals) -> None:
    """Send a worker of the neuron a signal in the middle of an answer, and wait for the next."""
    answer = threading.Thread(target=told, args=(model, 4000), daemon=True)
    answer.start()
    time.sleep(2)
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = sorted(child for each in threads for child in each.read_text("ascii").split())
    worker = next(
        int(child)
        for child in reversed(children)
        if "cortex.neuron.engine" in Path(f"/proc/{child}/cmdline").read_text("utf-8")
    )
    os.kill(worker, number)
    began = time.perf_counter()
    while (said := told(model, 8)) != "answered":
        if time.perf_counter() - began > PATIENCE_S:
            raise SystemExit(f"no answer {PATIENCE_S} s after {number.name}: {said}")
        time.sleep(0.2)
    answer.join(10)
    took = time.perf_counter() - began
    print(f"{number.name} to a worker: the next answer after {took:.1f} s; {used_mb()} MB in use")


def told(model: str, tokens: int) -> str:
    """Return whether the neuron answered, or what it said instead."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
    try:
        call(NEURON, "/v1/chat/completions", {**body, "temperature": 0, "ignore_eos": True})
    except OSError as error:
        return str(error)
    return "answered"


def bench(model: str, place: str, many: int, given: int, wanted: int) -> str:
    """Return what came of so many clients, who ask with so many tokens for so many."""
    said = subprocess.run(  # noqa: S603
        [
            *CORTEX, "bench", "--url", f"http://{place}", "--model", model, "--json",
            "--ignore-eos", "--concurrency", str(many), "--requests", str(max(16, 4 * many)),
            "--input-tokens", str(given), "--output-tokens", str(wanted), "--warm-up", str(many),
        ],
        stdout=subprocess.PIPE, check=True, timeout=200,
    )  # fmt: skip
    row = json.loads(said.stdout)["rows"][0]
    done, first, between = max(row["completed"], 1), row["ttft_ms"], row["itl_ms"]
    return (
        f"{many} at once, {row['input_tokens'] // done} in, {row['output_tokens'] // done} out: "
        f"{row['output_tokens_per_s']:.0f} tok/s; first token {first['p50']:.1f} ms "
        f"(p99 {first['p99']:.1f}), between tokens {between['p50']:.1f}; "
        f"{row['failed']} failed, {row['cached_tokens']} tokens cached, "
        f"bench at {row['client_cpu']:.0%} of a core"
    )


class Polls(threading.Thread):
    """Asks the neuron for its health all the while."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._times_s: list[float] = []
        self.start()

    def run(self) -> None:
        while not self._over.wait(POLL_S):
            began = time.perf_counter()
            call(NEURON, "/health")
            self._times_s.append(time.perf_counter() - began)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join(10)

    def told(self) -> str:
        """Return what was found."""
        cuts = statistics.quantiles(self._times_s, n=100)
        return f"{len(self._times_s)} polls, p50 {1e3 * cuts[49]:.1f} ms, p99 {1e3 * cuts[98]:.1f}"


if __name__ == "__main__":
    main()
