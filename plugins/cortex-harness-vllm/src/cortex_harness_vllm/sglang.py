"""SGLang: ``python3 -m sglang.launch_server``; known as of versions 0.4 to 0.5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cortex.chat.request import ChatRequest
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.engine import HOST, Job, PythonEngine, Stage
from cortex_harness_vllm.options import Arguments
from cortex_harness_vllm.vllm import SHARDS


class Sglang(PythonEngine):
    """See the module."""

    name = "sglang"
    stages = (
        Stage(pattern=SHARDS, name="reading weights"),
        Stage(pattern=re.compile(r"Load weight begin"), name="reading weights"),
        Stage(pattern=re.compile(r"Load weight end"), name="making the cache"),
        Stage(
            pattern=re.compile(r"Capturing batches.*?(?P<done>\d+)/(?P<total>\d+) \["),
            name="capturing graphs",
        ),
        Stage(pattern=re.compile(r"Capture cuda graph begin"), name="capturing graphs"),
        Stage(pattern=re.compile(r"Uvicorn running|Application startup complete"), name="starting"),
    )
    sizes = (
        re.compile(r"Load weight end\..*mem usage=([\d.]+) (GB)"),
        re.compile(r"KV Cache is allocated\..*K size: ([\d.]+) (GB), V size: ([\d.]+) (GB)"),
        re.compile(r"KV Cache is allocated\..*KV size: ([\d.]+) (GB)"),
    )
    fatal = re.compile(r"Scheduler hit an exception")  # its HTTP server may live on without it

    figures: ClassVar[Mapping[str, str]] = {
        "sglang:num_running_reqs": "running",
        "sglang:num_queue_reqs": "waiting",
        "sglang:token_usage": "kv_used_pct",
        "sglang:cache_hit_rate": "prefix_hit_pct",
    }

    def arguments(self, job: Job, port: int) -> list[str]:
        spec, args = job.spec, job.args
        return [
            *("--model-path", str(job.checkpoint.path), "--host", HOST, "--port", str(port)),
            *("--served-model-name", spec.id, "--enable-metrics"),
            *args.unless(("--tp-size", "--tensor-parallel-size", "--tp"), len(job.devices)),
            *(args.unless(("--context-length",), spec.context) if spec.context else ()),
            *(args.unless(("--quantization",), spec.load_quant) if spec.load_quant else ()),
            *(args.unless(("--device",), "cpu") if job.kind == "cpu" else ()),
            *self._memory(job),
        ]

    @staticmethod
    def _memory(job: Job) -> list[str]:
        """Return the share of what is free that weights and cache may take; its own, if any."""
        if job.kind != "cuda" or not job.share_mb or not job.free_mb:
            return []
        share = int(100 * job.share_mb / job.free_mb) / 100
        return job.args.unless(("--mem-fraction-static",), min(share, 0.95))

    def hosts(self, args: Arguments) -> int:
        nodes = args.value("--nnodes")
        return int(nodes) if nodes.isdecimal() else 1

    async def capabilities(self, job: Job, asking: Asking) -> tuple[str, ...]:
        if job.args.has("--is-embedding"):
            return ("embedding",)
        return await super().capabilities(job, asking)

    async def count(self, asking: Asking, request: ChatRequest, body: dict[str, Any]) -> int:
        if request.prompts:
            return await self._of_prompt(asking, request.prompts[0])
        # It renders no chat without answering it; one token's answer leaves the prompt cached.
        asked = {**body, "stream": False, "max_tokens": 1}
        del asked["stream_options"]
        return int((await asking.post(asking.chat_path, asked))["usage"]["prompt_tokens"])

    @staticmethod
    async def _of_prompt(asking: Asking, prompt: str | tuple[int, ...]) -> int:
        if not isinstance(prompt, str):
            return len(prompt)
        said = await asking.post("/tokenize", {"model": asking.model, "prompt": prompt})
        return int(said["count"])
