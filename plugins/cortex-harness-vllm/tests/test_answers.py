"""Requests to a server, and its answers as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import attrs
import pytest
from harness_bench import MODEL, WEIGHTS, Bench, bench, request

from cortex.chat.events import (
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import (
    EmbeddingRequest,
    JsonFormat,
    Message,
    Reasoning,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolChoice,
)
from cortex.errors import ContextLengthExceeded, OperationUnsupported, UpstreamFailed
from cortex.fleet.model import ModelSpec
from cortex.testing import harness_contract, until


@pytest.fixture(scope="module")
async def served(tmp_path_factory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("served")
    async with bench(folder, args=("--tool-call-parser", "hermes")) as made:
        await made.load(ModelSpec(id=MODEL, defaults={"temperature": 0.5, "top_k": 7}))
        yield made


def usage_of(said) -> tuple[int, int]:
    assert isinstance(said[-1], Finished)
    return said[-1].usage.prompt_tokens, said[-1].usage.completion_tokens


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_the_contract_holds(tmp_path, kind):
    async with bench(tmp_path, kind, args=("--tool-call-parser", "hermes")) as made:
        await harness_contract(made.harness, ModelSpec(id=MODEL), WEIGHTS)


@pytest.mark.asyncio(loop_scope="module")
class TestServed:
    async def test_text_thoughts_and_usage_come_as_events(self, served):
        said = await served.say("think twice")
        assert said[:-1] == [
            Started(prompt_tokens=3),
            ThinkingDelta("Hm"),
            ThinkingDelta(" well"),
            TextDelta("think"),
            TextDelta(" twice"),
        ]
        assert usage_of(said) == (3, 4)
        assert said[-1].usage.prefill_ms > 0
        stats = served.harness.stats(MODEL)
        assert stats.tokens_total >= 4
        assert stats.tok_s_prefill > 0

    async def test_a_call_comes_as_events(self, served):
        said = await served.say(tools=(Tool(name="go"),))
        assert said[1:-1] == [
            ToolCallStarted(index=0, id="call_1", name="go"),
            ToolCallDelta(index=0, arguments='{"where":'),
            ToolCallDelta(index=0, arguments=' "Rome"}'),
        ]
        assert said[-1].reason == "tool_calls"

    async def test_all_that_is_asked_reaches_the_server(self, served):
        sampling = Sampling(
            temperature=0.25, top_p=0.5, min_p=0.125, repetition_penalty=1.5, seed=3, max_tokens=9,
            ignore_eos=True, stop=("x",), frequency_penalty=0.5, presence_penalty=1.0,
            logit_bias={5: 1.0}, logprobs=2,
        )  # fmt: skip
        said = await served.say(
            sampling=sampling,
            tools=(Tool(name="go"),),
            tool_choice=ToolChoice(mode="required", name="go", parallel=False),
            format=JsonFormat(schema={"type": "object"}),
            reasoning=Reasoning(enabled=False, effort="none"),
            template_args={"date": "today"},
        )
        asked = served.asked("/v1/chat/completions")[-1]
        assert said[-1].stop_string == "x"
        assert asked["model"] == MODEL
        expected = {
            "temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "seed": 3,
            "repetition_penalty": 1.5, "max_tokens": 9, "ignore_eos": True, "stop": ["x"],
            "frequency_penalty": 0.5, "presence_penalty": 1.0, "logit_bias": {"5": 1.0},
            "logprobs": True, "top_logprobs": 2, "parallel_tool_calls": False,
            "tool_choice": {"type": "function", "function": {"name": "go"}},
            "chat_template_kwargs": {"date": "today", "enable_thinking": False},
        }  # fmt: skip
        assert {name: asked[name] for name in expected} == expected
        assert asked["response_format"]["json_schema"]["schema"] == {"type": "object"}

    async def test_log_probabilities_come_with_their_tokens(self, served):
        said = await served.say("one", sampling=Sampling(logprobs=0))
        assert said[1].logprobs == (TokenLogprob(token="one", logprob=-0.5, data=b"one"),)

    async def test_a_bare_prompt_is_continued(self, served):
        sampling = Sampling(logprobs=2, max_tokens=1)
        said = await served.say(prompts=("once upon a",), sampling=sampling)
        assert said[0] == Started(prompt_tokens=3, prompt_text="once upon a")
        assert said[1].text == "once"
        assert said[1].logprobs[0].logprob == -0.25
        assert [top.token for top in said[1].logprobs[0].top] == ["b", "a"]
        assert (said[-1].reason, *usage_of(said)) == ("length", 3, 1)
        asked = served.asked("/v1/completions")[-1]
        assert (asked["prompt"], asked["logprobs"], asked["top_k"]) == ("once upon a", 2, 7)

    async def test_a_prompt_of_token_ids_says_its_text(self, served):
        said = await served.say(prompts=((4, 5, 6),))
        assert said[0] == Started(prompt_tokens=3, prompt_text="3 tokens")
        assert served.asked("/v1/completions")[-1]["prompt"] == [4, 5, 6]

    async def test_an_answer_that_was_begun_counts_as_one(self, served):
        begun = Message(role="assistant", parts=(Text("one two three"),))
        chat = attrs.evolve(request(), messages=(*request().messages, begun), resumes=True)
        asked = attrs.evolve(chat, sampling=Sampling(max_tokens=5))
        said = [event async for event in served.harness.generate(asked)]
        assert usage_of(said) == (4, 5)  # 3 + 2 words and 2 turns, less 3; the fake says 2 more
        body = served.asked("/v1/chat/completions")[-1]
        assert (body["max_tokens"], body["continue_final_message"]) == (2, True)
        full = attrs.evolve(chat, sampling=Sampling(max_tokens=3))
        said = [event async for event in served.harness.generate(full)]
        assert (said[-1].reason, *usage_of(said)) == ("length", 4, 3)
        thought = Message(role="assistant", parts=(Thinking("hm"),))
        with pytest.raises(OperationUnsupported, match="goes on with text only"):
            await anext(served.harness.generate(attrs.evolve(chat, messages=(thought,))))

    async def test_a_refusal_is_raised_and_a_broken_stream_ends_with_its_cause(self, served):
        with pytest.raises(ContextLengthExceeded, match="512 tokens"):
            await served.say("too long")
        said = await served.say("break it")
        assert isinstance(said[-1], Failed)
        assert isinstance(said[-1].error, UpstreamFailed)
        assert str(said[-1].error) == "the engine broke"
        assert served.harness.stats(MODEL).in_flight == 0

    async def test_a_client_that_leaves_is_seen_by_the_server(self, served):
        saying = served.harness.generate(request("hang on"))
        assert [type(await anext(saying)) for _ in range(2)] == [Started, TextDelta]
        assert served.harness.stats(MODEL).in_flight == 1
        await saying.aclose()
        await until(lambda: {"left": True} in served.records, 15)
        assert served.harness.stats(MODEL).in_flight == 0

    async def test_tokens_are_counted_as_they_would_be_fed(self, served):
        assert await served.harness.count(request("a b c")) == 4
        assert await served.harness.count(request(prompts=("a b",))) == 2
        body = served.asked("/tokenize")[-2]
        assert (body["add_generation_prompt"], "temperature" in body) == (True, False)
        count = await served.harness.counter(ModelSpec(id=MODEL), None)
        assert await count(request("a b c")) == 4
        with pytest.raises(OperationUnsupported, match="of loaded models only"):
            await served.harness.counter(ModelSpec(id="other"), None)

    async def test_a_model_that_speaks_makes_no_embeddings(self, served):
        with pytest.raises(OperationUnsupported, match="makes text, no embeddings"):
            await served.harness.embed(EmbeddingRequest(id="e", model=MODEL, inputs=("a",)))


async def test_a_model_that_embeds_does_and_does_not_speak(tmp_path):
    async with bench(tmp_path, args=("--runner", "pooling")) as made:
        running, _ = await made.load()
        assert running.capabilities == ("embedding",)
        asked = EmbeddingRequest(id="e", model=MODEL, inputs=("a", (1, 2)), dimensions=2)
        made_of = await made.harness.embed(asked)
        assert made_of.vectors == ((0.6, 0.8), (0.6, 0.8))
        assert made_of.prompt_tokens == 4
        assert made.asked("/v1/embeddings")[-1]["input"] == ["a", [1, 2]]
        with pytest.raises(OperationUnsupported, match="makes embeddings, no text"):
            await made.say()


async def test_more_requests_than_places_wait(tmp_path):
    async with bench(tmp_path, max_in_flight=1) as made:
        await made.load()
        first = made.harness.generate(request("hang"))
        await anext(first)
        second = made.harness.generate(request())
        waiting = asyncio.ensure_future(anext(second))
        await until(lambda: made.harness.stats(MODEL).queue_depth == 1)
        await first.aclose()
        assert isinstance(await waiting, Started)
        await second.aclose()
        assert made.harness.stats(MODEL).in_flight == 0
