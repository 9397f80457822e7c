"""Random JSON schemas, each followed by a real model at temperature one."""

from __future__ import annotations

import asyncio
import json
import os
import random
from time import perf_counter

import attrs
import jsonschema
import pytest

from cortex.chat.request import JsonFormat
from tests.neuron.engine.conftest import load
from tests.neuron.engine.test_harness import answer, ask

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),
]
COUNT = int(os.environ.get("CORTEX_TEST_SCHEMAS", "16"))  # 200 take minutes
NAMES = ("name", "age", "city", "é", "is_ok", "a b", "$id", "items")


def schema_of(made, depth=0):
    """Return a schema all of whose answers are short."""
    kinds = [word, integer, pattern, choice, lambda _: {"type": made.choice(["boolean", "null"])}]
    if depth < 2:
        kinds += [lambda m: record(m, depth), lambda m: array(m, depth), lambda m: either(m, depth)]
    return made.choice(kinds if depth else kinds[-3:-1])(made)


def word(made):
    return {"type": "string", "minLength": made.randrange(3), "maxLength": made.randrange(3, 13)}


def integer(made):
    low = made.randrange(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + made.randrange(1000)}


def pattern(made):
    return made.choice(
        [
            {"type": "string", "pattern": "^[a-f]{2,6}$"},
            {"type": "string", "pattern": r"^\d{3}-\d{2}$"},
            {"type": "string", "format": "ipv4"},
        ]
    )


def choice(made):
    values = ["red", "blue", 3, -1, True, None, 'a "quoted" one']
    return {"enum": made.sample(values, made.randrange(1, 4))}


def array(made, depth):
    least = made.randrange(2)
    items = schema_of(made, depth + 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}


def record(made, depth):
    names = made.sample(NAMES, made.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: schema_of(made, depth + 1) for name in names},
        "required": made.sample(names, made.randrange(len(names) + 1)),
        "additionalProperties": False,
    }


def either(made, depth):
    return {"anyOf": [schema_of(made, depth + 1), schema_of(made, depth + 1)]}


async def test_every_answer_to_a_random_schema_parses_and_validates(harness, demo_checkpoint):
    await load(harness, demo_checkpoint, "smollm2")
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
    await harness.unload("smollm2")
