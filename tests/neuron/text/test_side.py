"""What a request's prompt is, and what is made of it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import sleep

import attrs
import pytest
from tokenizers import Tokenizer

from cortex.chat.request import (
    ChatRequest,
    JsonFormat,
    Reasoning,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cortex.chat.request import (
    Text as TextPart,
)
from cortex.errors import InvalidRequest, ToolsUnsupported, UnsupportedParameter
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.text.side import Text
from cortex.neuron.text.tokens import Vocabulary
from tests.chat.test_turns import assistant, results, system, turn, user
from tests.neuron.text import templates
from tests.neuron.text.answers import TOOLS
from tests.neuron.text.templates import tokenizer_json

TOKENIZER = tokenizer_json()
BACKEND = Tokenizer.from_str(TOKENIZER)
REQUIRED = ToolChoice(mode="required")


def side(template, **more):
    files = {"chat_template": template, "special_tokens": {}, "sampling": {}, **more}
    return Text(TextFiles(tokenizer=TOKENIZER, **files))


def chat(*turns, **more):
    return ChatRequest(id="r", model="m", messages=turns or (user("x"),), **more)


def prompted(template, request):
    return BACKEND.decode(side(template).prompt(request).ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("QWEN", ("text", "tools", "reasoning")),
        ("MISTRAL", ("text", "tools")),
        ("PHI", ("text", "tools")),
        ("GEMMA", ("text",)),
        ("HARMONY", ("text", "tools", "reasoning")),
    ],
)
def test_a_template_says_what_a_model_can_do(name, capabilities):
    assert side(getattr(templates, name)).capabilities == capabilities


def test_a_model_without_a_template_goes_on_from_bare_prompts_and_cannot_chat():
    bare = side(None)
    assert bare.capabilities == ("text",)
    with pytest.raises(InvalidRequest, match="no chat template"):
        bare.prompt(chat())
    assert bare.prompt(ChatRequest(id="r", model="m", prompts=("ab",))).ids


def test_tools_are_in_the_prompt_as_json_unless_there_is_to_be_no_call():
    said = prompted(templates.QWEN, chat(tools=TOOLS))
    written = said.splitlines()[2]
    assert json.loads(written)["function"]["name"] == "get_weather"
    none = chat(tools=TOOLS, tool_choice=ToolChoice(mode="none"))
    assert prompted(templates.QWEN, none) == prompted(templates.QWEN, chat())
    assert side(templates.QWEN).prompt(none).tools == ()


def test_tools_a_template_does_not_know_are_a_422():
    with pytest.raises(ToolsUnsupported) as caught:
        side(templates.GEMMA).prompt(chat(tools=TOOLS))
    assert (caught.value.status, caught.value.param) == (422, "tools")


def test_a_template_that_fails_with_these_tools_is_a_422_and_with_these_turns_a_400():
    source = (
        "{% if tools and tools | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
        + templates.LLAMA
    )
    assert side(source).prompt(chat(tools=TOOLS[:1])).ids
    with pytest.raises(ToolsUnsupported, match="one only"):
        side(source).prompt(chat(tools=TOOLS))
    refuses = "{{ raise_exception('no bears') if messages[-1].content == 'bear' }}"
    with pytest.raises(InvalidRequest, match="no bears") as caught:
        side(refuses + templates.LLAMA).prompt(chat(user("bear"), tools=TOOLS))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_tools_may_be_text_beside_what_the_system_says():
    for turns in ((user("x"),), (system("be brief"), user("x"))):
        said = prompted(templates.PHI, chat(*turns, tools=TOOLS))
        head, tools, _ = re.split(r"<\|/?tool\|>", said)
        assert [tool["name"] for tool in json.loads(tools)] == ["get_weather", "time"]
        assert head == ("<|system|>" if len(turns) == 1 else "<|system|>be brief")


def test_a_model_may_have_another_template_for_tools():
    both = side("plain", tool_template=templates.LLAMA)
    assert both.capabilities == ("text", "tools")
    plain = both.prompt(chat()).ids
    assert BACKEND.decode(plain) == "plain"
    assert "get_weather" in BACKEND.decode(both.prompt(chat(tools=TOOLS)).ids)


def test_how_much_to_think_is_told_and_the_clients_own_words_win():
    source = "{{ enable_thinking }} {{ reasoning_effort }}{{ messages[0].content }}"
    request = chat(reasoning=Reasoning(enabled=True, effort="high"))
    assert prompted(source, request) == "True highx"
    own = {"enable_thinking": False, "more": 1, "tools": [], "turns": 2, "messages": []}
    assert prompted(source, attrs.evolve(request, template_args=own)) == "False highx"


@pytest.mark.parametrize(
    ("template", "more", "thinking"),
    [
        (templates.QWEN, {}, None),
        (templates.QWEN, {"reasoning": Reasoning(enabled=False)}, False),
        (templates.OPENING, {}, True),
        (templates.MISTRAL, {}, None),
    ],
)
def test_a_prompt_opens_thoughts_or_closes_them(template, more, thinking):
    assert side(template).prompt(chat(**more)).thinking is thinking


def test_where_the_prompt_closed_the_thoughts_an_answer_is_not_taken_for_one():
    source = "<\uff5cAssistant\uff5c>{{ '</think>' if enable_thinking is false }}"
    implied = side(source).prompt(chat())
    assert implied.syntax.reasoning.implied
    closed = side(source).prompt(chat(reasoning=Reasoning(enabled=False)))
    assert not closed.syntax.reasoning.implied


def test_a_bare_prompt_is_gone_on_from_as_it_is():
    one = side(templates.QWEN)
    text = one.prompt(ChatRequest(id="r", model="m", prompts=("a<|im_end|>",)))
    assert BACKEND.decode(text.ids, skip_special_tokens=False) == "a<|im_end|>"
    assert (text.said, text.tools, list(text.syntax.marks())) == (None, (), [])
    ids = one.prompt(ChatRequest(id="r", model="m", prompts=(tuple(text.ids),)))
    assert (ids.ids, ids.said) == (text.ids, "a<|im_end|>")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [((0, 99_999), "no token 99999"), ((-1,), "no token -1"), ("", "empty"), ((), "empty")],
)
def test_a_bare_prompt_is_checked(prompt, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        side(None).prompt(ChatRequest(id="r", model="m", prompts=(prompt,)))
    assert caught.value.param == "prompt"


# The prompts of a conversation.

WEATHER = {"name": "get_weather", "arguments": '{"city": "Paris", "days": 3}'}
TURNS = [
    [system("be brief"), system("and kind"), user("Is it warm?"), system("tools: a, b")],
    [
        assistant(
            Thinking("Hm."), "I look.", ToolCall(id="1", **WEATHER), ToolCall(id="2", **WEATHER)
        ),
        turn("tool", ToolResult(call_id="2", parts=(TextPart("no"),), is_error=True)),
        results(**{"1": "22"}),
        system("the user is away"),
    ],
    [assistant(Thinking("So."), ToolCall(id="3", **WEATHER)), results(**{"3": ""})],
    [assistant("It is."), user("a", "b"), system("be quick")],
    [assistant(Thinking("Well."), "Bye."), user("Bye.")],
]


def prompts(template, tools=TOOLS):
    """Return the prompt of each turn of an agent's conversation."""
    one = side(template)
    turns, found = [], []
    for more in TURNS:
        turns += more
        found.append(one.prompt(chat(*turns, tools=tools)).ids)
    return found


@pytest.mark.parametrize("name", ["KEEPING", "MISTRAL", "GRANITE", "HARMONY"])
def test_each_prompt_of_a_conversation_is_the_beginning_of_the_next(name):
    for shorter, longer in pairwise(prompts(getattr(templates, name))):
        assert len(longer) > len(shorter)
        assert longer[: len(shorter)] == shorter


def test_the_form_of_content_does_not_matter_to_the_prompt():
    in_parts = side(templates.QWEN).prompt(chat(user("a", "b\n", "c"))).ids
    assert in_parts == side(templates.QWEN).prompt(chat(user("ab\nc"))).ids


# What holds an answer to a form.


def test_an_answer_is_free_unless_it_has_a_form_or_must_be_a_call():
    one = side(templates.QWEN)
    for request in (
        chat(),
        chat(tools=TOOLS),
        chat(tools=TOOLS, tool_choice=ToolChoice(mode="none")),
    ):
        assert one.grammar(request, one.prompt(request)) is None


@pytest.mark.parametrize(
    ("name", "more", "answer", "allowed"),
    [
        ("QWEN", {}, '{"a": 1}', True),
        ("QWEN", {}, "<think>hm</think>\n\n{}", True),
        ("QWEN", {}, "hm</think>{}", False),
        ("QWEN", {"reasoning": Reasoning(enabled=False)}, "<think>hm</think>{}", False),
        ("QWEN", {"reasoning": Reasoning(enabled=False)}, "{}", True),
        ("OPENING", {}, "hm</think>{}", True),
        ("OPENING", {}, "{}", False),
        ("HARMONY", {}, "<|channel|>final<|message|>{}", True),
        (
            "HARMONY",
            {},
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}",
            True,
        ),
        ("HARMONY", {}, "{}", False),
        (
            "QWEN",
            {"tools": TOOLS},
            '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
            True,
        ),
    ],
)
def test_json_comes_behind_the_thoughts(name, more, answer, allowed):
    one = side(getattr(templates, name))
    request = chat(format=JsonFormat(), **more)
    assert allows(one.grammar(request, one.prompt(request)), answer) is allowed


def allows(grammar, text):
    from llguidance import LLMatcher

    matcher = LLMatcher(llguidance_tokens(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(BACKEND.encode(text).ids) and matcher.is_accepting()


def llguidance_tokens():
    from llguidance import LLTokenizer

    return LLTokenizer(TOKENIZER, eos_token=[templates.SPECIAL.index("<|other|>")])


def test_a_call_must_be_only_where_there_are_tools_and_the_family_can_be_held_to_it():
    one = side(templates.QWEN)
    with pytest.raises(InvalidRequest) as caught:
        one.prompt(chat(tool_choice=REQUIRED))
    assert caught.value.param == "tool_choice"
    gemma = side("{{ tools }}<|tool_call>call: {{ messages[0].content }}")
    for more, param in (
        ({"tool_choice": REQUIRED}, "tool_choice"),
        ({"format": JsonFormat()}, "response_format"),
    ):
        request = chat(tools=TOOLS, **more)
        with pytest.raises(UnsupportedParameter) as caught:
            gemma.grammar(request, gemma.prompt(request))
        assert caught.value.param == param


def test_calls_nobody_asked_for_are_held_to_the_schema_of_a_strict_tool():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    request = chat(tools=(Tool(name="go", parameters=schema, strict=True),))
    one = side(templates.QWEN)
    grammar = one.grammar(request, one.prompt(request))
    call = '<tool_call>\n{"name": "go", "arguments": {"n": %s}}\n</tool_call>'
    for before in ("", "Well.\n", "<think>hm</think>\n\n"):
        assert allows(grammar, before + call % "1")
        assert not allows(grammar, before + call % '"1"')
    assert allows(grammar, "<think>hm</think>\n\nNo.")
    harmony = side(templates.HARMONY)
    assert harmony.grammar(request, harmony.prompt(request)) is None


def test_all_else_goes_on_while_a_long_prompt_is_read():
    vocabulary, looks = side(templates.QWEN).vocabulary, 0
    with ThreadPoolExecutor(1) as readers:
        reading = readers.submit(vocabulary.encode, "word " * 400_000, special=False)
        while not reading.done():
            sleep(0.001)
            looks += 1

    assert len(reading.result()) == 2_000_000
    assert looks > 30  # hundreds; if it holds the lock all the while, a few


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None},  # raises
        None,  # panics
    ],
)
def test_a_text_that_a_tokenizer_gives_up_on_is_the_clients_error(model):
    said = json.loads(TOKENIZER)
    if model is None:
        said["normalizer"] = {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}
    else:
        said |= {"model": model, "added_tokens": [], "pre_tokenizer": None}
    vocabulary = Vocabulary(json.dumps(said))
    with pytest.raises(InvalidRequest, match="tokenizer cannot read"):
        vocabulary.encode("some text", special=False)


def test_arguments_nested_beyond_reading_are_text():
    nested = "[" * 50_000
    said = chat(user("x"), assistant(ToolCall(id="1", name="f", arguments=nested)))
    assert (nested in prompted(templates.QWEN, said)) is True
