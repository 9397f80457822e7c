"""Pictures in prompts: where they are, how many tokens they have, and what is none."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from cortex.chat.request import ChatRequest, Image, Reasoning, Tool, ToolCall, ToolResult
from cortex.chat.request import Text as Words
from cortex.errors import InvalidImage, InvalidRequest, VisionUnsupported
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.text.side import Text
from tests.chat.test_turns import assistant, system, turn, user
from tests.neuron.test_text import tokenizer_json

PAD = "<|image_pad|>"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", PAD]
SIGHT = Sight(token=4, patch=2, merge=2, least_pixels=16, most_pixels=4096)
ONE, OTHER = (Image(url=f"data:image/png;base64,{n}") for n in ("AA==", "AQ=="))
SEEN = {
    ONE: Picture(at=0, height=4, width=8, rgb=b"one", digest=b"1"),
    OTHER: Picture(at=0, height=8, width=12, rgb=b"other", digest=b"2"),
}
SHOWN = (
    "{%- macro shown(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endmacro %}"
)
SEEING = SHOWN + (
    "{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}:{{ shown(m.content) }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}<|im_start|>assistant:{{ hint }}"
)
TEXT_RESULTS = SEEING.replace(
    "{{ shown(m.content) }}",
    "{% if m.role == 'tool' %}{{ m.content if m.content is string }}"
    "{% else %}{{ shown(m.content) }}{% endif %}",
)
BLIND = "{%- for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
CALL = ToolCall(id="1", name="look", arguments='{"at": "sky"}')


TOKENIZER = tokenizer_json(SPECIAL)
BACKEND = Tokenizer.from_str(TOKENIZER)


def side(template=SEEING, sight=SIGHT, **more):
    files = {"chat_template": template, "special_tokens": {}, "sampling": {}, **more}
    return Text(TextFiles(tokenizer=TOKENIZER, sight=sight, **files))


def chat(*turns, **more):
    return ChatRequest(id="r", model="m", messages=turns, **more)


def said(prompt):
    return BACKEND.decode(prompt.ids, skip_special_tokens=False)


def result(*parts):
    read = tuple(Words(part) if isinstance(part, str) else part for part in parts)
    return turn("tool", ToolResult(call_id="1", parts=read))


def shows(count):
    return f"<|vision_start|>{PAD * count}<|vision_end|>"


def test_who_sees_says_so():
    assert side().capabilities == ("text", "vision", "tools")
    assert side(sight=None).capabilities == ("text", "tools")
    assert side(BLIND).capabilities == ("text",)
    assert side(None).capabilities == ("text",)


def test_a_picture_has_as_many_tokens_as_it_shows_to_the_model_and_says_where_it_is():
    prompt = side().prompt(chat(user("a", ONE, "b", OTHER), user(ONE)), SEEN)
    start = "<|im_start|>user:"
    assert said(prompt) == (
        f"{start}a{shows(2)}b{shows(6)}<|im_end|>{start}{shows(2)}<|im_end|><|im_start|>assistant:"
    )
    assert [picture.rgb for picture in prompt.pictures] == [b"one", b"other", b"one"]
    for picture in prompt.pictures:
        count = picture.tokens(SIGHT)
        around = prompt.ids[picture.at - 1 : picture.at + count + 1]
        assert around == [2, *[SIGHT.token] * count, 3]


@pytest.mark.parametrize(
    ("template", "shown"),
    ids=("stays", "moves"),
    argvalues=[
        (SEEING, f"tool:look{shows(2)}<|im_end|>"),
        (
            TEXT_RESULTS,
            (
                "tool:look<|im_end|><|im_start|>user:[images in the result of look, call 1]\n"
                f"{shows(2)}<|im_end|>"
            ),
        ),
    ],
)
def test_an_image_in_a_result_of_a_tool_reaches_the_model(template, shown):
    prompt = side(template).prompt(chat(user("x"), assistant(CALL), result("look", ONE)), SEEN)
    assert said(prompt).endswith(f"{shown}<|im_start|>assistant:")
    assert len(prompt.pictures) == 1


def test_a_prompt_is_the_beginning_of_the_next_one_also_where_it_has_pictures():
    turns = [user("a", ONE), assistant("b"), user("c", OTHER)]
    first, second = (side().prompt(chat(*turns[:n]), SEEN) for n in (1, 3))
    end = len(first.ids)
    assert second.ids[:end] == first.ids
    assert second.pictures[:1] == first.pictures


@pytest.mark.parametrize(
    "request_",
    [
        chat(user(f"what is {PAD}?", ONE)),
        chat(system(f"{PAD} is a token"), user("x", ONE)),
        chat(user(ONE), assistant(PAD), user(PAD)),
        chat(user(ONE), assistant(CALL), result(PAD)),
        chat(user(ONE), assistant(ToolCall(id="1", name="a", arguments=f'{{"{PAD}": "{PAD}"}}'))),
        chat(user(ONE), template_args={"hint": PAD}),
        chat(user(ONE), tools=(Tool(name="a", description=PAD, parameters={PAD: [PAD]}),)),
        chat(user(ONE), assistant(f"it begins {PAD}")),
    ],
    ids=range(8),
)
def test_the_words_of_a_placeholder_are_text_wherever_somebody_writes_them(request_):
    prompt = side().prompt(request_, SEEN)
    assert len(prompt.pictures) == 1
    assert prompt.ids.count(SIGHT.token) == 2
    assert said(prompt).count(PAD) >= 3  # and they are still there
    assert prompt.begun is None or prompt.begun.tokens == len(f"it begins {PAD}")


def test_what_stands_around_the_words_of_a_placeholder_is_what_it_was():
    prompt = side().prompt(chat(user(f"a {PAD} b {PAD}")))
    assert said(prompt) == f"<|im_start|>user:a {PAD} b {PAD}<|im_end|><|im_start|>assistant:"


@pytest.mark.parametrize("prompt", [f"a {PAD}", (5, SIGHT.token)])
def test_a_bare_prompt_has_no_place_for_a_picture(prompt):
    with pytest.raises(InvalidRequest, match="a bare prompt has none") as caught:
        side().prompt(ChatRequest(id="r", model="m", prompts=(prompt,)))
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    assert side(sight=None).prompt(ChatRequest(id="r", model="m", prompts=(prompt,))).ids


@pytest.mark.parametrize(("template", "sight"), [(SEEING, None), (BLIND, SIGHT), (BLIND, None)])
def test_who_sees_no_images_says_so_by_name(template, sight):
    with pytest.raises(VisionUnsupported, match="model 'm' sees no images") as caught:
        side(template, sight).prompt(chat(user("x", ONE)))
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[1]")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([user("many", ONE)], "shows 0 of 1 images"),
        ([system("s", OTHER), user("x", ONE)], "shown 1 of 2 images where they are"),
    ],
)
def test_an_image_that_would_be_lost_is_an_error(turns, words):
    source = "{% if 'many' in messages[0].content[0].text %}x{% else %}" + SEEING + "{% endif %}"
    with pytest.raises(InvalidImage, match=words):
        side(source).prompt(chat(*turns), SEEN)


def test_an_answer_that_was_begun_goes_on_behind_its_pictures():
    prompt = side().prompt(chat(user(ONE), assistant("so"), resumes=True), SEEN)
    assert said(prompt).endswith("<|im_start|>assistant:so")
    assert (prompt.begun.tokens, len(prompt.pictures)) == (2, 1)


def test_how_much_to_think_is_told_to_who_sees_too():
    source = "{{ enable_thinking }}" + SEEING
    prompt = side(source).prompt(chat(user(ONE), reasoning=Reasoning(enabled=True)), SEEN)
    assert said(prompt).startswith("True")


def test_template_arguments_nested_too_deeply_are_refused():
    nested: object = "x"
    for _ in range(900):
        nested = {"a": nested}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        side().prompt(chat(user("x"), template_args={"hint": nested}))
