"""Tests of `chat_template`: what templates can use, and what they cannot do."""

import datetime

import jinja2
import pytest

from alignjax.data.tokens import chat_template

MESSAGES = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]


def render(source, *, messages=MESSAGES, add_generation_prompt=False, now=None, **special_tokens):
  template = chat_template.ChatTemplate(source, special_tokens, now)
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
  ],
)
def test_templates_have_what_they_expect(source, expected):
  assert render(source, now=datetime.datetime(2021, 2, 3), bos_token='<s>') == expected


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


def test_messages_are_not_shared_with_the_template():
  messages = [dict(message) for message in MESSAGES]
  render("{% set _ = messages[0].content %}{{ messages | map(attribute='role') | join }}", messages=messages)
  assert messages == MESSAGES


def test_text_that_is_not_jinja_is_refused():
  with pytest.raises(chat_template.TemplateError, match='not valid Jinja'):
    chat_template.ChatTemplate('{% for %}', {})
  assert issubclass(chat_template.TemplateError, ValueError)
  assert not issubclass(chat_template.TemplateError, jinja2.TemplateError)
