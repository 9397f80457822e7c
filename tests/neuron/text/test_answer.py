"""Tokens of an answer become events: marks survive, thoughts are counted, tokens are told."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from cortex.chat.events import TextDelta, ThinkingDelta, ToolCallStarted
from cortex.chat.request import ChatRequest, Sampling
from cortex.neuron.engine.jobs import TextFiles, Token
from cortex.neuron.text.side import Text
from cortex.neuron.text.tokens import Vocabulary
from tests.chat.test_turns import user
from tests.neuron.text import templates
from tests.neuron.text.answers import TOOLS
from tests.neuron.text.templates import SPECIAL, tokenizer_json
from tests.neuron.text.test_parser import meaning

TOKENIZER = tokenizer_json()
BACKEND = Tokenizer.from_str(TOKENIZER)


def answering(template, *, prompts=(), **more):
    files = TextFiles(tokenizer=TOKENIZER, chat_template=template, special_tokens={}, sampling={})
    one = Text(files)
    turns = () if prompts else (user("x"),)
    request = ChatRequest(id="r", model="m", messages=turns, prompts=prompts, **more)
    return one.answer(request, one.prompt(request))


def tokens_of(text):
    return [Token("r", number, -0.5, [(number, -0.5)]) for number in BACKEND.encode(text).ids]


def events_of(answer, text, *, cut=False):
    events = [event for token in tokens_of(text) for event in answer.feed(token)]
    return [*events, *answer.finish(cut=cut)]


def test_special_tokens_that_are_marks_are_read_and_the_others_are_not_text():
    answer = answering(templates.MISTRAL, tools=TOOLS)
    written = 'I look.<|other|>[TOOL_CALLS]time[ARGS]{"a": "[TOOL_CALLS]"}<|im_end|>'
    assert meaning(events_of(answer, written)) == [
        ("text", "I look."),
        ("call", "time", '{"a": "[TOOL_CALLS]"}'),
    ]


def test_marks_of_another_family_are_no_text_either():
    answer = answering(templates.QWEN, tools=TOOLS)
    assert meaning(events_of(answer, "a[TOOL_CALLS]b<|channel|>")) == [("text", "ab")]


def test_channels_are_told_by_their_tokens():
    answer = answering(templates.HARMONY, tools=TOOLS)
    written = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary"
        " to=functions.time <|other|>json<|message|>{}"
    )
    assert meaning(events_of(answer, written)) == [("thinking", "Hm."), ("call", "time", "{}")]
    assert answer.reason() == "tool_calls"


def test_tokens_of_thought_are_counted_with_their_marks():
    answer = answering(templates.QWEN)
    events_of(answer, "<think>Hm.</think>Yes.")
    assert (answer.tokens, answer.reasoning_tokens) == (9, 5)
    plain = answering(templates.QWEN)
    events_of(plain, "Yes.")
    assert (plain.tokens, plain.reasoning_tokens) == (4, 0)
    opened = answering(templates.OPENING)
    assert meaning(events_of(opened, "Hm.</think>Yes.")) == [("thinking", "Hm."), ("text", "Yes.")]
    assert opened.reasoning_tokens == 4


def test_a_bare_prompt_is_answered_with_all_that_is_written():
    answer = answering(templates.QWEN, prompts=("x",), sampling=Sampling(stop=("END",)))
    written = "<think>Hm.</think>[TOOL_CALLS] \n ENDless"
    assert meaning(events_of(answer, written)) == [("text", "<think>Hm.</think> \n ")]
    assert answer.stop_string == "END"


def asking(**more):
    return {"sampling": Sampling(logprobs=1, **more)}


def test_each_text_says_of_its_tokens_how_likely_they_were():
    answer = answering(templates.QWEN, **asking())
    events = events_of(answer, "<think>Hm.</think>é!")
    assert [type(event) for event in events[:-2]] == [ThinkingDelta] * 3
    first, second = events[-2:]
    assert (first.text, second.text) == ("é", "!")
    assert [(one.token, one.data, one.logprob) for one in first.logprobs] == [
        ("\ufffd", b"\xc3", -0.5),
        ("\ufffd", b"\xa9", -0.5),
    ]
    (alone,) = second.logprobs
    assert (alone.token, alone.top[0].token, alone.top[0].top) == ("!", "!", ())


def test_tokens_that_are_no_text_in_the_end_are_told_too():
    answer = answering(templates.QWEN, **asking())
    events = events_of(answer, "a<|other|>")
    assert [event.text for event in events] == ["a", ""]
    assert [one.token for one in events[1].logprobs] == ["<|other|>"]


def test_tokens_of_a_call_are_nobodys():
    answer = answering(templates.QWEN, tools=TOOLS, **asking())
    written = 'Hi <tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    events = events_of(answer, written)
    told = [one.token for event in events if isinstance(event, TextDelta) for one in event.logprobs]
    assert "".join(told) == "Hi"
    assert any(isinstance(event, ToolCallStarted) for event in events)


def test_nothing_is_told_that_was_not_asked_for():
    assert all(event.logprobs == () for event in events_of(answering(templates.QWEN), "abc"))


@given(st.text(st.characters(codec="utf-8", exclude_characters="<[")), st.booleans())
def test_every_token_of_a_plain_answer_is_told_once(text, bare):
    answer = answering(
        None if bare else templates.GEMMA, prompts=("x",) if bare else (), **asking()
    )
    events = events_of(answer, text)
    assert b"".join(one.data for event in events for one in event.logprobs) == text.encode()
    assert "".join(event.text for event in events) == text


# Tokenizers.


def pieces_tokenizer():
    """Return a tokenizer of pieces with a blank in front, and bytes."""
    pieces = [
        "<unk>",
        "\u2581Hello",
        "\u2581wor",
        "ld",
        "\u2581",
        *(f"<0x{n:02X}>" for n in range(256)),
    ]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def test_tokens_of_pieces_and_of_bytes_say_what_they_are():
    vocabulary = Vocabulary(pieces_tokenizer().to_str())
    euro = [5 + byte for byte in "€".encode()]
    assert [vocabulary.data(number) for number in (1, 3, *euro)] == [
        b" Hello",
        b"ld",
        b"\xe2",
        b"\x82",
        b"\xac",
    ]


def test_an_answer_to_a_bare_prompt_keeps_the_blank_between_it_and_the_prompt():
    vocabulary = Vocabulary(pieces_tokenizer().to_str())
    after = vocabulary.detokenizer((), before=[1])
    assert "".join(map(after.feed, [2, 3])) == " world"
    fresh = vocabulary.detokenizer(())
    assert "".join(map(fresh.feed, [1, 2, 3])) == "Hello world"


@given(st.lists(st.integers(0, 260), max_size=12), st.lists(st.integers(0, 260), max_size=8))
@example(tokens=[243, 45, 68, 0, 225, 128, 123, 242, 4, 4], before=[69])
def test_bytes_that_are_no_text_do_not_end_an_answer(tokens, before):
    after = Vocabulary(pieces_tokenizer().to_str()).detokenizer((), before)
    assert "".join(map(after.feed, [*tokens, 1])).endswith("Hello")


def test_special_tokens_say_their_own_text():
    vocabulary = Vocabulary(TOKENIZER)
    assert [vocabulary.data(number).decode() for number in range(len(SPECIAL))] == SPECIAL


@pytest.mark.parametrize("kind", [False, True])
def test_llguidance_takes_for_special_what_we_say_it_does(kind):
    """What stands in a grammar as a token, and not as its text."""
    from llguidance import LLMatcher, LLTokenizer
    from tokenizers import AddedToken

    names = ["<a>", "</a>", "[A]", "word", "<a", "a>", "<|a|>"]
    backend = Tokenizer.from_str(TOKENIZER)
    if kind:
        backend.add_special_tokens(names)
    else:
        backend.add_tokens([AddedToken(name, normalized=False) for name in names])
    vocabulary, tokens = Vocabulary(backend.to_str()), LLTokenizer(backend.to_str(), eos_token=[0])
    for name in names:
        any_text = LLMatcher(tokens, r"start: /(.|\n)*/", log_level=0)
        is_text = any_text.consume_token(backend.token_to_id(name))
        assert is_text is (name not in vocabulary.marks), name
