# ruff: noqa: E501 - as they are written
"""Small chat templates in the shapes of those of the big families."""

from __future__ import annotations

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>", "<|message|>"),
    *("<|end|>", "<|start|>", "<|call|>", "<|other|>"),
]

# ChatML, tools at the head, thoughts kept behind the last question of the user.
QWEN = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
    {%- for tool in tools or [] %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'system' and not loop.first %}
        {{- raise_exception('System message must be at the beginning.') }}
    {%- elif m.role == 'user' %}
        {{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content is string and loop.index0 > ns.last %}
            {{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# The same, where thoughts are kept for good: each prompt is the beginning of the next.
KEEPING = QWEN.replace(" and loop.index0 > ns.last", "")

# The same, opening the thoughts itself.
OPENING = QWEN.replace("{%- if enable_thinking is defined", "{{- '<think>\\n' }}{%- if false")

# Roles take turns, ids of calls have nine characters, arguments are text.
MISTRAL = """
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% endif %}
{%- for m in turns | rejectattr('role', 'equalto', 'tool') | rejectattr('tool_calls', 'defined') %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
{%- endfor %}
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- if messages[0].role == 'system' %}[SYSTEM]{{ messages[0].content }}{% endif %}
{%- for m in turns %}
    {%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
    {%- elif m.tool_calls is defined %}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids must have 9') }}{% endif %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids must have 9') }}{% endif %}
        {{- '[TOOL_RESULTS]' + m.tool_call_id + m.content }}
    {%- else %}{{ m.content }}
    {%- endif %}
{%- endfor %}
"""

# One call a turn.
LLAMA = """
{%- for m in messages %}
    {{- '<' + m.role + '>' }}
    {%- if m.tool_calls is defined %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}
        {{- m.tool_calls[0].function | tojson }}
    {%- else %}{{ m.content }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}<assistant>
"""

# No system turn, no tools.
GEMMA = """
{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}
    {{- '<' + m.role + '>' + m.content }}
{%- endfor %}<model>
"""

# Tools are told, calls of earlier turns are left out.
GRANITE = """
{%- for tool in tools or [] %}{{ tool | tojson }}<|tool_call|>{% endfor %}
{%- for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}<assistant>
"""

# Tools are text beside the system's, calls of earlier turns are left out.
PHI = """
{%- for m in messages %}
    {{- '<|' + m.role + '|>' + m.content }}
    {%- if m.role == 'system' and m.tools is defined %}{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}
    {{- '<|end|>' }}
{%- endfor %}<|assistant|>
"""

# Content in parts.
PARTS = """
{%- for m in messages %}<{{ m.role }}>
    {%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
{%- endfor %}
"""

# Messages on channels; thoughts and text do not go together, and one call a turn.
HARMONY = """
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}
    {%- if m.tool_calls is defined %}
        {%- if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}
        {%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
        {{- '<|start|>assistant<|channel|>commentary to=functions.' + m.tool_calls[0].function.name }}
        {{- ' <|constrain|>json<|message|>' + m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}<|start|>assistant
"""


def tokenizer_json(special=SPECIAL):
    """Return a tokenizer.json whose tokens are *special* and the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>")])
    return backend.to_str()
