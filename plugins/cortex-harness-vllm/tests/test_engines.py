"""What each server is called with, and what its log says."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from harness_bench import GIB, MODEL, WEIGHTS, request

from cortex.chat.request import Image, JsonFormat, Message, Sampling, Text, Tool, ToolChoice
from cortex.errors import (
    InsufficientVram,
    LoadFailed,
    UnsupportedArchitecture,
    UnsupportedParameter,
)
from cortex.fleet.model import Checkpoint, ModelSpec
from cortex.testing import FakeHost
from cortex_harness_vllm.causes import cause_of
from cortex_harness_vllm.engine import Job
from cortex_harness_vllm.harness import ServerHarness
from cortex_harness_vllm.llama import LlamaCppPython, LlamaServer
from cortex_harness_vllm.options import Arguments, ModelOptions, VllmOptions
from cortex_harness_vllm.sglang import Sglang
from cortex_harness_vllm.vllm import Vllm

GGUF = Checkpoint(path=Path("/m.gguf"), format="gguf", size_bytes=GIB)
WHERE = "--host 127.0.0.1 --port 9"


@pytest.mark.parametrize(
    ("engine", "kind", "args", "more", "expected"),
    [
        (Vllm(), "cuda", "", {}, "--tensor-parallel-size 1 --gpu-memory-utilization 0.675"),
        (Vllm(), "cuda", "-tp=4 --gpu-memory-utilization=0.5", {"vram_mb": 10}, ""),
        (Vllm(), "cuda", "--kv-cache-memory-bytes 9", {}, "--tensor-parallel-size 1"),
        (Vllm(), "cpu", "", {"context": 9}, "--tensor-parallel-size 1 --max-model-len 9"),
        (Sglang(), "cuda", "", {"vram_mb": 30_000}, "--tp-size 1 --mem-fraction-static 0.5"),
        (Sglang(), "cuda", "--tp 2", {"quant": "fp8"}, "--quantization fp8"),
        (Sglang(), "cpu", "", {"context": 9}, "--tp-size 1 --context-length 9 --device cpu"),
        (LlamaServer(), "cuda", "", {"context": 9}, "--ctx-size 9"),
        (LlamaServer(), "cuda", "-c 7", {"context": 9}, ""),
        (LlamaCppPython(), "cuda", "", {}, "--n_ctx 0 --n_gpu_layers -1"),
        (LlamaCppPython(), "cpu", "--n_ctx 5", {}, "--n_gpu_layers 0"),
    ],
)
def test_a_server_is_called_with_what_the_model_needs_unless_it_is_configured(
    engine, kind, args, more, expected
):
    job = Job(
        spec=ModelSpec(id=MODEL, **more),
        checkpoint=WEIGHTS,
        devices=(0,),
        kind=kind,
        total_mb=80_000,
        free_mb=60_000,
        args=Arguments(args.split()),
    )
    said = " ".join(engine.arguments(job, 9))
    assert "/weights" in said
    assert WHERE in said
    assert said.partition(f" {MODEL}")[2].replace("--enable-metrics", "").strip() == expected


@pytest.mark.parametrize(
    ("args", "vram_mb", "local"),
    [
        ("", None, 4 * GIB),
        ("", 8192, 8 * GIB),
        ("-pp 2", None, 4 * GIB),
        ("-pp 2 --distributed-executor-backend ray", None, 2 * GIB),
        ("-pp=2 --distributed-executor-backend=ray", 1024, GIB),
        ("--nnodes 4", None, GIB),
    ],
)
def test_of_a_model_over_several_hosts_this_one_holds_a_share(args, vram_mb, local):
    models = {MODEL: ModelOptions(args=tuple(args.split()))}
    harness = ServerHarness(Vllm(), VllmOptions(models=models), FakeHost())
    assert harness.local_bytes(ModelSpec(id=MODEL, vram_mb=vram_mb), WEIGHTS) == local
    assert Sglang().hosts(Arguments(("--nnodes", "2"))) == 2
    assert LlamaServer().hosts(Arguments()) == 1


def test_arguments_of_a_model_come_behind_those_of_all():
    one = ModelOptions(args=("--b", "2"), env={"A": "2"})
    options = VllmOptions(args=("--a",), env={"A": "1"}, models={"m": one})
    assert options.args_for("m") == ("--a", "--b", "2")
    assert options.args_for("m").value("--b") == "2"
    assert options.env_for("m") == {"A": "2"}
    assert (options.args_for("other"), options.env_for("other")) == (("--a",), {"A": "1"})


@pytest.mark.parametrize("engine", [LlamaServer(), LlamaCppPython()])
def test_llama_cpp_takes_gguf_files_as_they_are(engine):
    engine.check(ModelSpec(id=MODEL, quant="Q4_K_M"), GGUF)
    with pytest.raises(UnsupportedArchitecture, match=r"org/model is safetensors \(name a repo"):
        engine.check(ModelSpec(id=MODEL), WEIGHTS)
    with pytest.raises(UnsupportedArchitecture, match="'fp8' was asked for"):
        engine.check(ModelSpec(id=MODEL, quant="fp8"), GGUF)


PICTURE = Message(role="user", parts=(Image(url="data:image/png;base64,AA=="),))
BEGUN = Message(role="assistant", parts=(Text("one"),))
NAMED = {"tools": (Tool(name="go"),), "tool_choice": ToolChoice(mode="required", name="go")}


@pytest.mark.parametrize(
    ("engine", "more", "param"),
    [
        (LlamaServer(), NAMED, "tool_choice"),
        (LlamaCppPython(), {"sampling": Sampling(ignore_eos=True)}, "ignore_eos"),
        (LlamaCppPython(), {"format": JsonFormat(schema={})}, "response_format"),
        (LlamaCppPython(), {"template_args": {"a": 1}}, "chat_template_kwargs"),
        (LlamaCppPython(), {"messages": (), "prompts": ((1, 2),)}, "prompt"),
        (LlamaCppPython(), {"messages": (PICTURE,)}, "messages"),
        (LlamaCppPython(), {"messages": (BEGUN,)}, "messages"),
    ],
)
def test_what_a_server_would_ignore_is_refused(engine, more, param):
    engine.refuse(request())
    with pytest.raises(UnsupportedParameter) as raised:
        engine.refuse(attrs.evolve(request(), **more))
    assert raised.value.param == param


WHOLE = (
    "ERROR 06-30 13:53:19 [core.py:5] ValueError: Free memory on device cuda:0 (19.5/22.05 GiB) on"
    " startup is less than desired GPU memory utilization (0.9, 19.75 GiB). Decrease GPU memory"
)
CACHE = (
    "ValueError: To serve at least one request with the models's max seq len (131072), (16.0 GiB KV"
    " cache is needed, which is larger than the available KV cache memory (5.5 GiB). Based on"
)
TORCH = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total"
    " capacity of 23.68 GiB of which 512.00 MiB is free. Including non-PyTorch memory, this"
)
GGML = "alloc_buffer: allocating 826.00 MiB on device 0: cudaMalloc failed: out of memory"


@pytest.mark.parametrize(
    ("line", "needed_mb", "free_mb"),
    [
        (WHOLE, 2 * 20224, 2 * 19968),
        (CACHE, 2 * (1000 + 10752), 2000),
        (TORCH, 2 * (1000 + 384), 2000),
        (GGML, 2 * (1000 + 826), 2000),
        ("ValueError: No available memory for the cache blocks. Try increasing", 2002, 2000),
        ("Not enough memory. Please try to increase --mem-fraction-static.", 2002, 2000),
        ("Loaded weights leave no GPU memory for the KV cache under --mem", 2002, 2000),
    ],
)
def test_a_log_that_speaks_of_memory_says_how_much_is_needed_at_least(line, needed_mb, free_mb):
    tail = ["INFO before", line, "RuntimeError: Engine core init failed"]
    error = cause_of("x", tail, 1, had_mb=1000, devices=2)
    assert isinstance(error, InsufficientVram)
    assert error.details == {"needed_mb": needed_mb, "free_mb": free_mb}


@pytest.mark.parametrize(
    ("line", "model_type"),
    [
        ("pydantic: Value error, Model architectures ['Foo'] are not supported for now.", "Foo"),
        (
            "ValueError: The checkpoint has model type `bar` but Transformers does not recognize",
            "bar",
        ),
        ("llama_model_load: error loading model: unknown model architecture: 'baz'", "baz"),
    ],
)
def test_a_kind_of_model_that_is_unknown_is_named(line, model_type):
    error = cause_of("x", [line, "main: exiting due to model loading error"], 1)
    assert isinstance(error, UnsupportedArchitecture)
    assert error.details == {"model_type": model_type}


@pytest.mark.parametrize(
    ("code", "tail", "said"),
    [
        (1, [], "x: the server ended with code 1: it said nothing"),
        (137, ["a"], "x: the server ended with SIGKILL, as the kernel does .* left: a"),
        (139, ["a"], "x: the server ended with signal 11: a"),
        (127, ["env: 'x': No such file"], "code 127, its program was not found: env"),
        (1, ["hello", "Traceback (most recent", '  File "a"', "KeyError: 'b'"], "1: KeyError: 'b'"),
    ],
)
def test_any_other_end_is_told_with_the_last_words(code, tail, said):
    error = cause_of("x", tail, code)
    assert isinstance(error, LoadFailed)
    with pytest.raises(LoadFailed, match=said):
        raise error


@pytest.mark.parametrize(
    ("engine", "line", "taken"),
    [
        (Vllm(), "(Worker_TP0 pid=3) INFO 05-06 20:59:59 Model loading took 12.5 GiB memory", 12.5),
        (Vllm(), "INFO 11-24 [gpu_worker.py:348] Available KV cache memory: 33.5 GiB", 33.5),
        (Sglang(), "TP0] KV Cache is allocated. #tokens: 3, KV size: 19.5 GB", 19.5),
        (
            Sglang(),
            "KV Cache is allocated. dtype: bf16, #tokens: 3, K size: 5.5 GB, V size: 6.0 GB",
            11.5,
        ),
        (LlamaServer(), "load_tensors:        CUDA0 model buffer size =  2560.00 MiB", 2.5),
        (LlamaServer(), "load_tensors:   CPU_Mapped model buffer size =  2560.00 MiB", 0),
        (LlamaServer(), "something else", 0),
    ],
)
def test_what_a_server_takes_is_read_off_its_log(engine, line, taken):
    assert engine.taken(line) == taken * GIB
