"""Chat templates: rendered as transformers does, and what they take is found out."""

from __future__ import annotations

import attrs
import pytest

from cortex.errors import InvalidRequest
from cortex.neuron.text.template import Abilities, Template
from tests.neuron.text import templates

USER = {"role": "user", "content": "hi <b> & 'é'"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": "<"}}}]


def abilities(source):
    return attrs.asdict(Template(source, {}).abilities)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("QWEN", {}),
        ("OPENING", {}),
        ("MISTRAL", {"in_a_row": False, "objects": False, "user_after_results": False}),
        ("LLAMA", {"several_calls": False}),
        ("GEMMA", {"system": False, "in_a_row": False, "tools": False, "calls": False}),
        ("GRANITE", {"calls": False}),
        ("PHI", {"tools_in_system": True, "calls": False}),
        ("PARTS", {"parts": True, "tools": False, "calls": False}),
        ("HARMONY", {"several_calls": False, "thoughts_and_text": False}),
    ],
)
def test_what_a_template_takes_is_found_out(name, lacks):
    assert abilities(getattr(templates, name)) == attrs.asdict(attrs.evolve(Abilities(), **lacks))


def test_a_template_that_insists_on_tools_is_tried_with_some():
    source = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + templates.LLAMA
    assert abilities(source) == abilities(templates.LLAMA)


@pytest.mark.parametrize("name", ["QWEN", "OPENING", "LLAMA", "GRANITE", "HARMONY"])
@pytest.mark.filterwarnings("ignore")
def test_a_prompt_is_transformers_own(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    source = getattr(templates, name)
    turns = [{"role": "system", "content": "be brief"}, USER]
    (expected,), _ = render_jinja_template(
        [turns], tools=TOOLS, chat_template=source, add_generation_prompt=True
    )
    assert Template(source, {}).render(turns, TOOLS) == expected
    assert '"z": 1, "a": "<"' in expected


def test_what_is_marked_as_generated_is_rendered_as_it_is():
    source = "a{% generation %}{% for m in messages %}{{ m.role }}{% endfor %}{% endgeneration %}b"
    assert Template(source, {}).render([USER]) == "auserb"


def test_arguments_and_special_tokens_are_names_in_the_template():
    source = "{{ bos_token }}{{ mood }}{{ tools is none }}{{ add_generation_prompt }}"
    template = Template(source, {"bos_token": "<s>"})
    assert template.render([USER], mood="calm") == "<s>calmTrueTrue"
    assert template.render([USER], add_generation_prompt=False) == "<s>TrueFalse"


@pytest.mark.parametrize(
    "source", ["{{ 1 + 'x' }}", "{{ nope.nope }}", "{{ raise_exception('x') }}"]
)
def test_whatever_goes_wrong_in_a_template_is_the_messages_fault(source):
    with pytest.raises(InvalidRequest) as caught:
        Template(source, {}).render([USER])
    assert caught.value.param == "messages"


def test_a_template_cannot_leave_its_sandbox():
    with pytest.raises(InvalidRequest, match="unsafe"):
        Template("{{ ''.__class__.__mro__ }}", {}).render([USER])
    with pytest.raises(InvalidRequest):
        Template("{{ messages.append(1) }}", {}).render([USER])
