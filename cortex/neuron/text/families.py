# ruff: noqa: RUF001 - DeepSeek's marks look like others on purpose
"""
How families of models write their thoughts and calls, and what tells a family.

Facts of the models' own chat templates, which is also where a family is told from: the first of a
table whose sign is in the template is the one.
"""

from __future__ import annotations

import re

import attrs

from cortex.neuron.constraint import CallSyntax, Constraint
from cortex.neuron.text.code_forms import BareKeyCall, PythonCall
from cortex.neuron.text.json_forms import HeadedCall, JsonCall, KeyedCall
from cortex.neuron.text.syntaxes import Calls, Reasoning, Syntax
from cortex.neuron.text.tag_form import TaggedCall

WRAPPERS = (  # what tells them, and they
    ("<|START_RESPONSE|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),  # Command
    ("<response></response>", ("<response>", "</response>")),  # Granite
)
REASONING = (
    Reasoning(family="mistral", opens="[THINK]", closes="[/THINK]"),
    Reasoning(family="command", opens="<|START_THINKING|>", closes="<|END_THINKING|>"),
    Reasoning(
        family="gemma4", opens="<|channel>thought\n", closes="<channel|>", sign="<|channel>thought"
    ),
    Reasoning(family="seed", opens="<seed:think>", closes="</seed:think>"),
    Reasoning(family="think", opens="<think>", closes="</think>", blanks=("\n", "\n", "\n\n")),
)

# Forms that several families share, and how they are written in a list or one by one.

PUNCTUATION = ("[", "]", ",", ";", "}")
NAMED = '{"name": "'
ARGUMENTS = '", "arguments": '
TAGGED = TaggedCall(
    begins="<function=",
    name_ends=(">",),
    key="<parameter=",
    key_ends=">",
    value_ends="</parameter>",
    ends=("</function>",),
)
INVOKED = TaggedCall(
    begins='<invoke name="',
    name_ends=('">',),
    key='<parameter name="',
    key_ends='">',
    value_ends="</parameter>",
    ends=("</invoke>",),
)
INVOKED_DSML = TaggedCall(
    begins='<｜DSML｜invoke name="',
    name_ends=('">',),
    key='<｜DSML｜parameter name="',
    key_ends='">',
    value_ends="</｜DSML｜parameter>",
    ends=("</｜DSML｜invoke>",),
)
KEYED = TaggedCall(
    begins="<tool_call>",
    name_ends=("\n", "<arg_key>", "</tool_call>"),
    key="<arg_key>",
    key_ends="<arg_value>",
    value_ends="</arg_value>",
    ends=("</tool_call>",),
)
DEEPSEEK = HeadedCall(
    begins="<｜tool▁call▁begin｜>",
    head=re.compile(
        r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?\s*(?P<name>[^\s<`]+)\s*"
        r"(?:<｜tool▁sep｜>|```json)?\s*"
    ),
    ends=("<｜tool▁call▁end｜>",),
    inside=("<｜tool▁sep｜>",),
)
KIMI = HeadedCall(
    begins="<|tool_call_begin|>",
    head=re.compile(
        r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^\s:<]+)(?::\d+)?\s*"
        r"(?:<\|tool_call_argument_begin\|>)?\s*"
    ),
    ends=("<|tool_call_end|>",),
    inside=("<|tool_call_argument_begin|>",),
)
MISTRAL = HeadedCall(
    begins="",
    head=re.compile(r"(?P<name>[\w.:-]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*"),
    inside=("[CALL_ID]", "[ARGS]"),
)


def listed(opens: str, closes: str, arguments: str = ARGUMENTS) -> CallSyntax:
    """Return how to write calls as a list of JSON objects."""
    return CallSyntax(
        open=opens, before=NAMED, middle=arguments, after="}", between=", ", close=closes
    )


def tagged(before: str, after: str, parameter: tuple[str, str, str]) -> CallSyntax:
    """Return how to write a call with a tag for each argument."""
    return CallSyntax(
        before=f"{before}<function=",
        middle=">\n",
        after=f"</function>{after}",
        between="\n",
        parameter=parameter,
    )


CALLS = (
    Calls(
        family="deepseek-dsml",
        sign=re.compile("｜DSML｜"),
        opens=("<｜DSML｜function_calls>", "<｜DSML｜invoke "),
        around=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        forms=(INVOKED_DSML,),
    ),
    Calls(
        family="deepseek-r1",
        sign=re.compile("<｜tool▁call▁begin｜>.*```json", re.DOTALL),
        opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```"),
        forms=(DEEPSEEK,),
        written=CallSyntax(
            open="<｜tool▁calls▁begin｜>",
            before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            middle="\n```json\n",
            after="\n```<｜tool▁call▁end｜>",
            between="\n",
            close="<｜tool▁calls▁end｜>",
        ),
    ),
    Calls(
        family="deepseek",
        sign=re.compile("<｜tool▁call▁begin｜>"),
        opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        forms=(DEEPSEEK,),
        written=CallSyntax(
            open="<｜tool▁calls▁begin｜>",
            before="<｜tool▁call▁begin｜>",
            middle="<｜tool▁sep｜>",
            after="<｜tool▁call▁end｜>",
            close="<｜tool▁calls▁end｜>",
        ),
    ),
    Calls(
        family="kimi",
        sign=re.compile(re.escape("<|tool_call_argument_begin|>")),
        opens=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        around=("<|tool_calls_section_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        forms=(KIMI,),
        ends_thinking=True,
        written=CallSyntax(
            open="<|tool_calls_section_begin|>",
            before="<|tool_call_begin|>functions.",
            middle=":0<|tool_call_argument_begin|>",
            after="<|tool_call_end|>",
            close="<|tool_calls_section_end|>",
        ),
        history_ids="functions",
    ),
    Calls(
        family="glm-4.7",
        sign=re.compile("</arg_key><arg_value>"),
        opens=("<tool_call>",),
        around=("</tool_call>",),
        forms=(KEYED,),
        written=CallSyntax(
            before="<tool_call>",
            middle="",
            after="</tool_call>",
            parameter=("<arg_key>", "</arg_key><arg_value>", "</arg_value>"),
        ),
    ),
    Calls(
        family="glm",
        sign=re.compile("<arg_key>"),
        opens=("<tool_call>",),
        around=("</tool_call>",),
        forms=(KEYED,),
        written=CallSyntax(
            before="<tool_call>",
            middle="\n",
            after="</tool_call>",
            between="\n",
            parameter=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        ),
    ),
    Calls(
        family="minimax",
        sign=re.compile("<minimax:tool_call>"),
        opens=("<minimax:tool_call>",),
        around=("<minimax:tool_call>", "</minimax:tool_call>"),
        forms=(INVOKED,),
        written=CallSyntax(
            open="<minimax:tool_call>\n",
            before='<invoke name="',
            middle='">\n',
            after="</invoke>\n",
            close="</minimax:tool_call>",
            parameter=('<parameter name="', '">', "</parameter>\n"),
        ),
    ),
    Calls(
        family="seed",
        sign=re.compile("<seed:tool_call>"),
        opens=("<seed:tool_call>",),
        around=("<seed:tool_call>", "</seed:tool_call>"),
        forms=(TAGGED,),
        written=tagged(
            "<seed:tool_call>\n", "\n</seed:tool_call>", ("<parameter=", ">", "</parameter>\n")
        ),
    ),
    Calls(
        family="qwen-coder",
        sign=re.compile("<function=.*<parameter=", re.DOTALL),
        opens=("<tool_call>", "<function="),
        around=("<tool_call>", "</tool_call>"),
        forms=(TAGGED, JsonCall()),
        written=tagged(
            "<tool_call>\n", "\n</tool_call>", ("<parameter=", ">\n", "\n</parameter>\n")
        ),
    ),
    Calls(
        family="functionary",
        sign=re.compile("<function="),
        opens=("<function=",),
        around=(),
        forms=(TAGGED,),
        written=CallSyntax(before="<function=", middle=">", after="</function>"),
    ),
    Calls(
        family="mistral-v11",
        sign=re.compile(r"\[TOOL_CALLS\].*\[ARGS\]", re.DOTALL),
        opens=("[TOOL_CALLS]",),
        around=("[TOOL_CALLS]", *PUNCTUATION),
        forms=(JsonCall(), MISTRAL),
        written=CallSyntax(before="[TOOL_CALLS]", middle="[ARGS]", after=""),
        history_ids="nine",
    ),
    Calls(
        family="mistral",
        sign=re.compile(r"\[TOOL_CALLS\]"),
        opens=("[TOOL_CALLS]",),
        around=("[TOOL_CALLS]", *PUNCTUATION),
        forms=(JsonCall(), MISTRAL),
        written=listed("[TOOL_CALLS][", "]"),
        history_ids="nine",
    ),
    Calls(
        family="gemma4",
        sign=re.compile(re.escape("<|tool_call>call:")),
        opens=("<|tool_call>",),
        around=("<|tool_call>", "<tool_call|>"),
        forms=(BareKeyCall(begins="call:", quote='<|"|>'),),
    ),
    Calls(
        family="functiongemma",
        sign=re.compile("<start_function_call>"),
        opens=("<start_function_call>",),
        around=("<start_function_call>", "<end_function_call>"),
        forms=(BareKeyCall(begins="call:", quote="<escape>"),),
    ),
    Calls(
        family="command",
        sign=re.compile(r"<\|START_ACTION\|>"),
        opens=("<|START_ACTION|>",),
        around=("<|START_ACTION|>", "<|END_ACTION|>", *PUNCTUATION),
        forms=(JsonCall(),),
        written=CallSyntax(
            open="<|START_ACTION|>[\n",
            before='    {"tool_call_id": "0", "tool_name": "',
            middle='", "parameters": ',
            after="}",
            between=",\n",
            close="\n]<|END_ACTION|>",
        ),
    ),
    Calls(
        family="apertus",
        sign=re.compile(r"<\|tools_prefix\|>"),
        opens=("<|tools_prefix|>",),
        around=("<|tools_prefix|>", "<|tools_suffix|>", *PUNCTUATION),
        forms=(KeyedCall(),),
        written=CallSyntax(
            open="<|tools_prefix|>[",
            before='{"',
            middle='": ',
            after="}",
            between=", ",
            close="]<|tools_suffix|>",
        ),
    ),
    Calls(
        family="tool-calls",  # Apriel, Hunyuan
        sign=re.compile("<tool_calls>"),
        opens=("<tool_calls>",),
        around=("<tool_calls>", "</tool_calls>", *PUNCTUATION),
        forms=(JsonCall(),),
        written=listed("<tool_calls>[", "]</tool_calls>"),
    ),
    Calls(
        family="hermes",
        sign=re.compile("<tool_call>"),
        opens=("<tool_call>",),
        around=("<tool_call>", "</tool_call>", *PUNCTUATION),
        forms=(JsonCall(), TAGGED),
        written=CallSyntax(
            before=f"<tool_call>\n{NAMED}",
            middle=ARGUMENTS,
            after="}\n</tool_call>",
            between="\n",
        ),
    ),
    Calls(
        family="phi",
        sign=re.compile(r"<\|/tool(?:_call)?\|>"),
        opens=("<|tool_call|>", "functools["),
        around=("<|tool_call|>", "<|/tool_call|>", "functools[", *PUNCTUATION),
        forms=(JsonCall(),),
        written=listed("<|tool_call|>[", "]<|/tool_call|>"),
    ),
    Calls(
        family="granite",
        sign=re.compile(r"<\|tool_call\|>"),
        opens=("<|tool_call|>",),
        around=("<|tool_call|>", *PUNCTUATION),
        forms=(JsonCall(),),
        written=listed("<|tool_call|>[", "]"),
    ),
    Calls(
        family="nemotron",
        sign=re.compile("<TOOLCALL>"),
        opens=("<TOOLCALL>",),
        around=("<TOOLCALL>", "</TOOLCALL>", *PUNCTUATION),
        forms=(JsonCall(),),
        written=listed("<TOOLCALL>[", "]</TOOLCALL>"),
    ),
    Calls(
        family="functools",
        sign=re.compile("functools"),
        opens=("functools[",),
        around=("functools[", *PUNCTUATION),
        forms=(JsonCall(),),
        written=listed("functools[", "]"),
    ),
)
LFM = Calls(
    family="lfm2",
    sign=re.compile(r"<\|tool_(?:call|list)_start\|>"),
    opens=("<|tool_call_start|>",),
    around=("<|tool_call_start|>", "<|tool_call_end|>", *PUNCTUATION),
    forms=(JsonCall(), PythonCall()),
    in_python=("<|tool_call_start|>[", "]<|tool_call_end|>"),
)
LLAMA = Calls(
    family="llama3",  # and whoever is asked for JSON in words
    sign=re.compile(r"<\|python_tag\|>"),
    opens=("<|python_tag|>",),
    around=("<|python_tag|>", *PUNCTUATION),
    forms=(JsonCall(strict=True),),
    bare=True,
    written=CallSyntax(before=NAMED, middle='", "parameters": ', after="}", between="; "),
)
HARMONY = Constraint(
    syntax=CallSyntax(
        before="<|channel|>commentary to=functions.",
        middle=" <|constrain|>json<|message|>",
        after="",
    ),
    opening="<|channel|>analysis<|message|>",
    thought="<|end|><|start|>assistant",
    head="<|channel|>final<|message|>",
)


def detect(template: str, tokens: str = "") -> Syntax:
    """
    Return how answers to prompts of a chat template are written.

    Args:
        template: Its source.
        tokens: The special tokens of the model; they tell a family that its template does not.
    """
    if "<|channel|>" in template and "<|message|>" in template:
        return Syntax(harmony=True)
    reasoning = next((r for r in REASONING if (r.sign or r.closes) in template), None)
    if reasoning and reasoning.opens not in template and "<｜Assistant｜>" in template:
        reasoning = attrs.evolve(reasoning, implied=True)
    otherwise = LFM if LFM.sign.search(template + tokens) else LLAMA
    calls = next((c for c in CALLS if c.sign.search(template)), otherwise)
    wrappers = next((pair for sign, pair in WRAPPERS if sign in template), ())
    return Syntax(reasoning=reasoning, calls=calls, wrappers=wrappers if reasoning else ())
