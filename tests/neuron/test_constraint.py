"""The grammars the neuron writes, as llguidance reads them: what they let through."""

from __future__ import annotations

import json

import attrs
import pytest

from cortex.chat.request import JsonFormat, Tool, ToolChoice
from cortex.errors import InvalidRequest
from cortex.neuron.constraint import CallSyntax, Constraint
from tests.neuron.engine.tiny import SPECIAL, byte_tokenizer

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
MARKED = CallSyntax(
    before='<call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</call>",
    between="\n",
)
LISTED = CallSyntax(
    open="<|user|>[",
    before='{"name": "',
    middle='", "arguments": ',
    after="}",
    between=", ",
    close="]",
)
SPELLED = CallSyntax(
    before="<call>\n<function=",
    middle=">\n",
    after="</function>\n</call>",
    parameter=("<parameter=", ">\n", "\n</parameter>\n"),
)
MOVE = Tool(name="move", parameters=POINT)
STOP = Tool(name="stop")
TOOLS = (MOVE, STOP)
REQUIRED = ToolChoice(mode="required")
SPECIAL_IDS = {text: number for number, text in enumerate(SPECIAL)}


@pytest.fixture(scope="module")
def tokens():
    from llguidance import LLTokenizer

    return LLTokenizer(byte_tokenizer().to_str(), eos_token=[0])


@pytest.fixture
def allows(tokens):
    """Tell whether a grammar lets a text through, whole."""

    def tell(grammar, text):
        from llguidance import LLMatcher

        matcher = LLMatcher(tokens, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokens.tokenize_str(text, parse_special=True)
        return matcher.consume_tokens(ids) and matcher.is_accepting()

    return tell


def call(name, arguments):
    return f'<call>\n{{"name": "{name}", "arguments": {arguments}}}\n</call>'


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"x":1}', True),
        ('{"x": 1, "y": -2}', True),
        ('{\n  "x": 1,\n  "y": 2\n}', True),
        ('{"y": 1}', False),
        ('{"x": "1"}', False),
        ('{"x": 1, "z": 1}', False),
        ('{"x":  1}', False),  # one space is enough
        ('{"x": 1} and so on', False),
        ("[1]", False),
    ],
)
def test_a_schema_lets_through_what_it_allows(text, allowed, allows):
    assert allows(Constraint().grammar(JsonFormat(schema=POINT)), text) == allowed


@pytest.mark.parametrize(("text", "allowed"), [('{"any": [1, {}]}', True), ("[]", False)])
def test_json_without_a_schema_is_any_object(text, allowed, allows):
    assert allows(Constraint().grammar(JsonFormat()), text) == allowed


def test_nothing_is_constrained_unless_something_asks_for_it():
    assert Constraint().grammar(None) is None
    assert Constraint(syntax=MARKED).grammar(None, TOOLS) is None
    assert Constraint(syntax=MARKED).grammar(None, TOOLS, ToolChoice(mode="none")) is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strng"}, "strng"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "pattern": "("}, "regex parse error"),
        ({"type": "string", "not": {"const": "a"}}, "not"),
        ({"properties": {str(number): {} for number in range(6000)}}, "too big"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(schema, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        Constraint().grammar(JsonFormat(schema=schema))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)


def test_a_format_that_is_not_strict_leaves_out_what_cannot_be_enforced(allows):
    schema = {"type": "string", "not": {"const": "a"}}
    assert allows(Constraint().grammar(JsonFormat(schema=schema, strict=False)), '"a"')


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (call("move", '{"x": 1}'), True),
        (call("stop", '{"now": true}'), True),
        (call("move", '{"x": 1}') + "\n" + call("stop", "{}"), True),
        (call("move", '{"y": 1}'), False),
        (call("run", "{}"), False),
        ("I will.\n" + call("stop", "{}"), False),
        ("", False),
    ],
)
def test_a_required_call_is_of_a_tool_and_follows_its_schema(text, allowed, allows):
    grammar = Constraint(syntax=MARKED).grammar(None, TOOLS, REQUIRED)
    assert allows(grammar, text) == allowed


def test_a_named_tool_is_the_only_one_and_parallel_off_is_one_call(allows):
    chosen = ToolChoice(mode="required", name="stop", parallel=False)
    grammar = Constraint(syntax=MARKED).grammar(None, TOOLS, chosen)
    assert allows(grammar, call("stop", "{}"))
    assert not allows(grammar, call("move", '{"x": 1}'))
    assert not allows(grammar, call("stop", "{}") + "\n" + call("stop", "{}"))
    with pytest.raises(InvalidRequest, match="no tool 'jump'"):
        Constraint(syntax=MARKED).grammar(None, TOOLS, ToolChoice(mode="required", name="jump"))


def test_a_special_token_in_a_syntax_is_the_token_and_not_its_letters(allows, tokens):
    from llguidance import LLMatcher

    grammar = Constraint(syntax=LISTED, special=SPECIAL_IDS).grammar(None, TOOLS, REQUIRED)
    calls = '[{"name": "stop", "arguments": {}}, {"name": "move", "arguments": {"x":1}}]'
    assert allows(grammar, "<|user|>" + calls)
    letters = LLMatcher(tokens, grammar, log_level=0)
    spelled = [token for piece in ("<", "|user|>") for token in tokens.tokenize_str(piece)]
    assert not letters.consume_tokens([*spelled, *tokens.tokenize_str(calls)])


@pytest.mark.parametrize(
    ("inside", "allowed"),
    [
        ("<parameter=to>\nParis <b>\n</parameter>\n<parameter=days>\n3\n</parameter>\n", True),
        ("<parameter=to>\n\n</parameter>\n<parameter=how>\nfast\n</parameter>\n", True),
        ("<parameter=to>\nx\n</parameter>\n<parameter=days>\nthree\n</parameter>\n", False),
        ("<parameter=to>\nx\n</parameter>\n<parameter=how>\nslow\n</parameter>\n", False),
        ("<parameter=days>\n3\n</parameter>\n", False),
    ],
)
def test_arguments_written_one_by_one_are_text_or_json_by_their_schema(inside, allowed, allows):
    properties = {
        "to": {"type": "string"},
        "days": {"$ref": "#/$defs/count"},
        "how": {"type": "string", "enum": ["fast"]},
    }
    schema = {"properties": properties, "required": ["to"], "$defs": {"count": {"type": "integer"}}}
    tool = Tool(name="go", parameters=schema)
    grammar = Constraint(syntax=SPELLED).grammar(None, (tool, STOP), REQUIRED)
    assert allows(grammar, f"<call>\n<function=go>\n{inside}</function>\n</call>") == allowed
    assert allows(grammar, "<call>\n<function=stop>\n</function>\n</call>")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [], "required": 5},
        {"properties": None, "required": None},
        {"properties": {"to": {"type": "string", "enum": 5}}, "required": {}},
    ],
)
def test_arguments_written_one_by_one_may_have_an_odd_schema(schema, allows):
    grammar = Constraint(syntax=SPELLED).grammar(
        None, (Tool(name="go", parameters=schema),), REQUIRED
    )
    assert allows(grammar, "<call>\n<function=go>\n</function>\n</call>")


def test_arguments_of_a_lax_tool_are_any_object_where_its_schema_cannot_be_enforced(allows):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=b)"}}}
    lax, strict = (Tool(name="t", parameters=schema, strict=strict) for strict in (False, True))
    constraint = Constraint(syntax=MARKED)
    assert allows(constraint.grammar(None, (lax,), REQUIRED), call("t", '{"z": 1}'))
    with pytest.raises(InvalidRequest, match="look-around") as caught:
        constraint.grammar(None, (STOP, strict), REQUIRED)
    assert caught.value.param == "tools[1].parameters"


@pytest.mark.parametrize("syntax", [MARKED, LISTED])
def test_calls_of_a_strict_tool_follow_its_schema_also_where_none_is_required(syntax, allows):
    strict = attrs.evolve(MOVE, strict=True)
    constraint = Constraint(syntax=syntax, special=SPECIAL_IDS)
    grammar = constraint.grammar(None, (strict, STOP))

    def calls(*arguments):
        made = (f"{syntax.before}move{syntax.middle}{one}{syntax.after}" for one in arguments)
        return f"{syntax.open}{syntax.between.join(made)}{syntax.close}"

    good, bad = calls('{"x": 1}'), calls('{"y": 1}')
    for text in (
        "",
        "No call.",
        f"I go. {good}",
        f"{good} and {good} so",
        calls(*['{"x": 1}'] * 2),
    ):
        assert allows(grammar, text), text
    for text in (bad, f"I go. {bad}", f"{good} and {bad}", good.replace("move", "run")):
        assert not allows(grammar, text), text
    alone = constraint.grammar(None, (strict,), ToolChoice(parallel=False))
    assert allows(alone, f"I go. {good}")
    assert not allows(alone, good + good)


def test_a_mark_is_what_begins_calls_and_no_other_text():
    assert (MARKED.mark, LISTED.mark, SPELLED.mark) == ("<call>", "<|user|>", "<call>")
    bare = CallSyntax(before='{"name": "', middle='", "arguments": ', after="}")
    assert bare.mark == ""
    strict = attrs.evolve(MOVE, strict=True)
    assert Constraint(syntax=bare).grammar(None, (strict,)) is None


def test_an_answer_of_a_format_may_be_a_call_instead_if_there_are_tools(allows):
    grammar = Constraint(syntax=MARKED).grammar(JsonFormat(schema=POINT), TOOLS)
    assert allows(grammar, '{"x": 1}')
    assert allows(grammar, call("stop", "{}"))
    assert not allows(grammar, "no")
    without = ToolChoice(mode="none")
    grammar = Constraint(syntax=MARKED).grammar(JsonFormat(schema=POINT), TOOLS, without)
    assert not allows(grammar, call("stop", "{}"))


@pytest.mark.parametrize("mark", ["</think>", "<|system|>", "<|system|>done."])
def test_until_its_thoughts_end_a_model_may_say_anything_and_may_not_stop(mark, allows, tokens):
    from llguidance import LLMatcher

    constraint = Constraint(thought=mark, special=SPECIAL_IDS)
    grammar = constraint.grammar(JsonFormat(schema=POINT))
    thoughts = 'so: {"x": "no"} <b> </thin'
    answer = json.dumps({"x": 1})
    assert allows(grammar, f"{thoughts}{mark}\n\n{answer}")
    assert allows(grammar, f"{mark}{answer}")
    assert not allows(grammar, f"{thoughts}{mark}\n\nno")
    matcher = LLMatcher(tokens, grammar, log_level=0)
    matcher.consume_tokens(tokens.tokenize_str(thoughts))
    assert matcher.compute_logit_bias()[0] == 0


@pytest.mark.parametrize("opening", ["<think>", "<|user|>", "<|user|>so\n"])
def test_a_model_may_open_its_thoughts_or_answer_at_once(opening, allows):
    constraint = Constraint(thought="</think>", opening=opening, special=SPECIAL_IDS)
    grammar = constraint.grammar(JsonFormat(schema=POINT))
    answer = json.dumps({"x": 1})
    assert allows(grammar, f"\n{opening}\nhm</think>\n\n{answer}")
    assert allows(grammar, answer)
    assert not allows(grammar, f"hm</think>{answer}")
    assert not allows(grammar, f"{opening}hm")


def test_an_answer_of_a_format_may_have_a_head_and_calls_another(allows):
    constraint = Constraint(
        syntax=CallSyntax(before="<|user|>to=", middle="<|assistant|>", after=""),
        opening="<|user|>hm<|assistant|>",
        thought="<|end|><|system|>",
        head="<|user|>final<|assistant|>",
        special=SPECIAL_IDS,
    )
    grammar = constraint.grammar(JsonFormat(schema=POINT), TOOLS)
    thoughts = "<|user|>hm<|assistant|>well<|end|><|system|>"
    for before in ("", thoughts):
        assert allows(grammar, before + '<|user|>final<|assistant|>{"x": 1}')
        assert allows(grammar, before + "<|user|>to=stop<|assistant|>{}")
        assert not allows(grammar, before + '{"x": 1}')
