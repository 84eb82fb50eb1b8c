"""Chat templates as transformers renders them; hostile ones stopped; conversations that compute nothing twice."""

from __future__ import annotations

import sys
import time

import pytest

from penjing.errors import PenjingError
from penjing.runtime import template_sandbox
from penjing.runtime.chat import ChatTemplate, Conversation

TURNS = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "What is <b> & 盆景? {{ 1 }}"},
    {"role": "assistant", "content": "A tray.", "tool_calls": [{"name": "look", "arguments": {"at": ["<é>"]}}]},
    {"role": "user", "content": " And  now?"},
]

# shapes of templates that models ship with: whitespace control, namespaces, macros, filters, loop controls, dates
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks": """
{{- bos_token }}
{%- set ns = namespace(system=false, turns=0) %}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {%- set ns.system = true %}
        {%- continue %}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if loop.last and not loop.first %}
[{{ loop.index0 }}/{{ loop.length }}]
    {% endif %}
    {{ m['role'] | upper }}: {{ m.content | trim ~ eos_token ~ ns.turns }}
{%- endfor %}
{%- if add_generation_prompt %}MODEL:{% endif %}
""",
    "macro": "{% macro say(m, n=1) %}<{{ m.role }}{{ n }}>"
    "{{ m.content.replace('a', 'aa').split('?')[0] }}{% endmacro %}"
    "{% for m in messages %}{{ say(m, loop.index) }}{{ m.content.replace(' ', '_', 1) }}"
    "{{ '+'.join([m.role, 'x']) }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{{ m.tool_calls[0] | tojson(indent=2) }}{% endif %}{% endfor %}",
    "filters": "{% set body %}{% for m in messages %}{{ m.content }}|{% endfor %}{% endset %}{{ body | length }}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages[0].content | indent(3, true) }}"
    "{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content | replace(' ', '_') }}"
    "{{ ['x', 1, none] | join('-') }}{{ '-' * 5 }}{{ 7 % 3 }}{{ ','.join(['a', 'b']) }}{{ tools is none }}",
    "generation": "{% set a = 1 %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}{% endif %}{% endfor %}",
    "year": "{{ strftime_now('%Y')[:2] }}{{ dict(a=1).a }}{{ bos_token }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(name, add_generation_prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs = utils.render_jinja_template(
        conversations=[TURNS],
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )[0][0]
    ours = ChatTemplate(TEMPLATES[name], "<s>", "</s>").render(TURNS, add_generation_prompt)
    assert ours == theirs
    assert ours


GROW = "{% set ns = namespace(s='" + "x" * 64 + "') %}{% for i in range(60) %}"
GROWING = {
    "multiplies": "{{ 'x' * 99999999999 }}",
    "multiplies lists": "{{ ([0] * 99999999999) | length }}",
    "multiplies what it got": "{{ messages[0].content * 99999999999 }}",
    "doubles with plus": GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubles with tilde": GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubles in a block": GROW + "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "doubles in a macro": GROW + "{% macro m(t) %}{{ t }}{{ t }}{% endmacro %}{% set ns.s = m(ns.s) %}{% endfor %}",
    "doubles by replacing": GROW + "{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
    "doubles by a filter": GROW + "{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}",
    "doubles by joining": GROW + "{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
    "joins": GROW + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "prints": "{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 500 + "{% endfor %}{% endfor %}",
    "prints into a variable": "{% set t %}{% for a in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
}
HOSTILE = GROWING | {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set a = 'x' * 9999 %}"
    + "".join("{% for v in a %}".replace("v", f"v{n}") for n in range(5))
    + "{% endfor %}" * 5,
    "powers": "{{ 9 ** 9 ** 9 ** 9 }}",
    "large numbers": "{% set ns = namespace(n=10) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "formats": "{{ '%999999999999d' % 1 }}",
    "formats by a method": "{{ '{:>999999999999}'.format(1) }}",
    "pads": "{{ 'x'.ljust(999999999999) }}",
    "centres": "{{ 'x' | center(999999999999) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'].exit() }}",
    "attr filter": "{{ ('' | attr('__class__')).mro() }}",
    "map": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace from the start": "{% set ns = namespace(_a=1) %}",
    "format string": "{{ '{0.__class__.__init__}'.format(raise_exception) }}",
    "changes its input": "{{ messages.clear() }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "method by item": "{{ '{:>999999999999}'['format'](1) }}",
    "imports": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "unknown filter": "{{ 1 | nothing }}",
    "wrong type": "{{ messages[0].content + 1 }}",
    "refuses": "{{ raise_exception('only one turn') }}",
    "too long": "x" * (1 << 21),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_an_error(name, monkeypatch):
    monkeypatch.setattr("penjing.runtime.chat.MOST_SECONDS", 0.5)
    turns = [dict(turn) for turn in TURNS]
    start = time.monotonic()
    with pytest.raises(PenjingError, match="the chat template") as caught:
        print(ChatTemplate(HOSTILE[name]).render(turns)[:300])
    assert time.monotonic() - start < 5
    if name in GROWING:  # stopped by what it wants to build, before the clock or the machine's memory stop it
        assert "characters" in caught.value.fact
    assert turns == TURNS


def test_the_deadline_leaves_tracing_as_it_was(monkeypatch):
    monkeypatch.setattr("penjing.runtime.chat.MOST_SECONDS", 0.1)
    before = sys.gettrace()
    with pytest.raises(PenjingError, match=r"more than 0\.1 seconds"):
        ChatTemplate(HOSTILE["loops"]).render(TURNS)
    assert sys.gettrace() is before


def test_a_long_conversation_fits_the_limits():
    turns = [{"role": ("user", "assistant")[n % 2], "content": "word " * 2000} for n in range(200)]
    assert len(ChatTemplate(TEMPLATES["blocks"]).render(turns)) > 1_900_000
    assert template_sandbox.MOST_CHARS > 8 * 1_900_000


@pytest.mark.parametrize("template", [None, ""])
def test_no_template_is_an_error_with_a_way_out(template):
    with pytest.raises(PenjingError, match="no chat template") as caught:
        ChatTemplate(template)
    assert "--raw" in caught.value.attempt


@pytest.fixture
def conversation(byte_tokenizer, script_session):
    """A model that says x for ever, whatever it is asked; gives the conversation and its session."""

    def start(**options):
        session = script_session(byte_tokenizer.encode("x").ids, byte_tokenizer.get_vocab_size())
        template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}>")
        return Conversation(session, byte_tokenizer, template, eos=[], **options), session

    return start


def test_turns_build_on_what_is_computed(conversation):
    talk, session = conversation()
    assert "".join(talk.say("hello", max_tokens=4)) == "xxxx"
    assert talk.messages[-1] == {"role": "assistant", "content": "xxxx"}
    first = len(session.tokens)
    "".join(talk.say("again", max_tokens=2))
    assert talk.result.cached_tokens == len("[hello]")  # then `>` becomes `[`
    assert talk.result.prompt_tokens == len("[hello][xxxx][again]>") > first


def test_an_interrupted_answer_stays_as_far_as_it_went(conversation):
    talk, _ = conversation()
    answer = talk.say("hello")
    assert next(answer) == "x"
    answer.close()
    assert talk.result.reason == "cancelled"
    assert [turn["content"] for turn in talk.messages] == ["hello", "x"]
    assert "".join(talk.say("more", max_tokens=3)) == "xxx"


def test_a_turn_that_cannot_be_asked_changes_nothing(conversation):
    talk, session = conversation()
    session.context = 30
    "".join(talk.say("hello", max_tokens=2))
    before = list(talk.messages)
    with pytest.raises(PenjingError, match="does not fit"):
        talk.say("a" * 40)
    assert talk.messages == before


def test_reset_keeps_the_system_message(conversation):
    talk, _ = conversation(system="Be brief.")
    "".join(talk.say("hello", max_tokens=2))
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
