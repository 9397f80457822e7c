"""
llama.cpp: its own ``llama-server``, and the server of llama-cpp-python.

What is known of the former is of builds since 2025-09, of the latter as of version 0.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cortex.chat.request import ChatRequest, Image
from cortex.errors import UnsupportedArchitecture
from cortex.fleet.model import Checkpoint, ModelSpec
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.engine import HOST, Engine, Job, Stage, unsupported

RENDERED = ("messages", "tools", "tool_choice", "chat_template_kwargs", "response_format")


class Gguf(Engine):
    """What both share: one file of weights, and the words of their logs."""

    stages = (
        Stage(pattern=re.compile(r"loading model"), name="reading weights"),
        Stage(pattern=re.compile(r"KV buffer size|threadpool init"), name="making the cache"),
        Stage(pattern=re.compile(r"warming up|n_ctx_slot"), name="warming up"),
        Stage(pattern=re.compile(r"listening on|Uvicorn running"), name="starting"),
    )
    sizes = (
        re.compile(r"^(?!.*(?:CPU|Host)).*(?:model|KV|RS|compute) buffer size = +([\d.]+) (MiB)"),
    )

    def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        if checkpoint.format != "gguf":
            raise UnsupportedArchitecture(
                f"harness {self.name!r} runs .gguf files, {spec.id} is {checkpoint.format}",
                hint="name a repository that has some, and which one with quant",
                details={"model_type": checkpoint.format, "supported": ["gguf"]},
            )
        if spec.load_quant:
            raise UnsupportedArchitecture(
                f"harness {self.name!r} quantises nothing at load; {spec.quant!r} was asked for",
                hint="quant names a file of the repository",
            )


class LlamaServer(Gguf):
    """``llama-server``."""

    name = "llama-server"
    counts_first = True
    figures: ClassVar[Mapping[str, str]] = {  # with --metrics
        "llamacpp:requests_processing": "running",
        "llamacpp:requests_deferred": "waiting",
    }

    def arguments(self, job: Job, port: int) -> list[str]:
        spec, args = job.spec, job.args
        return [
            *("--model", str(job.checkpoint.path), "--host", HOST, "--port", str(port)),
            *("--alias", spec.id),
            *(args.unless(("--ctx-size", "-c"), spec.context) if spec.context else ()),
        ]

    def context(self, model: Mapping[str, Any]) -> int:
        meta = model.get("meta") or {}
        return int(meta.get("n_ctx") or meta.get("n_ctx_train") or 0)

    async def capabilities(self, job: Job, asking: Asking) -> tuple[str, ...]:
        if job.args.has("--embedding", "--embeddings"):
            return ("embedding",)
        props = await asking.get("/props")
        can, sees = props.get("chat_template_caps") or {}, props.get("modalities") or {}
        found = {
            "vision": sees.get("vision"),
            "tools": can.get("supports_tools"),
            "reasoning": "enable_thinking" in str(props.get("chat_template")),
        }
        return ("text", *(name for name, there in found.items() if there))

    def refuse(self, request: ChatRequest) -> None:
        if request.tools and request.tool_choice.name is not None:
            raise unsupported(self, "can be told to call a tool, not which", "tool_choice")

    async def count(self, asking: Asking, request: ChatRequest, body: dict[str, Any]) -> int:
        if not request.prompts:
            asked = {name: body[name] for name in RENDERED if name in body}
            prompt = (await asking.post("/apply-template", asked))["prompt"]
        elif isinstance(request.prompts[0], str):
            prompt = request.prompts[0]
        else:
            return len(request.prompts[0])
        return await self._count(asking, prompt, add_special=True)

    @staticmethod
    async def _count(asking: Asking, text: str, *, add_special: bool) -> int:
        asked = {"content": text, "add_special": add_special, "parse_special": True}
        return len((await asking.post("/tokenize", asked))["tokens"])

    async def tokens(self, asking: Asking, text: str) -> int:
        return await self._count(asking, text, add_special=False)

    async def text(self, asking: Asking, ids: Sequence[int]) -> str:
        return str((await asking.post("/detokenize", {"tokens": list(ids)}))["content"])


class LlamaCppPython(Gguf):
    """
    ``python3 -m llama_cpp.server``; it ignores what it does not know, so that is refused here.

    A stream of it says nothing of tokens: they are counted before, and the answer's after it.
    """

    name = "llama-cpp-python"
    health = "/v1/models"
    counts_first = True

    def arguments(self, job: Job, port: int) -> list[str]:
        spec, args = job.spec, job.args
        return [
            *("--model", str(job.checkpoint.path), "--host", HOST, "--port", str(port)),
            *("--model_alias", spec.id),
            *args.unless(("--n_ctx",), spec.context or 0),  # 0 is the checkpoint's own
            *args.unless(("--n_gpu_layers",), 0 if job.kind == "cpu" else -1),
        ]

    async def capabilities(self, job: Job, asking: Asking) -> tuple[str, ...]:
        del asking
        if job.args.has("--embedding"):
            return ("embedding",)
        return ("text", "tools") if job.args.has("--chat_format") else ("text",)

    def refuse(self, request: ChatRequest) -> None:
        parts = [part for message in request.messages for part in message.parts]
        last = request.messages[-1:]
        refused = {
            "ignore_eos": request.sampling.ignore_eos,
            "response_format": request.format is not None and request.format.schema is not None,
            "chat_template_kwargs": request.template_args or request.reasoning.enabled is False,
            "prompt": any(not isinstance(prompt, str) for prompt in request.prompts),
            "messages": any(isinstance(part, Image) for part in parts)
            or (last and last[0].role == "assistant"),
        }
        for name, is_asked in refused.items():
            if is_asked:
                raise unsupported(self, f"knows no {name} of this kind", name)

    async def count(self, asking: Asking, request: ChatRequest, body: dict[str, Any]) -> int:
        if request.prompts:  # of text, as `refuse` sees to it
            return await self.tokens(asking, str(request.prompts[0]))
        asked = {**body, "stream": False, "max_tokens": 1}
        del asked["stream_options"]
        return int((await asking.post(asking.chat_path, asked))["usage"]["prompt_tokens"])

    async def tokens(self, asking: Asking, text: str) -> int:
        return int((await asking.post("/extras/tokenize/count", {"input": text}))["count"])

    async def text(self, asking: Asking, ids: Sequence[int]) -> str:
        return str((await asking.post("/extras/detokenize", {"tokens": list(ids)}))["text"])
