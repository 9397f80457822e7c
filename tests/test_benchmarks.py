"""That the benchmarks run, and leave no dialect out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.config.schema import PluginSettings
from cortex.plugins import Plugins
from tests.neuron.engine.tiny import save_tiny

ROOT = Path(__file__).parents[1]


def said(name: str, *arguments: str, timeout_s: float, **env: str) -> str:
    """Return what a benchmark prints."""
    return subprocess.run(
        [sys.executable, ROOT / f"benchmarks/{name}.py", *arguments],
        capture_output=True,
        check=True,
        env={**os.environ, **env},
        timeout=timeout_s,
        text=True,
    ).stdout


def chats() -> dict[str, object]:
    """Return the built-in dialects that answer chats."""
    offers = Plugins(PluginSettings(only=frozenset())).offers("dialect")
    built = {offer.name: offer.build() for offer in offers}
    return {n: d for n, d in built.items() if any(e.operation == "chat" for e in d.endpoints)}


def test_health_is_measured_with_streams_and_without():
    rows = json.loads(said("health", "--json", "--streams=5", "--seconds=0.4", timeout_s=30))
    assert rows.keys() == {"idle", "5 streams", "never rests"}
    assert all(row[path]["n"] > 0 for row in rows.values() for path in ("/healthz", "/metrics"))


@pytest.mark.timeout(90)
def test_every_promise_that_is_a_figure_is_measured():
    asked = ("--json", "--streams=5", "--seconds=1", "--slow=3")
    rows = json.loads(said("promises", *asked, timeout_s=80))
    assert {row["number"] for row in rows} == {0, 11, 12, 13, 17}
    assert all(row["measured"] for row in rows)
    [others] = [row for row in rows if "neither answered nor refused" in row["what"]]
    assert others["measured"] == "0"


@pytest.mark.timeout(60)
def test_a_soak_tells_memory_descriptors_and_what_went_wrong():
    found = json.loads(said("soak", "--json", "--seconds=2", "--rate=20", timeout_s=50))
    assert found["requests"] == found["ended"]["ok"] + found["ended"]["left"] > 0
    assert found["errors"] == 0
    assert found["memory_kib"]["end"] > 0
    assert found["descriptors"]["most"] >= found["descriptors"]["begin"] > 0


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("torch")
def test_what_measures_split_models_finds_them_right_and_measures_all_there_is_to():
    lines = said("gpu_tp", "--tiny", timeout_s=170).splitlines()
    tokens = "60 of 60 tokens are those of one device, 60 those of sums by NCCL"
    assert sum(tokens in line for line in lines) == 2
    assert sum(": the same on all ranks, " in line for line in lines) == 2
    assert lines.count("by NCCL: the same bits") == 2
    assert [line.split(":")[0] for line in lines if line.startswith("## tiny")] == [
        *("## tiny, TP 1", "## tiny, TP 2, sums nccl", "## tiny, TP 2, sums shared"),
    ]
    assert sum(line.startswith("decode, ") for line in lines) == 9
    assert sum(line.startswith("first token of ") for line in lines) == 3
    assert sum(" NCCL " in line and " ours " in line for line in lines) == 2
    assert sum(line.startswith("unloaded: 0 MiB, 0 MiB") for line in lines) == 3


@pytest.mark.timeout(120)
@pytest.mark.xdist_group("torch")
def test_every_layer_of_a_step_is_tried_in_tiles():
    found = said("gpu_tiles", "--tiny", timeout_s=110, TRITON_INTERPRET="1")
    assert [line.split(":")[0] for line in found.splitlines() if line] == [
        *("tiny", "gate_up 48x32", "down 32x48", "qkv 64x32", "o 32x32", "head 64x32"),
    ]
    assert found.count(" 16x256x2=") == 5


def test_every_dialect_is_measured_alone_and_against_every_other():
    asked = ("--json", "--rounds=1", "--chunks=4")
    rows = json.loads(said("dialects", *asked, timeout_s=30))["rows"]
    found = {(row["kind"], row["read"], row["written"]) for row in rows}

    assert all(row["us"] > 0 for row in rows)
    assert chats()
    for name, dialect in chats().items():
        assert ("text", None, name) in found
        assert ("arguments", None, name) in found
        for other in {*chats(), "ollama-chat", "ollama-generate"} - {name}:
            assert (("text", name, other) in found) == (dialect.client is not None)


def test_the_simulation_stands_between_the_best_there_can_be_and_nothing():
    found = said("simulate", "--arrivals=1000", "--policy=lru", timeout_s=30)
    titles, _, *lines = [line.strip("| ").split(" | ") for line in found.splitlines()[2:]]
    rows = [dict(zip(titles, line, strict=True)) for line in lines]

    assert [(row["load"], row["policy"]) for row in rows] == [("zipf", "lru"), ("bursty", "lru")]
    for row in rows:
        assert 0 < float(row["belady %"]) <= float(row["cold %"]) < 100
        assert row["refused"] == "0"


def test_the_gateway_is_measured_beside_the_node_alone():
    asked = ("--json", "--seconds=0.2", "--only=0")
    (row,) = json.loads(said("gateway", *asked, timeout_s=30)).values()
    assert row["direct"]["requests"] > 0
    assert row["gateway"]["requests"] > 0
    assert row["gateway"]["cpu_us"] > 0


@pytest.mark.timeout(120)
def test_the_dashboard_is_measured_at_rest_and_with_events():
    found = said("top", "--only=0", "--seconds=0.5", "--events=3", timeout_s=100)
    assert "80x24\n  share of a core at rest  0." in found
    assert "of 3 over 100" in found


@pytest.mark.timeout(180)
def test_the_engine_is_measured_beside_its_peers_on_the_same_tokens(tmp_path):
    save_tiny("llama", tmp_path)
    asked = ("--json", f"--model={tmp_path}", "--quick", "--threads=1", "--output-tokens=4")
    lines = said("engine", *asked, "--concurrency", "1", "3", timeout_s=170).splitlines()
    found = json.loads(lines[-1])
    assert {"ours", "transformers", "transformers, a batch"} <= found["tok_s"].keys()
    for name, row in found["tok_s"].items():
        assert row.keys() == {"1", "3"}
        assert min(row.values()) > 0
        assert found["same_tokens"][name] == 1
    assert found["body"].startswith("fused")
    assert not found["tok_s"].keys() & found["left_out"].keys()
    assert found["step_ms"].keys() == {"1", "3"}
