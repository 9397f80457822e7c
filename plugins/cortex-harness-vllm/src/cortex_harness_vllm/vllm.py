"""
vLLM: ``vllm serve``, with tensor and pipeline parallelism, over hosts with Ray.

What is known here of its arguments, its log and its API is of vLLM 0.8 to 0.12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cortex.chat.request import ChatRequest
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.engine import HOST, Job, PythonEngine, Stage
from cortex_harness_vllm.options import Arguments

COUNTED = ("messages", "tools", "chat_template_kwargs", "continue_final_message")
SHARDS = re.compile(r"oading .*shards:\s+\d+% Completed \| (?P<done>\d+)/(?P<total>\d+)")
PP, NODES = ("--pipeline-parallel-size", "-pp"), ("--nnodes", "-n")


class Vllm(PythonEngine):
    """See the module."""

    name = "vllm"
    stages = (
        Stage(pattern=SHARDS, name="reading weights"),
        Stage(pattern=re.compile(r"tarting to load model|from scratch"), name="reading weights"),
        Stage(pattern=re.compile(r"Model loading took"), name="measuring memory"),
        Stage(
            pattern=re.compile(r"Dynamo bytecode|ompiling a graph|compil.* cache"), name="compiling"
        ),
        Stage(
            pattern=re.compile(r"vailable KV cache memory|GPU KV cache size"),
            name="making the cache",
        ),
        Stage(
            pattern=re.compile(r"apturing CUDA graphs?\b.*?(?P<done>\d+)/(?P<total>\d+) \["),
            name="capturing graphs",
        ),
        Stage(pattern=re.compile(r"Starting vLLM API server|init engine .*took"), name="starting"),
    )
    sizes = (
        re.compile(r"Model loading took ([\d.]+) (GiB|GB)"),
        re.compile(r"vailable KV cache memory: ([\d.]+) (GiB)"),
    )
    pools = (
        ("--task", "embed", "embedding"),
        ("--runner", "pooling"),
        ("--convert", "embed"),
    )
    environment: ClassVar[Mapping[str, str]] = {
        **PythonEngine.environment,
        "VLLM_NO_USAGE_STATS": "1",
    }

    figures: ClassVar[Mapping[str, str]] = {
        "vllm:num_requests_running": "running",
        "vllm:num_requests_waiting": "waiting",
        "vllm:kv_cache_usage_perc": "kv_used_pct",
        "vllm:gpu_cache_usage_perc": "kv_used_pct",  # before 0.10
        "vllm:prefix_cache_queries_total": "prompt_tokens_total",
        "vllm:prefix_cache_hits_total": "cached_tokens_total",
        "vllm:num_preemptions_total": "preemptions_total",
    }

    def arguments(self, job: Job, port: int) -> list[str]:
        spec = job.spec
        return [
            *(str(job.checkpoint.path), "--host", HOST, "--port", str(port)),
            *("--served-model-name", spec.id),
            *job.args.unless(("--tensor-parallel-size", "-tp"), len(job.devices)),
            *(job.args.unless(("--max-model-len",), spec.context) if spec.context else ()),
            *(
                job.args.unless(("--quantization", "-q"), spec.load_quant)
                if spec.load_quant
                else ()
            ),
            *self._memory(job),
        ]

    @staticmethod
    def _memory(job: Job) -> list[str]:
        """
        Return the share of the device it may take.

        It is one of all the device has, and the server does not start unless so much is free.
        """
        if job.kind != "cuda" or not job.total_mb or job.args.has("--kv-cache-memory-bytes"):
            return []
        wanted_mb = min(job.share_mb or job.free_mb * job.memory_fraction, job.free_mb)
        share = int(1000 * wanted_mb / job.total_mb) / 1000
        return job.args.unless(("--gpu-memory-utilization",), share)

    def hosts(self, args: Arguments) -> int:
        if (nodes := args.value(*NODES)).isdecimal():
            return int(nodes)
        stages = args.value(*PP)
        over_hosts = args.value("--distributed-executor-backend") == "ray"
        return int(stages) if over_hosts and stages.isdecimal() else 1

    async def count(self, asking: Asking, request: ChatRequest, body: dict[str, Any]) -> int:
        if request.prompts:
            asked = {"prompt": request.prompts[0], "add_special_tokens": True}
        else:
            asked = {name: body[name] for name in COUNTED if name in body}
            asked["add_generation_prompt"] = not body.get("continue_final_message", False)
        return int((await asking.post("/tokenize", {"model": asking.model, **asked}))["count"])
