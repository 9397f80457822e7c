"""The text side: templates as transformers renders them, text cut only where it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cortex.chat.events import TextDelta
from cortex.chat.request import ChatRequest, Message, Sampling
from cortex.chat.request import Text as TextPart
from cortex.errors import InvalidRequest
from cortex.neuron.engine.jobs import TextFiles, Token
from cortex.neuron.text.reader import overlap
from cortex.neuron.text.side import Text

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def tokenizer_json(special=SPECIAL):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*special])
    return backend.to_str()


TOKENIZER = tokenizer_json()
BACKEND = Tokenizer.from_str(TOKENIZER)


def side(template=CHATML):
    return Text(
        TextFiles(
            tokenizer=TOKENIZER,
            chat_template=template,
            special_tokens={"bos_token": "<|im_start|>"},
            sampling={},
        )
    )


def chat(*turns, **more):
    messages = [Message(role=role, parts=(TextPart(text),)) for role, text in turns]
    return ChatRequest(id="r", model="m", messages=tuple(messages), **more)


def prompt(template, *turns):
    return side(template).prompt(chat(*turns)).ids


def said(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def answered(text, stop=()):
    """Return what each token adds, what comes at the end, and the answer."""
    one = side()
    request = chat(("user", "x"), sampling=Sampling(stop=stop))
    answer = one.answer(request, one.prompt(request))
    pieces = []
    for token in BACKEND.encode(text).ids:
        if answer.over:
            break
        pieces.append(said(answer.feed(Token("r", token))))
    return pieces, said(answer.finish()), answer


def test_the_template_is_rendered_up_to_where_the_assistant_answers():
    ids = prompt(CHATML, ("system", "be brief"), ("user", "hi"))
    assert BACKEND.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_special_tokens_of_the_template_are_tokens_and_not_text():
    assert prompt(CHATML, ("user", "x"))[0] == SPECIAL.index("<|im_start|>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_a_400(template, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        prompt(template, ("user", "x"))
    assert caught.value.param == "messages"


def test_templates_may_ask_for_the_date_loop_controls_and_json():
    template = (
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
    )
    text = BACKEND.decode(prompt(template, ("user", "é<"), ("user", "b")))
    assert text[:2] == "20"
    assert '"é<"' in text
    assert '"b"' not in text


@given(st.text())
def test_what_is_fed_comes_out_and_no_character_comes_in_halves(text):
    pieces, rest, _ = answered(text)
    assert "".join(pieces) + rest == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text(alphabet="ab€"), st.text(alphabet="ab€", min_size=1, max_size=4))
def test_text_ends_before_a_stop_string_wherever_it_is_cut(text, stop):
    pieces, rest, answer = answered(text, (stop,))
    assert "".join(pieces) + rest == (text[: text.index(stop)] if stop in text else text)
    assert answer.stop_string == (stop if stop in text else None)


def test_only_what_may_begin_a_stop_string_is_held_back():
    pieces, _, _ = answered("one EN two", stop=("END",))
    assert pieces == ["o", "n", "e", " ", "", "", "EN ", "t", "w", "o"]


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("abc", "cd", 1), ("abab", "ababc", 4), ("x", "y", 0), ("", "y", 0), ("end", "end", 0)],
)
def test_overlap_is_the_longest_end_that_begins_the_stop(text, stop, length):
    assert overlap(text, stop) == length
