"""Answers held to a schema or a grammar, by a random model; by a real one in `test_smollm2`."""

from __future__ import annotations

import json

import attrs
import jsonschema
import pytest

from cortex.chat.events import Failed, Started
from cortex.chat.request import JsonFormat
from cortex.errors import InvalidRequest
from cortex.neuron.engine import jobs
from tests.neuron.engine.test_harness import answer, ask

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
WORD = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {"name": WORD, "age": SMALL, "sex": {"enum": ["f", "m", None]}},
        "required": ["name", "age", "sex"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {"people": {"type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 3}},
        "required": ["people"],
        "additionalProperties": False,
        "$defs": {
            "p": {
                "type": "object",
                "properties": {"n": WORD, "ok": {"type": "boolean"}},
                "required": ["n"],
                "additionalProperties": False,
            }
        },
    },
    "either": {"anyOf": [SMALL, {"type": "string", "pattern": "^[a-c]{2,5}$"}, {"const": "é\n"}]},
    "formats": {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}, "more": {"type": "null"}},
        "required": ["day", "more"],
        "additionalProperties": False,
    },
}


def formatted(text, number=0, schema=None, **more):
    sampling = {"temperature": 1.0, "seed": number, "max_tokens": 600, **more}
    request = ask(text, f"s{number}", **sampling)
    return attrs.evolve(request, format=JsonFormat(schema=schema))


async def check(harness, name, model="tiny", seeds=4):
    answers, schema = set(), SCHEMAS[name]
    for number in range(seeds):
        request = formatted("Tell me about someone, as JSON.", number, schema)
        request = attrs.evolve(request, id=f"{name} {number}", model=model)
        text, finished = await answer(harness, request)
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        assert finished.reason == "stop"
        answers.add(text)
    assert len(answers) > 1


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_random_model_at_temperature_one_follows_a_schema(name, harness):
    await check(harness, name)


async def test_an_answer_that_is_not_complete_at_the_limit_is_cut(harness):
    schema = {"type": "string", "minLength": 100}
    text, finished = await answer(harness, formatted("x", 1, schema, max_tokens=10))
    assert text.startswith('"')
    assert finished.reason == "length"
    assert finished.usage.completion_tokens == 10


async def test_a_schema_nobody_can_enforce_is_refused_before_the_answer_starts(harness):
    with pytest.raises(InvalidRequest, match="strng") as caught:
        await anext(harness.generate(formatted("x", schema={"type": "strng"})))
    assert caught.value.param == "response_format"
    assert harness.stats("tiny").in_flight == 0


async def test_a_schema_nothing_can_follow_is_the_clients_fault_and_told_in_a_line(harness):
    request = formatted("x", schema={"$ref": "#"})
    *_, failed = [event async for event in harness.generate(request)]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InvalidRequest)
    assert failed.error.status == 400
    assert "\n" not in failed.error.message


async def test_a_constrained_answer_leaves_the_others_as_they_were(harness):
    alone = await answer(harness, ask("hello", "a"))
    events = harness.generate(formatted("x", 3, SCHEMAS["nested"]))
    assert isinstance(await anext(events), Started)
    beside = await answer(harness, ask("hello", "b"))
    await events.aclose()
    assert beside[0] == alone[0]


async def generated(harness, grammar, **more):
    worker = harness._models["tiny"].worker
    job = {"model": "tiny", "prompt": [70, 71], "max_tokens": 50, "grammar": grammar, **more}
    return [event async for event in worker.ask(jobs.Generate(id="g", **job))]


@pytest.mark.parametrize("grammar", ['start: "(" /[ab]{3}/ ")"', r"start: /\([ab]{3}\)/"])
async def test_a_job_takes_lark_and_the_answer_ends_where_it_can_go_no_further(grammar, harness):
    *tokens, done = await generated(harness, grammar, seed=2, logprobs=2)
    assert len(tokens) == 5
    assert done.reason == "stop"
    assert all(token.logprob < 0 and len(token.top) == 2 for token in tokens)


async def test_an_end_token_may_come_where_the_answer_could_end_and_only_there(harness):
    *tokens, done = await generated(harness, "start: /a{3,}/", logit_bias={0: 100.0})
    assert len(tokens) == 3
    assert done.reason == "stop"
    assert done.completion_tokens == 4


async def test_a_grammar_that_does_not_compile_loses_its_request_and_no_other(harness):
    (lost,) = await generated(harness, "start: @nothing")
    assert isinstance(lost, jobs.Lost)
    assert "nothing" in lost.message
    assert not isinstance((await answer(harness, ask("hi")))[1], Failed)
