"""
Models on other inference servers, for cortex: vLLM, SGLang and llama.cpp.

Each is a harness.  A model gets a server of its own on this host, which is started, watched,
replaced when it dies, and ended with its model or with the neuron.
"""

from __future__ import annotations

from cortex import hookimpl
from cortex.api import Harness, HarnessHost, Register
from cortex_harness_vllm.options import (
    LlamaCppPythonOptions,
    LlamaServerOptions,
    ServerOptions,
    SglangOptions,
    VllmOptions,
)

__all__ = ["cortex_register_harnesses"]


def make_vllm(options: ServerOptions, host: HarnessHost) -> Harness:
    """Build the harness of vLLM."""
    from cortex_harness_vllm.harness import ServerHarness
    from cortex_harness_vllm.vllm import Vllm

    return ServerHarness(Vllm(), options, host)


def make_sglang(options: ServerOptions, host: HarnessHost) -> Harness:
    """Build the harness of SGLang."""
    from cortex_harness_vllm.harness import ServerHarness
    from cortex_harness_vllm.sglang import Sglang

    return ServerHarness(Sglang(), options, host)


def make_llama_server(options: ServerOptions, host: HarnessHost) -> Harness:
    """Build the harness of llama.cpp's own server."""
    from cortex_harness_vllm.harness import ServerHarness
    from cortex_harness_vllm.llama import LlamaServer

    return ServerHarness(LlamaServer(), options, host)


def make_llama_cpp_python(options: ServerOptions, host: HarnessHost) -> Harness:
    """Build the harness of llama-cpp-python's server."""
    from cortex_harness_vllm.harness import ServerHarness
    from cortex_harness_vllm.llama import LlamaCppPython

    return ServerHarness(LlamaCppPython(), options, host)


@hookimpl
def cortex_register_harnesses(register: Register[Harness]) -> None:
    register("vllm", make_vllm, options=VllmOptions, summary="a vllm serve for each model")
    register(
        "sglang", make_sglang, options=SglangOptions, summary="an SGLang server for each model"
    )
    register(
        "llama-server",
        make_llama_server,
        options=LlamaServerOptions,
        summary="a llama-server for each model, a .gguf file",
    )
    register(
        "llama-cpp-python",
        make_llama_cpp_python,
        options=LlamaCppPythonOptions,
        summary="llama-cpp-python's server for each model, a .gguf file",
    )
