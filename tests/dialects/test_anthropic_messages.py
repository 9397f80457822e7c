"""Anthropic Messages, the requests: what is read, what is refused, and how errors look."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.chat.request import (
    ChatRequest,
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
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.signature import sign
from cortex.errors import (
    ContextLengthExceeded,
    CortexError,
    DeviceUnavailable,
    InsufficientVram,
    InvalidRequest,
    LoadFailed,
    MethodNotAllowed,
    ModelLoading,
    ModelNotFound,
    NoNodeAvailable,
    NotAuthenticated,
    PermissionDenied,
    QueueFull,
    RequestTooLarge,
    RouteNotFound,
    ToolsUnsupported,
    UnsupportedParameter,
    UpstreamDied,
    UpstreamUnreachable,
)
from cortex.fleet.model import ModelCard
from cortex.testing import dialect_contract

DIALECT = AnthropicMessages()
HI = [{"role": "user", "content": "hi"}]
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PICTURE = Image(url="data:image/png;base64,iVBORw0KGgo=")
SCHEMA = {"$schema": "x", "type": "object", "properties": {"a": {}}, "additionalProperties": False}
NOW = {"name": "now", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {"a": 1}}
BILLING = "x-anthropic-billing-header: cc_version=2.1.328; cch=00000;"


def body(**more: object) -> bytes:
    said = {"model": "m", "max_tokens": 64, "messages": HI, **more}
    return json.dumps(said).encode()


def parse(**more: object) -> ChatRequest:
    return DIALECT.parse_request(body(**more), "r1")


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def result(content: object = None, **more: object) -> dict[str, object]:
    said = {"type": "tool_result", "tool_use_id": "toolu_1", **more}
    return said if content is None else {**said, "content": content}


def user(*blocks: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(blocks)}]


def test_it_keeps_the_contract():
    dialect_contract(AnthropicMessages(), body(), body(stream=True))


def test_a_minimal_request():
    assert parse() == ChatRequest(
        id="r1",
        model="m",
        messages=(Message(role="user", parts=(Text("hi"),)),),
        sampling=Sampling(max_tokens=64),
        private=False,
    )


@pytest.mark.parametrize(
    ("system", "read"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("be brief", ["be brief"]),
        ([text("be brief")], ["be brief"]),
        ([text("be"), {**text("brief"), "cache_control": {"type": "ephemeral"}}], ["be\nbrief"]),
        ([text(BILLING), text("be"), text("brief")], ["be\nbrief"]),
        ([text(BILLING)], []),
        (f"{BILLING}\nbe brief", ["be brief"]),
        (f"be brief\n{BILLING}", [f"be brief\n{BILLING}"]),
    ],
)
def test_instructions_are_read(system, read):
    *turns, _ = parse(system=system).messages

    assert [(turn.role, turn.text) for turn in turns] == [("system", said) for said in read]


def test_instructions_in_the_conversation_stay_where_they_are():
    turns = [*HI, {"role": "system", "content": [text("be"), text("brief")]}, *HI]
    replayed = [*HI, {"role": "system", "content": "be\nbrief"}, *HI]
    read = parse(system="You are.", messages=turns).messages

    assert [turn.role for turn in read] == ["system", "user", "system", "user"]
    assert read[2].text == "be\nbrief"
    assert parse(system="You are.", messages=replayed).messages == read


@pytest.mark.parametrize(
    "content",
    [
        "be\nbrief",
        [text("be\nbrief")],
        [text("be"), text("brief")],
        [text("be"), text(""), {**text("brief"), "cache_control": {"type": "ephemeral"}}],
    ],
)
def test_a_text_reads_the_same_however_it_is_split(content):
    [turn] = parse(messages=[{"role": "user", "content": content}]).messages

    assert turn == Message(role="user", parts=(Text("be\nbrief"),))


def test_adjacent_turns_of_a_role_are_one():
    turns = [*HI, *HI, {"role": "assistant", "content": [text("a")]}]
    turns += [{"role": "assistant", "content": [text("b"), CALL]}, *user(result("1")), *HI]
    read = parse(messages=turns).messages

    assert read == (
        Message(role="user", parts=(Text("hi\nhi"),)),
        Message(
            role="assistant",
            parts=(
                Text("ab"),
                ToolCall(id="toolu_1", name="now", arguments='{"a":1}'),
            ),
        ),
        Message(role="tool", parts=(ToolResult(call_id="toolu_1", parts=(Text("1"),)),)),
        Message(role="user", parts=(Text("hi"),)),
    )


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"type": "image", "source": PNG}, (PICTURE,)),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
            (Image(url="https://a/b.png"),),
        ),
        (
            {
                "type": "document",
                "title": "Faust",
                "context": "a play",
                "citations": {"enabled": False},
                "source": {"type": "text", "media_type": "text/plain", "data": "Habe nun"},
            },
            (Text("Faust\na play\nHabe nun"),),
        ),
        ({"type": "document", "source": {"type": "content", "content": "ach"}}, (Text("ach"),)),
        (
            {
                "type": "document",
                "source": {
                    "type": "content",
                    "content": [text("ach"), {"type": "image", "source": PNG}, text("!")],
                },
            },
            (Text("ach"), PICTURE, Text("!")),
        ),
        (
            {"type": "search_result", "title": "T", "source": "https://t", "content": [text("c")]},
            (Text("T\nhttps://t\nc"),),
        ),
        (text(""), ()),
    ],
)
def test_what_a_user_shows_is_read(block, parts):
    assert parse(messages=user(block)).messages == (Message(role="user", parts=parts),)
    [turn] = parse(messages=user(result([block]))).messages
    assert turn.parts == (ToolResult(call_id="toolu_1", parts=parts),)


@pytest.mark.parametrize(
    ("block", "read"),
    [
        (result(), ToolResult(call_id="toolu_1")),
        (result(""), ToolResult(call_id="toolu_1")),
        (result([]), ToolResult(call_id="toolu_1")),
        (result("12:00"), ToolResult(call_id="toolu_1", parts=(Text("12:00"),))),
        (
            result([text("a"), text("b")], is_error=True),
            ToolResult(call_id="toolu_1", parts=(Text("a\nb"),), is_error=True),
        ),
        (
            result([{"type": "tool_reference", "tool_name": "CronList"}]),
            ToolResult(call_id="toolu_1", parts=(Text("The tool CronList can be called now."),)),
        ),
    ],
)
def test_the_result_of_a_tool_is_read(block, read):
    assert parse(messages=user(block)).messages == (Message(role="tool", parts=(read,)),)


def test_results_come_before_the_rest_of_their_turn():
    blocks = [text("look"), result("1"), text("here"), result("2", tool_use_id="toolu_2")]
    read = parse(messages=user(*blocks)).messages

    assert [turn.role for turn in read] == ["tool", "tool", "user"]
    assert [turn.parts[0].call_id for turn in read[:2]] == ["toolu_1", "toolu_2"]
    assert read[2].text == "look\nhere"


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"type": "thinking", "thinking": "Hm", "signature": "EqQB"}, (Thinking("Hm"),)),
        ({"type": "thinking", "thinking": "Hm"}, (Thinking("Hm"),)),
        ({"type": "thinking", "thinking": "", "signature": sign("Hm")}, (Thinking("Hm"),)),
        ({"type": "thinking", "thinking": "Hm", "signature": sign("Hm")}, (Thinking("Hm"),)),
        ({"type": "thinking", "thinking": "", "signature": "EqQB"}, ()),
        ({"type": "redacted_thinking", "data": sign("Hm")}, (Thinking("Hm"),)),
        ({"type": "redacted_thinking", "data": "EqQB"}, ()),
        ({**CALL, "input": {}}, (ToolCall(id="toolu_1", name="now", arguments="{}"),)),
        ({**text("x"), "citations": None}, (Text("x"),)),
    ],
)
def test_what_the_model_said_is_read(block, parts):
    messages = [*HI, {"role": "assistant", "content": [block]}, *HI]

    assert parse(messages=messages).messages[1] == Message(role="assistant", parts=parts)


def test_the_order_of_what_the_model_said_stays():
    thought = {"type": "thinking", "thinking": "Hm", "signature": ""}
    blocks = [thought, text("a"), CALL, text("b")]
    read = parse(messages=[*HI, {"role": "assistant", "content": blocks}, *HI]).messages[1]

    assert [type(part) for part in read.parts] == [Thinking, Text, ToolCall, Text]


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"stop_sequences": ["x", "\n"]}, {"stop": ("x", "\n")}),
        ({"stop_sequences": []}, {}),
        ({"temperature": None, "stop_sequences": None}, {}),
        ({"max_tokens": 128_000}, {"max_tokens": 128_000}),
    ],
)
def test_sampling_is_read(asked, sampling):
    assert parse(**asked).sampling == Sampling(**{"max_tokens": 64, **sampling})


@pytest.mark.parametrize(
    ("thinking", "effort", "read", "is_withheld"),
    [
        (None, None, {}, False),
        ({"type": "disabled"}, None, {"enabled": False}, False),
        ({"type": "adaptive"}, None, {"enabled": True}, False),
        ({"type": "between_tools"}, None, {"enabled": True}, False),
        (
            {"type": "adaptive", "display": "omitted"},
            *("medium", {"enabled": True, "effort": "medium"}, True),
        ),
        (
            {"type": "enabled", "budget_tokens": 3072, "display": "summarized"},
            *(None, {"enabled": True, "budget_tokens": 3072}, False),
        ),
        (None, "low", {"effort": "low"}, False),
        (None, "xhigh", {"effort": "high"}, False),
        (None, "max", {"effort": "high"}, False),
    ],
)
def test_thinking_is_read(thinking, effort, read, is_withheld):
    asked = parse(thinking=thinking, output_config={"effort": effort})

    assert asked.reasoning == Reasoning(**read)
    assert asked.private == is_withheld


@pytest.mark.parametrize(
    "where",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)
def test_the_form_of_the_answer_is_read(where):
    assert parse(**where).format == JsonFormat(schema=SCHEMA)


def test_tools_are_read():
    tools = [
        NOW,
        {**NOW, "name": "b", "type": "custom", "description": "d", "strict": True},
        {**NOW, "name": "c", "type": None, "cache_control": {"type": "ephemeral"}},
    ]

    assert parse(tools=tools).tools == (
        Tool(name="now", parameters=SCHEMA),
        Tool(name="b", description="d", parameters=SCHEMA, strict=True),
        Tool(name="c", parameters=SCHEMA),
    )


def test_a_deferred_tool_is_hidden_until_it_is_found():
    search = {**NOW, "name": "ToolSearch"}
    deferred = [{**NOW, "name": name, "defer_loading": True} for name in ("CronList", "CronAdd")]
    tools = [search, *deferred]
    found = [{"type": "tool_reference", "tool_name": "CronList"}]
    call = {"role": "assistant", "content": [{**CALL, "name": "ToolSearch"}]}

    assert [tool.name for tool in parse(tools=tools).tools] == ["ToolSearch"]
    later = parse(tools=tools, messages=[*HI, call, *user(result(found)), *HI])
    assert [tool.name for tool in later.tools] == ["ToolSearch", "CronList"]


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        (None, {}),
        ({"type": "auto"}, {}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel": False}),
        ({"type": "any", "disable_parallel_tool_use": False}, {"mode": "required"}),
        ({"type": "none"}, {"mode": "none"}),
        (
            {"type": "tool", "name": "now", "disable_parallel_tool_use": True},
            {"mode": "required", "name": "now", "parallel": False},
        ),
    ],
)
def test_the_choice_of_a_tool_is_read(choice, read):
    assert parse(tools=[NOW], tool_choice=choice).tool_choice == ToolChoice(**read)


@pytest.mark.parametrize(
    "ignored",
    [
        {"metadata": {"user_id": '{"session_id": "x"}'}},
        {"metadata": None, "system": None, "tools": None, "thinking": None, "output_config": None},
        {"service_tier": "auto", "speed": "fast", "container": None, "inference_geo": "eu"},
        {"context_management": {"edits": [{"type": "clear_thinking"}]}, "diagnostics": {}},
        {"mcp_servers": [], "betas": ["x"], "cache_control": {"type": "ephemeral"}},
        {"something": {"new": [1, None]}},
    ],
)
def test_what_says_nothing_or_is_unknown_is_accepted(ignored):
    assert parse(**ignored) == parse()


def document(source: dict[str, str], **more: object) -> list[dict[str, object]]:
    return user({"type": "document", "source": source, **more})


def said(*blocks: object) -> list[dict[str, object]]:
    return [*HI, {"role": "assistant", "content": list(blocks)}, *HI]


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}


@pytest.mark.parametrize(
    ("asked", "param", "what"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools[0]", "'web_search_2025"),
        ({"tools": [NOW, {"type": "bash_20250124"}]}, "tools[1]", "'bash_20250124'"),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, "tools[0]", "'computer_toolset_2"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "not supported"),
        (
            {"messages": user(text("a"), {"type": "image", "source": {"type": "file"}})},
            *("messages[0].content[1]", "'file'"),
        ),
        ({"messages": document(PDF)}, "messages[0].content[0]", "'base64' (application/pdf)"),
        ({"messages": document({"type": "url"})}, "messages[0].content[0]", "'url'"),
        ({"messages": document({"type": "file"})}, "messages[0].content[0]", "'file'"),
        (
            {"messages": document({"type": "text", "data": "x"}, citations={"enabled": True})},
            *("messages[0].content[0].citations", "not supported"),
        ),
        ({"messages": said(CALL)[:2]}, "messages[1].content", "results"),
        ({"messages": said({"type": "server_tool_use"})}, "messages[1].content[0]", "'server_tool"),
        ({"messages": said({"type": "image", "source": PNG})}, "messages[1].content[0]", "'image'"),
        ({"messages": said(result("1"))}, "messages[1].content[0]", "'tool_result'"),
        ({"messages": user(CALL)}, "messages[0].content[0]", "'tool_use'"),
        ({"system": [{"type": "image", "source": PNG}]}, "system[0]", "'image'"),
        (
            {"messages": user(result([result("deep")]))},
            *("messages[0].content[0].content[0]", "'tool_result'"),
        ),
        (
            {"output_config": {"format": {"type": "grammar"}}},
            *("output_config.format.type", "'grammar'"),
        ),
    ],
)
def test_what_we_know_and_cannot_honour_is_refused_by_name(asked, param, what):
    with pytest.raises(UnsupportedParameter) as caught:
        parse(**asked)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.message.startswith(param)
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"stop_sequences": ["x"] * 257}, "stop_sequences"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [*HI, {"role": "user"}]}, "messages[1].content"),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text"),
        ({"messages": user({"type": "image"})}, "messages[0].content[0].source"),
        (
            {"messages": user({"type": "image", "source": {**PNG, "media_type": "text/html"}})},
            "messages[0].content[0].source.media_type",
        ),
        (
            {"messages": user({"type": "image", "source": {"type": "url", "url": "file:///a"}})},
            "messages[0].content[0].source.url",
        ),
        ({"messages": user({"type": "tool_result"})}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "input": "{}"}]}, *HI]},
            "messages[0].content[0].input",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "input": None}]}, *HI]},
            "messages[0].content[0].input",
        ),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "tools"),
        ({"tool_choice": {"type": "tool"}, "tools": [NOW]}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [NOW]}, "tool_choice.name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"output_config": {"effort": "utmost"}}, "output_config.effort"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(asked, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(**asked)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert param.removesuffix("s") in caught.value.message


def test_a_count_needs_no_limit_and_may_end_with_the_model():
    turns = [*HI, {"role": "assistant", "content": "yes"}]
    raw = json.dumps({"model": "m", "messages": turns, "tools": [NOW], "system": "be"}).encode()
    counted = DIALECT.parse_count(raw, "r1")

    assert [turn.role for turn in counted.messages] == ["system", "user", "assistant"]
    assert counted.tools == (Tool(name="now", parameters=SCHEMA),)
    assert DIALECT.render_count(7) == b'{"input_tokens":7}'


names = st.sampled_from(
    ["model", "messages", "role", "content", "type", "text", "source", "tools", "system", "input"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
)


@given(st.binary(max_size=200) | json_values.map(lambda said: json.dumps(said).encode()))
def test_any_bytes_are_read_or_refused(raw):
    with suppress(InvalidRequest):
        DIALECT.parse_request(raw, "r1")


@given(json_values, st.sampled_from(["user", "assistant", "system"]))
def test_any_content_is_read_or_refused(content, role):
    with suppress(InvalidRequest):
        parse(messages=[{"role": role, "content": content}, *HI])


def test_content_nested_deeply_is_refused():
    content: object = "x"
    for _ in range(150):
        content = [{"type": "document", "source": {"type": "content", "content": content}}]
    with pytest.raises(InvalidRequest):
        parse(messages=[{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (NotAuthenticated("x"), 401, "authentication_error"),
        (PermissionDenied("x"), 403, "permission_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (RouteNotFound("x"), 404, "not_found_error"),
        (MethodNotAllowed("x"), 405, "invalid_request_error"),
        (RequestTooLarge("x"), 413, "request_too_large"),
        (ToolsUnsupported("x"), 422, "invalid_request_error"),
        (QueueFull("x"), 429, "rate_limit_error"),
        (CortexError("x"), 500, "api_error"),
        (UpstreamDied("x"), 500, "api_error"),
        (UpstreamUnreachable("x"), 500, "api_error"),
        (ModelLoading("x"), 529, "overloaded_error"),
        (NoNodeAvailable("x"), 529, "overloaded_error"),
        (LoadFailed("x"), 529, "overloaded_error"),
        (DeviceUnavailable("x"), 529, "overloaded_error"),
        (InsufficientVram("x"), 529, "overloaded_error"),
    ],
)
def test_an_error_has_the_vendors_status_and_type(error, status, kind):
    said, rendered = DIALECT.render_error(error, "r1")

    assert said == status
    assert json.loads(rendered) == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "r1",
    }


def test_a_prompt_that_is_too_long_says_so_in_the_words_agents_read():
    error = ContextLengthExceeded(
        "maximum context length is 8192 tokens, the prompt has 9001",
        details={"prompt_tokens": 9001, "context_tokens": 8192},
    )
    status, rendered = DIALECT.render_error(error)

    assert status == 400
    assert json.loads(rendered)["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 9001 tokens > 8192 maximum",
    }


CARDS = [ModelCard(id=f"m{number}", context=8192, output=4096) for number in range(50)]


def listed(**query: str) -> dict:
    return json.loads(DIALECT.render_models(CARDS, 1_700_000_000, query))


def test_a_model_has_a_row():
    assert json.loads(DIALECT.render_model(CARDS[0], 1_700_000_000)) == {
        "type": "model",
        "id": "m0",
        "display_name": "m0",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 8192,
        "max_tokens": 4096,
    }
    unknown = json.loads(DIALECT.render_model(ModelCard(id="m"), 0))
    assert (unknown["max_input_tokens"], unknown["max_tokens"]) == (None, None)


@pytest.mark.parametrize(
    ("query", "first", "last", "has_more"),
    [
        ({}, "m0", "m19", True),
        ({"limit": "1000"}, "m0", "m49", False),
        ({"limit": "50"}, "m0", "m49", False),
        ({"limit": "1"}, "m0", "m0", True),
        ({"after_id": "m19"}, "m20", "m39", True),
        ({"after_id": "m39"}, "m40", "m49", False),
        ({"after_id": "m49"}, None, None, False),
        ({"before_id": "m30"}, "m10", "m29", True),
        ({"before_id": "m20"}, "m0", "m19", False),
        ({"before_id": "m5", "limit": "3"}, "m2", "m4", True),
        ({"before_id": "m0"}, None, None, False),
    ],
)
def test_models_are_listed_page_by_page(query, first, last, has_more):
    page = listed(**query)

    assert (page["first_id"], page["last_id"], page["has_more"]) == (first, last, has_more)
    ids = [row["id"] for row in page["data"]]
    assert ids[:1] == [first or ids[:1]][: len(ids)]
    assert ids[-1:] == [last][: len(ids)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(({"limit": limit}, "limit") for limit in ("0", "1001", "-1", "x", "", "²", "9" * 5000)),
        ({"after_id": "x"}, "after_id"),
        ({"before_id": "x"}, "before_id"),
        ({"before_id": "m1", "after_id": "m2"}, "before_id"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_bound_of_a_page_is_refused(query, param):
    with pytest.raises(InvalidRequest) as caught:
        listed(**query)

    assert caught.value.param == param
