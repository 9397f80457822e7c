"""The text side: templates as transformers renders them, text cut only where it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cortex.chat.request import Message
from cortex.chat.request import Text as TextPart
from cortex.errors import InvalidRequest
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.text import Text, overlap

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def tokenizer_json():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
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


def messages(*turns):
    return [Message(role=role, parts=(TextPart(text),)) for role, text in turns]


def decoded(text, stop=()):
    decoder = side().decoder(stop)
    pieces = [decoder.feed(token) for token in BACKEND.encode(text).ids]
    return pieces, decoder


def test_the_template_is_rendered_up_to_where_the_assistant_answers():
    ids = side().prompt(messages(("system", "be brief"), ("user", "hi")))
    assert BACKEND.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_special_tokens_of_the_template_are_tokens_and_not_text():
    assert side().prompt(messages(("user", "x")))[0] == SPECIAL.index("<|im_start|>")


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
        side(template).prompt(messages(("user", "x")))
    assert caught.value.param == "messages"


def test_templates_may_ask_for_the_date_loop_controls_and_json():
    template = (
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
    )
    text = BACKEND.decode(side(template).prompt(messages(("user", "é"), ("user", "b"))))
    assert text[:2] == "20"
    assert '"é"' in text
    assert '"b"' not in text


@given(st.text())
def test_what_is_fed_comes_out_and_no_character_comes_in_halves(text):
    pieces, decoder = decoded(text)
    assert "".join(pieces) + decoder.finish() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text(alphabet="ab€"), st.text(alphabet="ab€", min_size=1, max_size=4))
def test_text_ends_before_a_stop_string_wherever_it_is_cut(text, stop):
    decoder = side().decoder((stop,))
    out = ""
    for token in BACKEND.encode(text).ids:
        out += decoder.feed(token)
        if decoder.matched:
            break
    out += decoder.finish()
    assert out == (text[: text.index(stop)] if stop in text else text)
    assert decoder.matched == (stop if stop in text else None)


def test_only_what_may_begin_a_stop_string_is_held_back():
    pieces, _ = decoded("one EN two", stop=("END",))
    assert pieces == ["o", "n", "e", " ", "", "", "EN ", "t", "w", "o"]


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("abc", "cd", 1), ("abab", "ababc", 4), ("x", "y", 0), ("", "y", 0), ("end", "end", 0)],
)
def test_overlap_is_the_longest_end_that_begins_the_stop(text, stop, length):
    assert overlap(text, stop) == length
