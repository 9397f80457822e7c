"""What models of the big families write, and what it means."""

# ruff: noqa: E501, RUF001 - as models write; DeepSeek has marks that look like others

from __future__ import annotations

from cortex.chat.request import Tool

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "exact": {"type": "boolean"},
    },
    "required": ["city"],
}
WEATHER = Tool(name="get_weather", description="The weather", parameters=CITY)
TIME = Tool(name="time")
TOOLS = (WEATHER, TIME)
HERMES = "<think>\n</think> <tool_call>"
CODER = "<tool_call>\n<function=example><parameter=x>"
FUNCTIONARY = "<function=example>{}</function>"
DEEPSEEK_R1 = "<think></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>```json"
DEEPSEEK = "<think></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
DSML = "dsml_token = ｜DSML｜"
KIMI = "<think></think><|tool_calls_section_begin|><|tool_call_argument_begin|>"
GLM = "<think></think><tool_call><arg_key>"
MINIMAX = "<think></think>'<minimax:tool_call>'"
SEED = "<seed:think></seed:think><seed:tool_call>"
MISTRAL = "[TOOL_CALLS]"
MISTRAL_V11 = "[THINK][/THINK][TOOL_CALLS]name[ARGS]"
GRANITE = "<|tool_call|>"
PHI = "<|tool_call|>{}<|/tool_call|>"
FUNCTOOLS = "functools"
APERTUS = "<|tools_prefix|>"
TOOL_CALLS = "<tool_calls>"
LFM = "<|tool_list_start|>"
GLM_47 = "<think></think><tool_call><arg_key></arg_key><arg_value>"
GRANITE_THINKING = "<think></think><response></response>"
COMMAND = "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|><|START_ACTION|>"
NEMOTRON = "<TOOLCALL>"
GEMMA4 = "<|channel>thought\n<channel|><|tool_call>call:"
FUNCTIONGEMMA = "<start_function_call>call:"
LLAMA = "<|python_tag|>"
HARMONY = "<|start|><|channel|><|message|>"
PARIS = ("get_weather", '{"city": "Paris"}')
NOW = ("time", "{}")


def thought(text):
    return ("thinking", text)


def text(text):
    return ("text", text)


def call(name, arguments=""):
    return ("call", name, arguments)


ANSWERS = {  # template, what the model writes, what it means
    "plain": (HERMES, "Hello.\n", [text("Hello.\n")]),
    "thinking": (
        HERMES,
        "<think>\nHm.\n\nSo.\n</think>\n\nYes.",
        [thought("Hm.\n\nSo."), text("Yes.")],
    ),
    "no thoughts between the marks": (HERMES, "<think>\n\n</think>\n\nYes.", [text("Yes.")]),
    "thoughts that never end": (HERMES, "\n<think>Hm. </thin", [thought("Hm. </thin")]),
    "marks of thought later on are text": (
        HERMES,
        "It is <think>x</think>.",
        [text("It is <think>x</think>.")],
    ),
    "a template that never opens thoughts": (
        "<｜Assistant｜>content.split('</think>')",
        "Hm.\n</think>\nYes.",
        [thought("Hm."), text("Yes.")],
    ),
    "hermes": (
        HERMES,
        (
            '<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments":'
            ' {"city": "Paris"}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n'
            "</tool_call>"
        ),
        [thought("Hm."), text("I look."), call(*PARIS), call(*NOW)],
    ),
    "hermes, arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>',
        [call(*PARIS)],
    ),
    "hermes, other keys": (
        HERMES,
        (
            '<tool_call>{"id": "x", "type": "function", "function": {"name": "get_weather",'
            ' "parameters": {"city": "Paris"}}}</tool_call>'
        ),
        [call(*PARIS)],
    ),
    "hermes, arguments as text": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
        [call(*PARIS)],
    ),
    "hermes, no arguments": (
        HERMES,
        '<tool_call>{"name": "time"}</tool_call><tool_call>{"name": "time", "arguments": null}',
        [call("time"), call("time")],
    ),
    "hermes, a brace too few and one too many": (
        HERMES,
        (
            '<tool_call>{"name": "time", "arguments": {}</tool_call>'
            '<tool_call>{"name": "time", "arguments": {}}}</tool_call>'
        ),
        [call(*NOW), call(*NOW)],
    ),
    "hermes, braces and marks and line breaks within strings": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "}\\"</tool_call>\n{"}}',
        [call("get_weather", '{"city": "}\\"</tool_call>\\n{"}')],
    ),
    "hermes, text behind calls": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n\nNow we wait.\n',
        [call(*NOW), text("Now we wait.\n")],
    ),
    "what only looks like a call": (
        HERMES,
        'Use <tool_call>, then {"name": ...}. <tool_call>{"x": 1}</tool_call> <tool_call',
        [text('Use <tool_call>, then {"name": ...}. <tool_call>{"x": 1}</tool_call> <tool_call')],
    ),
    "a call and then none": (
        HERMES,
        '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n<tool_call>oops</tool_call>',
        [call(*NOW), text("<tool_call>oops</tool_call>")],
    ),
    "coder": (
        CODER,
        (
            "I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\n\nYork\n"
            "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=tags>\n"
            '["a", "b"]\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n</function>\n'
            "</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>"
        ),
        [
            text("I look."),
            call(
                "get_weather",
                '{"city": "New\\n\\nYork", "days": 3, "tags": ["a", "b"], "exact": true}',
            ),
            call("time"),
        ],
    ),
    "coder, what is a number only in the schema, and quotes": (
        CODER,
        (
            "<function=get_weather>\n<parameter=city>\n1\n</parameter>\n<parameter=days>\nmany\n"
            '</parameter>\n<parameter=more>\n"x\n</parameter>\n</function>'
        ),
        [call("get_weather", '{"city": "1", "days": "many", "more": "\\"x"}')],
    ),
    "coder, ended within a value": (
        CODER,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
        [call("get_weather", '{"city": "Par"}')],
    ),
    "deepseek r1": (
        DEEPSEEK_R1,
        (
            "<think>Hm.</think>I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
            'get_weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>'
            "function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        [thought("Hm."), text("I look."), call(*PARIS), call(*NOW)],
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
            '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>'
            "{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        [call(*PARIS), call(*NOW)],
    ),
    "deepseek, no arguments": (
        DEEPSEEK,
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜><｜tool▁call▁end｜>",
        [call("time")],
    ),
    "deepseek v3.2": (
        DSML,
        (
            'I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
            '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
        ),
        [text("I look."), call("get_weather", '{"city": "Paris", "days": 3}')],
    ),
    "kimi": (
        KIMI,
        (
            "<think>Hm.</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>"
            'functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>'
            "<|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
            "<|tool_calls_section_end|>"
        ),
        [thought("Hm."), text("I look."), call(*PARIS), call(*NOW)],
    ),
    "kimi, calls end thoughts": (
        KIMI,
        (
            "<think>Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.time:0"
            "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
        ),
        [thought("Hm."), call(*NOW)],
    ),
    "glm 4.5": (
        GLM,
        (
            "\n<think>Hm.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
            "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
            "</tool_call>\n<tool_call>time\n</tool_call>"
        ),
        [
            thought("Hm."),
            text("I look."),
            call("get_weather", '{"city": "Paris", "days": 3}'),
            call("time"),
        ],
    ),
    "glm 4.7": (
        GLM_47,
        (
            "<think>Hm.</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris"
            "</arg_value></tool_call><tool_call>time</tool_call>"
        ),
        [thought("Hm."), call(*PARIS), call("time")],
    ),
    "minimax": (
        MINIMAX,
        (
            '<think>Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n'
            '<parameter name="city">Paris</parameter>\n</invoke>\n<invoke name="time">\n</invoke>\n'
            "</minimax:tool_call>"
        ),
        [thought("Hm."), call(*PARIS), call("time")],
    ),
    "seed": (
        SEED,
        (
            "<seed:think>Hm.</seed:think>I look.<seed:tool_call>\n<function=get_weather>\n"
            "<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>"
        ),
        [thought("Hm."), text("I look."), call(*PARIS)],
    ),
    "mistral before v11": (
        MISTRAL,
        (
            '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"},'
            ' {"name": "time", "arguments": {}}]'
        ),
        [call(*PARIS), call(*NOW)],
    ),
    "mistral v11": (
        MISTRAL_V11,
        (
            '[THINK]Hm.[/THINK]I look.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
            "[TOOL_CALLS]time[CALL_ID]abcdefghi[ARGS]{}"
        ),
        [thought("Hm."), text("I look."), call(*PARIS), call(*NOW)],
    ),
    "mistral, the mark of arguments left out": (
        MISTRAL,
        '[TOOL_CALLS]get_weather{"city": "Paris"}',
        [call(*PARIS)],
    ),
    "granite": (
        GRANITE,
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        [call(*PARIS)],
    ),
    "phi": (
        PHI,
        '<|tool_call|>{"name": "time", "arguments": {}}<|/tool_call|>',
        [call(*NOW)],
    ),
    "functionary": (
        FUNCTIONARY,
        'I look.<function=get_weather>{"city": "Paris"}</function><function=time>{}</function>',
        [text("I look."), call(*PARIS), call(*NOW)],
    ),
    "functools": (
        FUNCTOOLS,
        (
            'functools[{"name": "get_weather", "arguments": {"city": "Paris"}},'
            ' {"name": "time", "arguments": {}}]'
        ),
        [call(*PARIS), call(*NOW)],
    ),
    "functools, about python": (
        FUNCTOOLS,
        "import functools\n@functools.cache",
        [text("import functools\n@functools.cache")],
    ),
    "granite, an answer in its marks": (
        GRANITE_THINKING,
        "<think>Hm.</think>\n<response>Hello.</response>",
        [thought("Hm."), text("Hello.")],
    ),
    "apertus": (
        APERTUS,
        'I look.<|tools_prefix|>[{"get_weather": {"city": "Paris"}}, {"time": {}}]<|tools_suffix|>',
        [text("I look."), call(*PARIS), call(*NOW)],
    ),
    "a list in tags": (
        TOOL_CALLS,
        '<tool_calls>[{"name": "time", "arguments": {}}]</tool_calls>',
        [call(*NOW)],
    ),
    "lfm": (
        LFM,
        (
            '<|tool_call_start|>[get_weather(city="Pa\\"ris, (x)", days=3, exact=true, tags=["a"]), time()]'
            "<|tool_call_end|>Wait."
        ),
        [
            call(
                "get_weather", '{"city": "Pa\\"ris, (x)", "days": 3, "exact": true, "tags": ["a"]}'
            ),
            call(*NOW),
            text("Wait."),
        ],
    ),
    "lfm, by place and in json": (
        LFM,
        (
            "<|tool_call_start|>[get_weather('Paris')]<|tool_call_end|>"
            '<|tool_call_start|>[{"name": "time", "arguments": {}}]<|tool_call_end|>'
        ),
        [call(*PARIS), call(*NOW)],
    ),
    "lfm, no literals": (
        LFM,
        "<|tool_call_start|>[get_weather(city=input())]",
        [text("<|tool_call_start|>[get_weather(city=input())]")],
    ),
    "command": (
        COMMAND,
        (
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
            '    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}\n'
            "]<|END_ACTION|>"
        ),
        [thought("Hm."), call(*PARIS)],
    ),
    "command, an answer in its marks": (
        COMMAND,
        "<|START_RESPONSE|>Hello.<|END_RESPONSE|>",
        [text("Hello.")],
    ),
    "nemotron": (
        NEMOTRON,
        '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>',
        [call(*PARIS)],
    ),
    "gemma 4": (
        GEMMA4,
        (
            '<|channel>thought\nHm.<channel|>I look.<|tool_call>call:get_weather{city:<|"|>Pa"ris<|"|>'
            ',days:3,exact:true,tags:[<|"|>a<|"|>,<|"|>b<|"|>],more:{x:{}}}<tool_call|>'
            "<|tool_call>call:time{}<tool_call|>"
        ),
        [
            thought("Hm."),
            text("I look."),
            call(
                "get_weather",
                '{"city":"Pa\\"ris","days":3,"exact":true,"tags":["a","b"],"more":{"x":{}}}',
            ),
            call(*NOW),
        ],
    ),
    "functiongemma": (
        FUNCTIONGEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
        [call("get_weather", '{"city":"Paris"}')],
    ),
    "llama 3": (
        LLAMA,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        [call(*PARIS)],
    ),
    "llama 3, with its tag and several": (
        LLAMA,
        (
            '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}; '
            '{"name": "time", "parameters": {}}'
        ),
        [call(*PARIS), call(*NOW)],
    ),
    "llama 3, an answer in json": (
        LLAMA,
        ' {"name": "Ada", "parameters": {"born": 1815}}\n',
        [text(' {"name": "Ada", "parameters": {"born": 1815}}\n')],
    ),
    "a family nobody knows": (
        "{{ tools }}",
        '{"name": "get_weather", "arguments": {"city": "Paris"}}',
        [call(*PARIS)],
    ),
    "harmony": (
        HARMONY,
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>'
        ),
        [thought("Hm."), text("I look."), call(*PARIS)],
    ),
    "harmony, the recipient first": (
        HARMONY,
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.time"
            "<|channel|>commentary json<|message|>{}<|call|>"
        ),
        [thought("Hm."), call(*NOW)],
    ),
    "harmony, an answer": (
        HARMONY,
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>"
            "So.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n<|return|>"
        ),
        [thought("Hm.\n\nSo."), text("Yes.\n")],
    ),
    "harmony, without any head": (HARMONY, "Yes.", [text("Yes.")]),
}
