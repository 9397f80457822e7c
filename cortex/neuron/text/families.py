# ruff: noqa: RUF001 - DeepSeek's marks look like others on purpose
"""
How families of models write their thoughts and calls, and what tells a family.

Facts of the models' own chat templates, which is also where a family is told from: the first of a
table whose sign is in the template is the one.
"""

from __future__ import annotations

import re

import attrs

from cortex.neuron.text.forms import BareKeyCall, HeadedCall, JsonCall, TaggedCall
from cortex.neuron.text.syntaxes import Calls, Reasoning, Syntax

JSON_PUNCTUATION = ("[", "]", ",", ";", "}")
WRAPPERS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),  # Command
    ("<response>", "</response>"),  # Granite, Ernie
)
REASONING = (
    Reasoning(family="mistral", opens="[THINK]", closes="[/THINK]"),
    Reasoning(family="command", opens="<|START_THINKING|>", closes="<|END_THINKING|>"),
    Reasoning(
        family="gemma4", opens="<|channel>thought\n", closes="<channel|>", sign="<|channel>thought"
    ),
    Reasoning(family="seed", opens="<seed:think>", closes="</seed:think>"),
    Reasoning(family="think", opens="<think>", closes="</think>"),
)
TAGGED = TaggedCall(
    begins="<function=",
    name_ends=(">",),
    key="<parameter=",
    key_ends=">",
    value_ends="</parameter>",
    ends=("</function>",),
)
CALLS = (
    Calls(
        family="deepseek-dsml",
        sign=re.compile("｜DSML｜"),
        opens=("<｜DSML｜function_calls>", "<｜DSML｜invoke "),
        around=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        forms=(
            TaggedCall(
                begins='<｜DSML｜invoke name="',
                name_ends=('">',),
                key='<｜DSML｜parameter name="',
                key_ends='">',
                value_ends="</｜DSML｜parameter>",
                ends=("</｜DSML｜invoke>",),
            ),
        ),
    ),
    Calls(
        family="deepseek",
        sign=re.compile("<｜tool▁call▁begin｜>"),
        opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```"),
        forms=(
            HeadedCall(
                begins="<｜tool▁call▁begin｜>",
                head=re.compile(
                    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?\s*(?P<name>[^\s<`]+)\s*"
                    r"(?:<｜tool▁sep｜>|```json)?\s*"
                ),
                ends=("<｜tool▁call▁end｜>",),
                inside=("<｜tool▁sep｜>",),
            ),
        ),
    ),
    Calls(
        family="kimi",
        sign=re.compile(re.escape("<|tool_call_argument_begin|>")),
        opens=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        around=("<|tool_calls_section_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        forms=(
            HeadedCall(
                begins="<|tool_call_begin|>",
                head=re.compile(
                    r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^\s:<]+)(?::\d+)?\s*"
                    r"(?:<\|tool_call_argument_begin\|>)?\s*"
                ),
                ends=("<|tool_call_end|>",),
                inside=("<|tool_call_argument_begin|>",),
            ),
        ),
        ends_thinking=True,
        history_ids="functions",
    ),
    Calls(
        family="glm",
        sign=re.compile("<arg_key>"),
        opens=("<tool_call>",),
        around=("</tool_call>",),
        forms=(
            TaggedCall(
                begins="<tool_call>",
                name_ends=("\n", "<arg_key>", "</tool_call>"),
                key="<arg_key>",
                key_ends="<arg_value>",
                value_ends="</arg_value>",
                ends=("</tool_call>",),
            ),
        ),
    ),
    Calls(
        family="minimax",
        sign=re.compile("<minimax:tool_call>"),
        opens=("<minimax:tool_call>",),
        around=("<minimax:tool_call>", "</minimax:tool_call>"),
        forms=(
            TaggedCall(
                begins='<invoke name="',
                name_ends=('">',),
                key='<parameter name="',
                key_ends='">',
                value_ends="</parameter>",
                ends=("</invoke>",),
            ),
        ),
    ),
    Calls(
        family="seed",
        sign=re.compile("<seed:tool_call>"),
        opens=("<seed:tool_call>",),
        around=("<seed:tool_call>", "</seed:tool_call>"),
        forms=(TAGGED,),
    ),
    Calls(
        family="qwen-coder",
        sign=re.compile("<function="),
        opens=("<tool_call>", "<function="),
        around=("<tool_call>", "</tool_call>"),
        forms=(TAGGED, JsonCall()),
    ),
    Calls(
        family="mistral",
        sign=re.compile(r"\[TOOL_CALLS\]"),
        opens=("[TOOL_CALLS]",),
        around=("[TOOL_CALLS]", *JSON_PUNCTUATION),
        forms=(
            JsonCall(),
            HeadedCall(
                begins="",
                head=re.compile(r"(?P<name>[\w.:-]+)(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*"),
                inside=("[CALL_ID]", "[ARGS]"),
            ),
        ),
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
        around=("<|START_ACTION|>", "<|END_ACTION|>", *JSON_PUNCTUATION),
        forms=(JsonCall(),),
    ),
    Calls(
        family="hermes",
        sign=re.compile("<tool_call>"),
        opens=("<tool_call>",),
        around=("<tool_call>", "</tool_call>", *JSON_PUNCTUATION),
        forms=(JsonCall(), TAGGED),
    ),
    Calls(
        family="tool-call-list",  # Granite, Phi
        sign=re.compile(re.escape("<|tool_call|>")),
        opens=("<|tool_call|>",),
        around=("<|tool_call|>", "<|/tool_call|>", *JSON_PUNCTUATION),
        forms=(JsonCall(),),
    ),
    Calls(
        family="nemotron",
        sign=re.compile("<TOOLCALL>"),
        opens=("<TOOLCALL>",),
        around=("<TOOLCALL>", "</TOOLCALL>", *JSON_PUNCTUATION),
        forms=(JsonCall(),),
    ),
    Calls(
        family="functools",
        sign=re.compile("functools"),
        opens=("functools[",),
        around=("functools", *JSON_PUNCTUATION),
        forms=(JsonCall(),),
    ),
)
LLAMA = Calls(
    family="llama3",  # and whoever is asked for JSON in words
    sign=re.compile(r"<\|python_tag\|>"),
    opens=("<|python_tag|>",),
    around=("<|python_tag|>", *JSON_PUNCTUATION),
    forms=(JsonCall(),),
    bare=True,
)


def detect(template: str) -> Syntax:
    """Return how answers to prompts of a chat template are written."""
    if "<|channel|>" in template and "<|message|>" in template:
        return Syntax(harmony=True)
    reasoning = next((r for r in REASONING if (r.sign or r.closes) in template), None)
    if reasoning and not reasoning.sign and reasoning.opens not in template:
        reasoning = attrs.evolve(reasoning, implied=True)
    calls = next((c for c in CALLS if c.sign.search(template)), LLAMA)
    wrappers = next((pair for pair in WRAPPERS if pair[0] in template), ())
    return Syntax(reasoning=reasoning, calls=calls, wrappers=wrappers if reasoning else ())
