"""SmolLM2-135M, loaded once: what a real model says, however it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import random
from time import perf_counter

import attrs
import jsonschema
import pytest
import pytest_asyncio

from cortex.chat.request import ChatRequest, JsonFormat, Message, Text
from tests.neuron.engine import test_structure as structure
from tests.neuron.engine.conftest import load, running_harness
from tests.neuron.engine.schemas import schema_of
from tests.neuron.engine.test_harness import PROMPTS, answer, ask, greedy

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),
]
COUNT = int(os.environ.get("CORTEX_TEST_SCHEMAS", "16"))  # 200 take minutes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harness(demo_checkpoint):
    """A harness with `smollm2` loaded."""
    async with running_harness(max_sequences=8) as (harness, _):
        await load(harness, demo_checkpoint, "smollm2")
        yield harness


def likeliest(checkpoint, prompts, answers):
    """Return transformers' likeliest token at each place of each answer and after it; the ends."""
    import torch
    import transformers

    where, file = checkpoint.path.parent, checkpoint.path.name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file, dtype=torch.float32
    )
    found = []
    for prompt, said in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 :]
        found.append(logits.argmax(-1).tolist())
    ends = model.generation_config.eos_token_id
    return found, ends if isinstance(ends, list) else [ends]


async def test_greedy_output_is_transformers_own_token_by_token(harness, demo_checkpoint):
    """Each token is the likeliest after those before it, looked at all at once: that is greedy."""
    ids, got = await greedy(harness, "smollm2", 64)
    found, ends = await asyncio.to_thread(likeliest, demo_checkpoint, ids, got)
    for said, (*likely, after) in zip(got, found, strict=True):
        assert said == likely
        assert len(said) == 64 or after in ends
        assert not {*said} & {*ends}
    assert sum(map(len, got)) > len(PROMPTS)


async def test_it_goes_on_from_the_end_of_any_word_as_it_would_have(harness):
    whole, _ = await answer(harness, ask(PROMPTS[1], model="smollm2", max_tokens=48))
    ends = [at for at in range(1, len(whole)) if whole[at - 1].isalpha() and whole[at] == " "]
    assert len(ends) > 10

    async def go_on(at):
        turn = Message(role="assistant", parts=(Text(whole[:at]),))
        left = 48 - whole[:at].count(" ")  # what is left is at most: a word is a token or more
        more = ask(PROMPTS[1], f"from {at}", "smollm2", max_tokens=left)
        more = attrs.evolve(more, messages=(*more.messages, turn))
        return (await answer(harness, more))[0]

    chosen = ends[::4]
    for at, rest in zip(chosen, await asyncio.gather(*map(go_on, chosen)), strict=True):
        assert (whole[:at] + rest).startswith(whole), at


async def test_at_temperature_one_it_follows_schemas(harness):
    await asyncio.gather(
        *(structure.check(harness, name, "smollm2", seeds=2) for name in structure.SCHEMAS)
    )


async def test_every_answer_to_a_random_schema_parses_and_validates(harness):
    made = random.Random(2024)
    schemas = [schema_of(made) for _ in range(COUNT)]
    places = asyncio.Semaphore(8)

    async def check(number, schema):
        sampling = {"temperature": 1.0, "seed": number, "max_tokens": 400}
        request = ask("Describe something, as JSON.", f"s{number}", "smollm2", **sampling)
        async with places:
            text, last = await answer(
                harness, attrs.evolve(request, format=JsonFormat(schema=schema))
            )
        assert last.reason == "stop", (schema, text)
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        return last.usage.completion_tokens

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check(*each)) for each in enumerate(schemas)]
    tokens = sum(task.result() for task in tasks)
    print(f"\n{COUNT} schemas, {tokens} tokens in {perf_counter() - began:.1f} s: all valid")


async def test_a_prompt_is_transformers_own(harness, demo_checkpoint):
    from transformers import AutoTokenizer

    text = harness._models["smollm2"].text
    assert text.capabilities == ("text",)
    folder, file = demo_checkpoint.path.parent, demo_checkpoint.path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    turns = [("user", "Is it warm?"), ("assistant", "Yes: 22 °C."), ("user", "Thanks <b>!")]
    messages = tuple(Message(role=role, parts=(Text(said),)) for role, said in turns)
    ids = text.prompt(ChatRequest(id="r", model="smollm2", messages=messages)).ids
    own = [{"role": role, "content": said} for role, said in turns]
    assert ids == tokenizer.apply_chat_template(own, add_generation_prompt=True)["input_ids"]
