"""Tests of `chat_template`: what templates can use, and what they cannot do."""

import contextlib
import datetime
import resource
import time

import jinja2
import pytest

from alignjax.data.tokens import chat_template
from tests.data.tokens import hostile_templates

MESSAGES = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]


def render(source, *, messages=MESSAGES, add_generation_prompt=False, date=None, **special_tokens):
  clock = datetime.datetime.now if date is None else lambda: date
  template = chat_template.ChatTemplate(source, special_tokens, clock)
  return template.render(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", '<s>Hi'),  # a token that is not set is empty
    ('{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}', 'user\nassistant\n'),
    ('{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}', 'Hi'),
    ('a{% generation %}{{ messages[1].content }}{% endgeneration %}b', 'aHellob'),
    ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
    ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
    ('{{ tools is none }} {{ documents is none }}', 'True True'),
    ('{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}', '2'),
    ("{{ strftime_now('%d %b %Y') }}", '03 Feb 2021'),
    ("{{ messages | map(attribute='content') | join('|') }} {{ '-'.join(['a', 'b']) }}", 'Hi|Hello a-b'),
    (
      "{{ '%s %5.1f' % ('a', 2) }} {{ '{:>4}{x!r}'.format(1, x='b') }} {{ 'a' * 3 + 'b' ~ 1 ~ [2] }}",
      "a   2.0    1'b' aaab1[2]",
    ),
    ("{{ ('a' ~ 'b\nc') | replace('b', 'x') | indent(2) }} {{ ' a '.strip().replace('a', 'bc') }}", 'ax\n  c bc'),
    ('{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{% set x %}y{% endset %}{{ x }}', '<1>y'),
    ('{% macro m(x) %}{{ caller() }}{% endmacro %}{% call m(2) %}<2>{% endcall %}', '<2>'),
    ('{% for x in [1, 2, 3] if x > 1 %}{{ loop.index }}/{{ loop.length }}={{ x }} {% endfor %}', '1/2=2 2/2=3 '),
    ('{% for x in [[1], [2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}', '12'),
    (
      "{{ '<' | e }}{{ '<' | safe + '<' }} {{ [3, 1] | sort | tojson }} {{ {'a': [1]}.items() | list }}",
      "&lt;<&lt; [1, 3] [('a', [1])]",
    ),
  ],
)
def test_templates_have_what_they_expect(source, expected):
  assert render(source, date=datetime.datetime(2021, 2, 3), bos_token='<s>') == expected


def test_generation_prompt_is_asked_for():
  source = '{% if add_generation_prompt %}yes{% else %}no{% endif %}'
  assert render(source, add_generation_prompt=True) == 'yes'
  assert render(source) == 'no'


def test_clock_is_the_default_date():
  assert render("{{ strftime_now('%Y') }}") in {str(datetime.datetime.now().year + i) for i in (-1, 0)}


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ("{{ raise_exception('only pairs') }}", 'only pairs'),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'unsafe'),
    ("{{ raise_exception.__globals__['os'] }}", 'unsafe'),
    ("{{ '{0.__class__.__mro__}'.format(1) }}", 'unsafe'),
    ('{{ messages.append(1) }}', 'SecurityError'),
    ("{{ messages[0].update({'content': 'x'}) }}", 'SecurityError'),
    ("{% include 'tokenizer.json' %}", 'TypeError'),
    ('{{ range(100000000) | list }}', 'OverflowError'),
    ('{{ nothing.at_all }}', 'UndefinedError'),
    ('{{ 1 / 0 }}', 'ZeroDivisionError'),
  ],
)
def test_failing_template_is_refused_whatever_it_raises(source, message):
  with pytest.raises(chat_template.TemplateError, match=message):
    render(source)


def test_the_date_is_asked_for_once_and_only_by_a_template_that_prints_it():
  dates = iter([datetime.datetime(2021, 2, 3), datetime.datetime(2021, 2, 4)])
  plain = chat_template.ChatTemplate('{{ messages[0].content }}', {}, lambda: pytest.fail('not asked for'))
  assert plain.date is None
  dated = chat_template.ChatTemplate("{{ strftime_now('%d') }}", {}, lambda: next(dates))
  assert [dated.render(MESSAGES, add_generation_prompt=False) for _ in range(2)] == ['03', '03']
  assert dated.date == datetime.datetime(2021, 2, 3)


@pytest.mark.parametrize('name', hostile_templates.TEMPLATES)
def test_a_template_cannot_stop_or_fill_the_machine(name):
  source = hostile_templates.TEMPLATES[name]
  seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(chat_template.TemplateError, match=r'^model/chat_template\.jinja: the chat template') as caught:
    chat_template.ChatTemplate(source, {}, origin='model/chat_template.jinja').render(
      MESSAGES, add_generation_prompt=False
    )
  assert time.process_time() - seconds < 1
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024  # KiB
  assert len(str(caught.value)) < 700


@pytest.mark.parametrize(('count', 'ends'), [(100, True), (5000, False)])
def test_loops_may_be_nested_within_limits(count, ends):
  source = '{% for i in range(COUNT) %}{% for j in range(COUNT) %}{% endfor %}{% endfor %}'.replace('COUNT', str(count))
  with contextlib.nullcontext() if ends else pytest.raises(chat_template.TemplateError, match='too many operations'):
    assert render(source) == ''


def test_long_conversations_are_not_hostile():
  """3 MB in one message, 1 MB in many, and 5000 messages, each read and written several times."""
  source = (
    '{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == "user" %}{% set ns.last = loop.index0 %}'
    '{% endif %}{% endfor %}{% for m in messages %}{% set content = m.content | trim %}'
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<' + m.role + '>' + content + eos_token }}{% endfor %}"
  )
  for count, size in ((1, 3_000_000), (300, 4_000), (5000, 20)):
    messages = [{'role': 'user', 'content': 'é' * size}] * count
    assert render(source, messages=messages, eos_token='</s>') == ('<user>' + 'é' * size + '</s>') * count


def test_a_source_that_is_not_text_is_refused():
  with pytest.raises(chat_template.TemplateError, match='config: chat_template must be text, not int'):
    chat_template.ChatTemplate(3, {}, origin='config')


def test_messages_are_not_shared_with_the_template():
  messages = [dict(message) for message in MESSAGES]
  render("{% set _ = messages[0].content %}{{ messages | map(attribute='role') | join }}", messages=messages)
  assert messages == MESSAGES


def test_text_that_is_not_jinja_is_refused():
  with pytest.raises(chat_template.TemplateError, match='not valid Jinja'):
    chat_template.ChatTemplate('{% for %}', {})
  assert issubclass(chat_template.TemplateError, ValueError)
  assert not issubclass(chat_template.TemplateError, jinja2.TemplateError)


def test_content_that_is_null_is_absent_and_empty_where_a_template_needs_a_text():
  messages = [{'role': 'assistant', 'content': None, 'tool_calls': [{'name': 'f'}]}]
  assert render("{{ messages[0].content is defined }}{{ messages[0]['content'] }}", messages=messages) == 'False'
  assert render("{{ '<' + messages[0].content + '>' }}", messages=messages) == '<>'
  with pytest.raises(chat_template.TemplateError, match='not at all'):
    render("{{ raise_exception('not at all') }}", messages=messages)


def test_variables_are_available_by_name():
  template = chat_template.ChatTemplate('{{ tools | tojson }} {{ thinking }} {{ documents is none }}', {})
  text = template.render(MESSAGES, {'tools': [1], 'thinking': False}, add_generation_prompt=False)
  assert text == '[1] False True'


ARGUED = '{{ thinking }} {{ style | default("plain") }} {{ messages | length }}'


def test_arguments_hold_for_every_rendering_and_a_conversation_can_have_its_own():
  template = chat_template.ChatTemplate(ARGUED, {'bos_token': '<s>'})
  argued = template.with_arguments({'thinking': False, 'style': 'terse'})
  assert argued.render(MESSAGES, add_generation_prompt=False) == f'False terse {len(MESSAGES)}'
  own = argued.render(MESSAGES, {'style': 'long'}, add_generation_prompt=False)
  assert own == f'False long {len(MESSAGES)}'
  assert template.render(MESSAGES, add_generation_prompt=False).split() == ['plain', str(len(MESSAGES))]


def test_arguments_reach_the_template_for_tools_and_may_be_read_by_it_alone():
  template = chat_template.ChatTemplate('plain', {})
  template.with_tools = chat_template.ChatTemplate('{{ tools[0] }} {{ thinking }}', {})
  argued = template.with_arguments({'thinking': 3})
  assert argued.render(MESSAGES, {'tools': ['x']}, add_generation_prompt=False) == 'x 3'
  assert argued.with_arguments({'tools': ['y'], 'thinking': 1}).render(MESSAGES, add_generation_prompt=False) == 'y 1'


def test_an_argument_that_the_template_does_not_read_is_refused():
  template = chat_template.ChatTemplate(ARGUED, {'bos_token': '<s>'})
  with pytest.raises(
    chat_template.TemplateError, match=r"reads no variable 'enable_thinking'; it reads style, thinking$"
  ):
    template.with_arguments({'enable_thinking': False, 'style': 'x'})
