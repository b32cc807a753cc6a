"""Tests of `sources.FORMS`: every form documents its columns."""

import inspect

import pytest

from alignjax.data.reading import sources


@pytest.mark.parametrize('name', sources.FORMS)
def test_a_form_documents_its_columns(name):
  form = sources.FORMS[name]
  text = inspect.getdoc(form.parse)
  if name.endswith('_pair') or name == 'hh_text':
    assert text.startswith('The columns of')
    text += inspect.getdoc(sources.FORMS[name.removesuffix('_pair').removesuffix('_text')].parse)
  for column in form.columns:
    assert f'`{column}`' in text + inspect.getmodule(form.parse).__doc__
  assert not set(form.columns) & set(form.unused)
  assert sources.DEFAULT in sources.FORMS


def test_forms_are_found_by_the_number_of_responses():
  assert sources.forms_with({1}) == ['unpaired', 'conversation', 'supervised', 'text', 'chosen']
  assert set(sources.forms_with({2})) >= {'preference', 'ranked', 'scored', 'hh', 'alpaca'}
  assert not set(sources.forms_with({2})) & {'unpaired', 'prompts'}
