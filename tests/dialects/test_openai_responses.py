"""OpenAI Responses: what is read, what is refused, and the order of everything that is sent."""

from __future__ import annotations

import json
import string
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cortex.chat.events import (
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import (
    Image,
    JsonFormat,
    Message,
    Reasoning,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from cortex.dialects.openai_responses.dialect import OpenAIResponses
from cortex.dialects.sse import SseReader
from cortex.errors import ContextLengthExceeded, InvalidRequest, UpstreamDied, UpstreamFailed
from cortex.testing import dialect_contract

DIALECT = OpenAIResponses()
USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
START = Started(prompt_tokens=7)
TOOLS = [
    {"type": "function", "name": "look"},
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "box", "tools": [{"type": "function", "name": "open"}]},
]


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "input": "hi", **more}).encode()


def parse(**more: object):
    return DIALECT.parse_request(body(**more), "r1")


def turns(*items: object) -> tuple[Message, ...]:
    return parse(input=list(items)).messages


def events_of(data: bytes) -> list[dict]:
    """Return what a stream says; each event bears the name of its type."""
    found = []
    for name, said in SseReader().feed(data):
        found.append(json.loads(said))
        assert found[-1]["type"] == name
    return found


def streamed(*events, **more: object) -> list[dict]:
    encoder = DIALECT.encoder(parse(stream=True, **more), 1)
    return events_of(b"".join(encoder.feed(event) for event in events))


def whole(*events, **more: object) -> dict:
    encoder = DIALECT.encoder(parse(**more), 1)
    return json.loads(b"".join(encoder.feed(event) for event in events))


def done(reason="stop"):
    return Finished(reason=reason, usage=USAGE)


def test_it_keeps_the_contract():
    dialect_contract(OpenAIResponses(), body(), body(stream=True))


# Requests.


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "user", "content": [{"type": "text", "text": "hi"}], "id": "x"},
    ],
)
def test_a_message_reads_the_same_in_all_its_forms(item):
    assert turns(item) == parse(input="hi").messages == (Message(role="user", parts=(Text("hi"),)),)


def test_what_an_assistant_did_in_a_row_is_one_turn():
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}'}
    thought = {"type": "reasoning", "summary": [], "content": [reasoning_text("hm")]}
    said = {"type": "message", "role": "assistant", "content": [output_text("so")]}
    result = {"type": "function_call_output", "call_id": "c1", "output": "found"}

    assert turns({"role": "user", "content": "go"}, thought, said, call, result, said) == (
        Message(role="user", parts=(Text("go"),)),
        Message(
            role="assistant",
            parts=(
                Thinking("hm"),
                Text("so"),
                ToolCall(id="c1", name="look", arguments='{"a":1}'),
            ),
        ),
        Message(role="tool", parts=(ToolResult(call_id="c1", parts=(Text("found"),)),)),
        Message(role="assistant", parts=(Text("so"),)),
    )


def reasoning_text(text):
    return {"type": "reasoning_text", "text": text}


def output_text(text):
    return {"type": "output_text", "text": text, "annotations": []}


def test_instructions_come_first_and_developers_stay_where_they_are():
    chat = parse(instructions="be kind", input=[{"role": "developer", "content": "be brief"}])
    assert [(m.role, m.text) for m in chat.messages] == [
        ("system", "be kind"),
        ("system", "be brief"),
    ]


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("", ()),
        ("text", (Text("text"),)),
        ([{"type": "input_text", "text": "a"}], (Text("a"),)),
        (
            [{"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"}],
            (Image(url="data:image/png;base64,AA==", detail="high"),),
        ),
    ],
)
def test_a_result_is_text_or_content(output, parts):
    for kind in ("function_call_output", "custom_tool_call_output"):
        [turn] = turns({"type": kind, "call_id": "c1", "output": output})
        assert turn == Message(role="tool", parts=(ToolResult(call_id="c1", parts=parts),))


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"summary": [], "content": [reasoning_text("a"), reasoning_text("b")]}, "a\nb"),
        ({"summary": [{"type": "summary_text", "text": "short"}]}, "short"),
        ({"summary": [], "encrypted_content": "Y29ydGV4aG0="}, "hm"),
        ({"summary": [], "content": [reasoning_text("a")], "encrypted_content": "x"}, "a"),
    ],
)
def test_a_thought_comes_back_however_it_was_kept(item, thought):
    [turn] = turns({"type": "reasoning", "id": "rs_1", **item})
    assert turn == Message(role="assistant", parts=(Thinking(thought),))


def test_a_thought_another_server_packed_is_left_out():
    said = {"role": "assistant", "content": "so"}
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAA=="}
    assert turns(foreign, said) == (Message(role="assistant", parts=(Text("so"),)),)


def test_a_text_file_is_read_and_bears_its_name():
    file = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}
    [turn] = turns({"role": "user", "content": [file, {"type": "input_text", "text": "?"}]})
    assert turn.parts == (Text("a.txt:\nhi"), Text("?"))


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "local_shell_call", "id": "x", "action": {}}, "input[1].type"),
        ({"type": "computer_call_output", "output": {"a": 1}}, "input[1].type"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1].id"),
        ({"id": "msg_1"}, "input[1].id"),
        ({"role": "wizard", "content": "x"}, "input[1].role"),
        ({"role": "user"}, "input[1].content"),
        ({"content": "x"}, "input[1].role"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
        ({"role": "user", "content": [5]}, "input[1].content[0]"),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]},
            "input[1].content[0].file_id",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]},
            "input[1].content[0].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_data": "JVBERi0AAA=="}]},
            "input[1].content[0].file_data",
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]},
            "input[1].content[0].file_url",
        ),
        ({"type": "function_call", "name": "look"}, "input[1].call_id"),
        ({"type": "function_call", "call_id": "c"}, "input[1].name"),
        ({"type": "function_call_output", "call_id": "c", "output": 5}, "input[1].output"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": 5}]},
            "input[1].output[0].type",
        ),
        ({"type": "custom_tool_call", "call_id": "c", "name": "p", "input": 5}, "input[1].input"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(item, param):
    with pytest.raises(InvalidRequest) as caught:
        turns({"role": "user", "content": "hi"}, item)
    assert caught.value.param == param
    assert str(caught.value).startswith(param)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{}]}]}, "tools[0].tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}, "tools": TOOLS}, "tool_choice.type"),
        (
            {"tool_choice": {"type": "function", "name": "open"}, "tools": TOOLS},
            "tool_choice.name",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_cannot_be_honoured_is_named(wrong, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(**wrong)
    assert caught.value.param == param


def test_tools_of_all_kinds():
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
    chat = parse(
        tools=[
            {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True},
            {"type": "web_search"},
            {"type": "custom", "name": "patch", "description": "Patches.", "format": grammar},
            {"type": "namespace", "name": "box", "description": "A box.", "tools": TOOLS[:2]},
        ]
    )
    look, patch, box_look, box_patch = chat.tools
    assert look == Tool(name="look", parameters={"type": "object"}, strict=True)
    assert (patch.kind, patch.parameters["required"]) == ("custom", ["input"])
    assert patch.description == "Patches.\n\nThe input follows this lark grammar:\nstart: x"
    assert box_look == Tool(name="box__look", namespace="box")
    assert (box_patch.name, box_patch.kind) == ("box__patch", "custom")


@pytest.mark.parametrize(
    ("asked", "names", "choice"),
    [
        (None, ["look", "patch", "box__open"], ToolChoice()),
        ("none", ["look", "patch", "box__open"], ToolChoice(mode="none")),
        ("required", ["look", "patch", "box__open"], ToolChoice(mode="required")),
        (
            {"type": "custom", "name": "patch"},
            ["look", "patch", "box__open"],
            ToolChoice(mode="required", name="patch"),
        ),
        (
            {"type": "function", "name": "open", "namespace": "box"},
            ["look", "patch", "box__open"],
            ToolChoice(mode="required", name="box__open"),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "look"}, {"type": "web_search"}],
            },
            ["look"],
            ToolChoice(mode="required"),
        ),
    ],
)
def test_which_tools_to_call(asked, names, choice):
    chat = parse(tools=TOOLS, tool_choice=asked, parallel_tool_calls=None)
    assert ([tool.name for tool in chat.tools], chat.tool_choice) == (names, choice)


def test_the_rest_of_a_request():
    chat = parse(
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=9,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        parallel_tool_calls=False,
        reasoning={"effort": "xhigh", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "a", "schema": {}}, "verbosity": "low"},
        stream=True,
        truncation="auto",
        background=False,
    )
    assert chat.sampling == Sampling(temperature=0.5, top_p=0.9, max_tokens=9, logprobs=2)
    assert chat.reasoning == Reasoning(enabled=True, effort="high")
    assert chat.format == JsonFormat(schema={}, name="a")
    assert (chat.stream, chat.tool_choice.parallel) == (True, False)
    assert parse(include=["message.output_text.logprobs"]).sampling.logprobs == 0
    assert parse(text={"format": {"type": "json_object"}}).format == JsonFormat()


# Answers.


def test_an_answer_repeats_its_request_on_one_line():
    asked = {
        "instructions": "be",
        "metadata": {"a": "b"},
        "tools": TOOLS,
        "tool_choice": "auto",
        "previous_response_id": "resp_0",
        "store": False,
        "user": "me",
        "temperature": 0.5,
    }
    raw = json.dumps({"model": "m", "input": "hi", "stream": True, **asked}, indent=2).encode()
    encoder = DIALECT.encoder(DIALECT.parse_request(raw, "r1"), 1)
    for event in events_of(encoder.feed(START) + encoder.feed(done())):
        assert asked.items() <= event["response"].items()


def test_null_is_as_good_as_absent():
    nothing = dict.fromkeys(("metadata", "tools", "text", "store", "top_logprobs", "truncation"))
    assert whole(START, done(), **nothing) == whole(START, done())


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_how_an_answer_ended(reason, status, details):
    response = whole(START, TextDelta("a"), done(reason))
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["output"][0]["status"] == status
    last = streamed(START, TextDelta("a"), done(reason))[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"] == response


def test_usage():
    usage = whole(START, done())["usage"]
    assert usage.pop("cortex")
    assert usage == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 10,
    }


def test_logprobs_come_with_the_text():
    token = TokenLogprob(
        token="a", logprob=-1.0, data=b"a", top=(TokenLogprob(token="b", logprob=-2.0, data=b"b"),)
    )
    rendered = {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
    }
    response = whole(START, TextDelta("a", (token,)), done(), top_logprobs=1)
    assert response["output"][0]["content"][0]["logprobs"] == [rendered]
    deltas = streamed(START, TextDelta("a", (token,)), done(), top_logprobs=1)
    assert [e["logprobs"] for e in deltas if e["type"].endswith("text.delta")] == [[rendered]]


def test_a_thought_is_packed_for_who_asks():
    [item] = whole(START, ThinkingDelta("hm"), done())["output"]
    assert "encrypted_content" not in item
    asked = {"include": ["reasoning.encrypted_content"]}
    [item] = whole(START, ThinkingDelta("hm"), done(), **asked)["output"]
    packed = {"type": "reasoning", "id": "x", "summary": [], "content": None}
    [turn] = turns({**packed, "encrypted_content": item["encrypted_content"]})
    assert turn.parts == (Thinking("hm"),)


def test_calls_come_back_as_the_client_knows_them():
    response = whole(
        START,
        ToolCallStarted(index=0, id="c0", name="look"),
        ToolCallDelta(index=0, arguments='{"a": 1}'),
        ToolCallStarted(index=1, id="c1", name="box__open"),
        ToolCallStarted(index=2, id="c2", name="patch"),
        ToolCallDelta(index=2, arguments='{"input": "*** Begin\\n"}'),
        ToolCallStarted(index=3, id="c3", name="patch"),
        ToolCallDelta(index=3, arguments='{"inp'),
        done("length"),
        tools=TOOLS,
    )
    look, box, patch, broken = response["output"]
    assert (look["call_id"], look["name"], look["arguments"]) == ("c0", "look", '{"a": 1}')
    assert (box["namespace"], box["name"], box["arguments"]) == ("box", "open", "{}")
    assert (patch["type"], patch["input"]) == ("custom_tool_call", "*** Begin\n")
    assert (broken["input"], broken["status"]) == ('{"inp', "incomplete")
    assert turns(look, box, patch)[0].parts == (
        ToolCall(id="c0", name="look", arguments='{"a": 1}'),
        ToolCall(id="c1", name="box__open", arguments="{}"),
        ToolCall(id="c2", name="patch", arguments='{"input":"*** Begin\\n"}'),
    )


def test_a_failure_is_the_last_event_and_has_what_was_whole():
    died = Failed(UpstreamDied("gone"))
    last = streamed(START, ThinkingDelta("hm"), TextDelta("half"), died)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert [item["type"] for item in last["response"]["output"]] == ["reasoning"]


def test_a_failure_before_the_beginning_has_a_beginning():
    kinds = [event["type"] for event in streamed(Failed(UpstreamDied("gone")))]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]


def test_a_stream_that_breaks_says_so_in_every_way_clients_look_for():
    both = SseReader().feed(DIALECT.render_stream_error(UpstreamDied("gone"), "r1"))
    event, failed = (json.loads(said) for _, said in both)
    assert [name for name, _ in both] == [event["type"], failed["type"]]
    assert (event["type"], failed["type"]) == ("error", "response.failed")
    assert event["message"] == event["error"]["message"] == "gone"
    assert event["code"] == "upstream_died"
    assert failed["response"]["id"] == streamed(Started(prompt_tokens=1))[0]["response"]["id"]
    assert failed["response"]["error"] == {"code": "server_error", "message": "gone"}


def test_the_room_that_is_missing_has_the_code_agents_look_for():
    status, said = DIALECT.render_error(ContextLengthExceeded("too long"))
    assert (status, json.loads(said)["error"]["code"]) == (400, "context_length_exceeded")


class Stream(RuleBasedStateMachine):
    """Whatever a model says, its stream can be followed by a client that trusts no one."""

    def __init__(self):
        super().__init__()
        self.encoder = DIALECT.encoder(parse(stream=True, tools=TOOLS), 1)
        self.calls = 0
        self.open: dict | None = None  # the item that is, with what came of it
        self.items: list[dict] = []
        self.numbers = 0
        self.state = "new"
        self.take(self.encoder.feed(START))

    @precondition(lambda self: self.state == "in_progress")
    @rule(text=st.text(min_size=1))
    def say(self, text):
        self.take(self.encoder.feed(TextDelta(text)))

    @precondition(lambda self: self.state == "in_progress" and not self.items and not self.calls)
    @rule(text=st.text(min_size=1))
    def think(self, text):
        self.take(self.encoder.feed(ThinkingDelta(text)))

    @precondition(lambda self: self.state == "in_progress")
    @rule(
        name=st.sampled_from(["look", "patch", "box__open", "unheard"]),
        pieces=st.lists(st.text(min_size=1)),
    )
    def call(self, name, pieces):
        index, self.calls = self.calls, self.calls + 1
        self.take(self.encoder.feed(ToolCallStarted(index=index, id=f"c{index}", name=name)))
        for piece in pieces:
            self.take(self.encoder.feed(ToolCallDelta(index=index, arguments=piece)))

    @precondition(lambda self: self.state == "in_progress")
    @rule(reason=st.sampled_from(["stop", "length", "content_filter"]))
    def finish(self, reason):
        self.take(self.encoder.feed(done(reason)))

    @precondition(lambda self: self.state == "in_progress")
    @rule()
    def fail(self):
        self.take(self.encoder.feed(Failed(UpstreamDied("gone"))))

    @rule()
    def wait(self):
        assert events_of(self.encoder.keep_alive()) == []

    @invariant()
    def an_item_is_open_only_while_the_answer_goes_on(self):
        assert self.open is None or self.state in ("in_progress", "failed")

    def take(self, data: bytes) -> None:
        for event in events_of(data):
            assert event["sequence_number"] == self.numbers
            self.numbers += 1
            getattr(self, "on_" + event["type"].removeprefix("response.").replace(".", "_"))(event)

    def moves(self, event, before, after):
        assert (self.state, event["response"]["id"]) == (before, "resp_r1")
        self.state = after

    def on_created(self, event):
        self.moves(event, "new", "created")

    def on_in_progress(self, event):
        self.moves(event, "created", "in_progress")
        assert event["response"]["output"] == []

    def on_completed(self, event):
        self.ends(event, "completed")

    def on_incomplete(self, event):
        self.ends(event, "incomplete")

    def on_failed(self, event):
        self.ends(event, "failed")

    def ends(self, event, state):
        self.moves(event, "in_progress", state)
        assert event["response"]["status"] == state
        assert event["response"]["output"] == self.items
        assert self.open is None or state == "failed"

    def on_output_item_added(self, event):
        assert self.open is None
        assert event["output_index"] == len(self.items)
        assert event["item"]["status"] == "in_progress"
        self.open = {"item": event["item"], "came": "", "has_part": False, "is_whole": False}

    def on_content_part_added(self, event):
        kinds = {"message": "output_text", "reasoning": "reasoning_text"}
        assert kinds[self.here(event)["type"]] == event["part"]["type"]
        assert event["part"]["text"] == ""
        self.open["has_part"] = True

    def on_content_part_done(self, event):
        self.here(event)
        assert self.open["has_part"]
        assert self.open["is_whole"]
        assert event["part"]["text"] == self.open["came"]
        self.open["has_part"] = False

    def on_output_text_delta(self, event):
        assert self.open["has_part"]
        self.grows(event, "message")

    def on_output_text_done(self, event):
        self.is_whole(event, event["text"])

    def on_reasoning_text_delta(self, event):
        assert self.open["has_part"]
        self.grows(event, "reasoning")

    def on_reasoning_text_done(self, event):
        self.is_whole(event, event["text"])

    def on_function_call_arguments_delta(self, event):
        self.grows(event, "function_call")

    def on_function_call_arguments_done(self, event):
        assert event["name"] == self.open["item"]["name"]
        self.is_whole(event, event["arguments"])

    def on_custom_tool_call_input_delta(self, event):
        self.grows(event, "custom_tool_call")

    def on_custom_tool_call_input_done(self, event):
        self.is_whole(event, event["input"])

    def on_output_item_done(self, event):
        item = event["item"]
        assert self.open["is_whole"]
        assert not self.open["has_part"]
        assert event["output_index"] == len(self.items)
        for member in ("id", "type", "call_id", "name", "namespace"):
            assert item.get(member) == self.open["item"].get(member)
        assert item["id"] not in [other["id"] for other in self.items]
        assert self.open["came"] in json.dumps(item, ensure_ascii=False) or json.dumps(
            self.open["came"], ensure_ascii=False
        ) in json.dumps(item, ensure_ascii=False)
        self.items.append(item)
        self.open = None

    def here(self, event):
        assert self.open is not None
        assert event["item_id"] == self.open["item"]["id"]
        assert event["output_index"] == len(self.items)
        return self.open["item"]

    def grows(self, event, kind):
        assert self.here(event)["type"] == kind
        assert not self.open["is_whole"]
        self.open["came"] += event["delta"]

    def is_whole(self, event, text):
        self.here(event)
        assert text == self.open["came"]
        self.open["is_whole"] = True


Stream.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
test_any_stream_can_be_followed = Stream.TestCase


# The client half.


names = st.text(string.ascii_lowercase, min_size=1, max_size=8)
texts = st.text(min_size=1)
top = st.builds(TokenLogprob, token=texts, logprob=st.floats(-9, 0), data=st.binary(max_size=4))
logprobs = st.lists(
    st.builds(
        TokenLogprob,
        token=texts,
        logprob=st.floats(-9, 0),
        data=st.binary(max_size=4),
        top=st.lists(top, max_size=2).map(tuple),
    ),
    max_size=2,
).map(tuple)
usages = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 99),
    completion_tokens=st.integers(0, 99),
    cached_tokens=st.integers(0, 99),
    reasoning_tokens=st.integers(0, 99),
)


@st.composite
def answers(draw):
    """Draw the events of an answer."""
    events = [START]
    events += [ThinkingDelta(text) for text in draw(st.lists(texts, max_size=2))]
    calls = 0
    for is_call in draw(st.lists(st.booleans(), max_size=4)):
        if is_call:
            events.append(ToolCallStarted(index=calls, id=f"c{calls}", name=draw(names)))
            pieces = draw(st.lists(texts, min_size=1, max_size=2))
            events += [ToolCallDelta(index=calls, arguments=piece) for piece in pieces]
            calls += 1
        else:
            events.append(TextDelta(draw(texts), draw(logprobs)))
    usage = draw(usages)
    ended = draw(st.sampled_from(["stop", "length", "content_filter", "failed"]))
    if ended == "failed":
        return [*events, Failed(UpstreamFailed("gone"))]
    reason = "tool_calls" if calls and ended == "stop" else ended
    return [*events, Finished(reason=reason, usage=usage)]


def said(pairs):
    return [
        (choice, str(event.error) if isinstance(event, Failed) else event)
        for choice, event in pairs
    ]


@given(events=answers(), cuts=st.lists(st.integers(0, 5000)))
def test_any_answer_that_is_streamed_cut_anywhere_and_read_is_the_same(events, cuts):
    """Only the prompt's tokens are not known at the start."""
    chat = parse(stream=True, top_logprobs=1)
    encoder = DIALECT.encoder(chat, 1)
    data = b"".join(encoder.feed(event) + encoder.keep_alive() for event in events)
    decoder = DIALECT.client.decoder(chat)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    decoded = [pair for begin, end in pairwise(places) for pair in decoder.feed(data[begin:end])]
    expected = [(0, event) for event in [Started(prompt_tokens=0), *events[1:]]]
    assert said([*decoded, *decoder.end()]) == said(expected)


def test_an_answer_that_breaks_off_is_a_failure_once():
    chat = parse(stream=True)
    decoder = DIALECT.client.decoder(chat)
    decoder.feed(DIALECT.encoder(chat, 1).feed(START))
    [(_, event)] = decoder.end()
    assert isinstance(event.error, UpstreamDied)
    assert decoder.end() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'data: {"type":"error","message":"no","code":"x"}\n\n', "no"),
        (b'event: error\ndata: {"type":"error","error":{"message":"no"}}\n\n', "no"),
        (b"data: nonsense\n\n", "the server sent what is no event of a response"),
    ],
)
def test_an_error_of_a_server_is_a_failure(data, message):
    decoder = DIALECT.client.decoder(parse(stream=True))
    [(_, event)] = decoder.feed(data)
    assert str(event.error) == message
    assert decoder.end() == []


def test_a_summary_is_a_thought_where_there_is_no_other():
    summary = b'data: {"type":"response.reasoning_summary_text.delta","delta":"s"}\n\n'
    full = b'data: {"type":"response.reasoning_text.delta","delta":"f"}\n\n'
    assert read(summary) == [BEGAN, ThinkingDelta("s")]
    assert read(full + summary) == [BEGAN, ThinkingDelta("f")]


BEGAN = Started(prompt_tokens=0)
CREATED = {"type": "response.created"}
ENDED = {"type": "response.completed", "response": {}}
TEXT = {"type": "response.output_text.delta", "output_index": 0, "delta": "hi"}


def read(data: bytes, **more: object) -> list[object]:
    """Return what a server's stream says, its end apart."""
    return [event for _, event in DIALECT.client.decoder(parse(**more)).feed(data)]


def sent(*events: object, **more: object) -> list[object]:
    said = (b"data: " + json.dumps(event).encode() + b"\n\n" for event in (*events, ENDED))
    return [event for event in read(b"".join(said), **more) if not isinstance(event, Finished)]


def called(place: int, **more: object) -> list[dict]:
    """Return how a server says a call; *more* are its pieces, and the whole at its end."""
    item = {"type": "function_call", "call_id": f"c{place}", "name": "f"}
    kind = "response.function_call_arguments."
    return [
        {"type": "response.output_item.added", "output_index": place, "item": item},
        *(
            {"type": kind + name, "output_index": place, "delta": said, "arguments": said}
            for name, said in more.items()
        ),
    ]


def begun(index: int) -> ToolCallStarted:
    return ToolCallStarted(index=index, id=f"c{index}", name="f")


@pytest.mark.parametrize("begins", [[], [CREATED], [CREATED, CREATED]])
def test_an_answer_begins_once_however_its_server_does(begins):
    assert sent(*begins, TEXT) == [BEGAN, TextDelta("hi")]


def test_events_that_are_not_read_may_look_like_anything():
    strange = {"type": "response.mcp_call.delta", "delta": {"a": 1}, "item": {"type": None}}
    assert sent(CREATED, strange, {}, TEXT) == [BEGAN, TextDelta("hi")]


@pytest.mark.parametrize(
    "junk",
    [b'{"type":"\xff"}', b'{"x":' + b"[" * 100_000, b"[1]"],
    ids=["no UTF-8", "too deep", "no object"],
)
def test_what_is_no_event_is_a_failure(junk):
    [failed] = read(b"data: " + junk + b"\n\n")
    assert isinstance(failed.error, UpstreamFailed)


def test_what_an_item_says_only_at_its_end_is_read():
    text = {"type": "response.output_text.done", "output_index": 0, "text": "hi"}
    one = ToolCallDelta(index=0, arguments="[1]")

    assert sent(text) == sent(TEXT, text) == [BEGAN, TextDelta("hi")]
    assert sent(*called(0, done="[1]")) == [BEGAN, begun(0), one]
    assert sent(*called(0, delta="[1]", done="[1]")) == [BEGAN, begun(0), one]


def test_of_one_call_at_a_time_the_first_is_read():
    first, second = called(0, delta="[1]"), called(1, delta="[2]")
    one, two = (ToolCallDelta(index=n, arguments=f"[{n + 1}]") for n in (0, 1))

    assert sent(*first, *second) == [BEGAN, begun(0), one, begun(1), two]
    assert sent(*first, *second, parallel_tool_calls=False) == [BEGAN, begun(0), one]


def test_arguments_that_come_late_are_not_anothers():
    (first, piece), (second, done) = called(0, delta="[1]"), called(1, done="{}")
    *_, failed = sent(first, second, piece)
    ended = {**done, "output_index": 0}

    assert failed.error.message == "the server mixes up what its calls say"
    assert sent(first, second, done, ended) == [BEGAN, begun(0), begun(1)]


parts = st.one_of(
    st.builds(Text, texts),
    st.builds(Image, url=st.just("https://x/y.png"), detail=st.sampled_from(["low", "auto"])),
)
results = st.builds(ToolResult, call_id=names, parts=st.lists(parts, max_size=2).map(tuple))
own_parts = st.one_of(
    st.builds(Text, texts),
    st.builds(Thinking, texts),
    st.builds(ToolCall, id=names, name=names, arguments=texts),
)
messages = st.one_of(
    st.builds(
        Message,
        role=st.sampled_from(["user", "system"]),
        parts=st.lists(parts, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(
        Message,
        role=st.just("assistant"),
        parts=st.lists(own_parts, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(Message, role=st.just("tool"), parts=st.tuples(results)),
)


@st.composite
def requests(draw):
    """Draw a request, as one of ours could be read."""
    tools = draw(
        st.lists(
            st.builds(Tool, name=names, description=st.text(), strict=st.booleans()),
            max_size=2,
            unique_by=lambda tool: tool.name,
        ).map(tuple)
    )
    choices = [ToolChoice(), ToolChoice(mode="none"), ToolChoice(parallel=False)]
    choices += [ToolChoice(mode="required", name=tool.name) for tool in tools]
    schema = JsonFormat(schema={"type": "object"}, name="a", description="d", strict=False)
    return attrs.evolve(
        parse(stream=True),
        messages=draw(st.lists(messages, min_size=1, max_size=4).map(tuple)),
        sampling=draw(
            st.builds(
                Sampling,
                temperature=st.none() | st.floats(0, 2),
                top_p=st.none() | st.floats(0.1, 1),
                max_tokens=st.none() | st.integers(1, 99),
                logprobs=st.none() | st.integers(0, 20),
            )
        ),
        tools=tools,
        tool_choice=draw(st.sampled_from(choices)),
        format=draw(st.sampled_from([None, JsonFormat(), schema])),
        reasoning=draw(
            st.sampled_from(
                [
                    Reasoning(),
                    Reasoning(enabled=False, effort="none"),
                    Reasoning(enabled=True, effort="low"),
                ]
            )
        ),
    )


def merged(turns):
    """Return turns as they are read: an assistant's in a row are one, text results are one."""
    found = []
    for turn in turns:
        parts = turn.parts
        if turn.role == "tool" and all(isinstance(part, Text) for part in parts[0].parts):
            text = (Text(parts[0].text),) if parts[0].text else ()
            parts = (attrs.evolve(parts[0], parts=text),)
        if found and found[-1].role == turn.role == "assistant":
            parts = (*found.pop().parts, *parts)
        found.append(attrs.evolve(turn, parts=parts))
    return tuple(found)


@given(chat=requests())
def test_a_request_that_is_sent_on_and_read_again_is_the_same(chat):
    again = DIALECT.parse_request(DIALECT.client.render_request(chat), "r1")
    expected = attrs.evolve(chat, messages=merged(chat.messages))
    assert attrs.evolve(again, private=None) == attrs.evolve(expected, private=None)


@pytest.mark.parametrize(
    "asked",
    [
        {"prompts": ("a",), "messages": ()},
        {"n": 2},
        {"template_args": {"a": 1}},
        {"sampling": Sampling(stop=("x",))},
        {"sampling": Sampling(top_k=5)},
        {"sampling": Sampling(min_p=0.1)},
        {"sampling": Sampling(repetition_penalty=1.1)},
    ],
)
def test_what_the_dialect_cannot_say_is_refused(asked):
    with pytest.raises(InvalidRequest) as caught:
        DIALECT.client.render_request(attrs.evolve(parse(), **asked))
    asked = asked.get("sampling", {"prompts": "prompt", "template_args": "chat_template_kwargs"})
    assert caught.value.param in str(asked) or caught.value.param == "n"


@pytest.mark.parametrize("neutral", [{"top_k": 0}, {"min_p": 0.0}, {"repetition_penalty": 1.0}])
def test_what_asks_for_nothing_is_left_out(neutral):
    asked = attrs.evolve(parse(), sampling=Sampling(**neutral))
    assert DIALECT.client.render_request(asked) == DIALECT.client.render_request(parse())


def test_an_error_in_a_result_is_one_in_words():
    result = ToolResult(call_id="c", parts=(Text("no"),), is_error=True)
    chat = attrs.evolve(parse(), messages=(Message(role="tool", parts=(result,)),))
    [item] = json.loads(DIALECT.client.render_request(chat))["input"]
    assert item["output"] == "[tool error] no"


# Whatever comes.

KEYS = ("type", "role", "content", "id", "call_id", "name", "output", "input", "tools", "summary")
WORDS = (
    *("message", "function_call", "function_call_output", "custom_tool_call", "reasoning"),
    *("item_reference", "user", "assistant", "input_text", "input_image", "input_file"),
    *("namespace", "function", "custom", "allowed_tools", "json_schema"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
        | st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional={"text": inner})
    ),
    max_leaves=12,
)


@given(
    field=st.sampled_from(["input", "tools", "tool_choice", "text", "metadata", "include"]),
    value=anything,
)
def test_whatever_comes_is_refused_or_read_and_gone_on_from(field, value):
    said = body(**{field: value})
    try:
        DIALECT.ties(said)
        DIALECT.join(said, {})
        chat = DIALECT.parse_request(said, "r1")
    except InvalidRequest:
        return
    encoder = DIALECT.encoder(chat, 1)
    reply = encoder.feed(START) + encoder.feed(TextDelta("a")) + encoder.feed(done())
    reply_id, record = DIALECT.record(said, reply)
    assert json.loads(DIALECT.render_reply(record, {}))["id"] == reply_id == "resp_r1"
    assert DIALECT.render_inputs(record, {})
    went_on = DIALECT.join(body(previous_response_id=reply_id), {reply_id: record})
    *before, _ = DIALECT.parse_request(went_on, "r2").messages
    assert before[-1].parts[-1] == Text("a")
