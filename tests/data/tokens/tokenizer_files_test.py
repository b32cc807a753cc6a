"""Tests of `tokenizer_files`: added tokens of every file, and named templates."""

import json

import pytest

from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization
from tests.data import variants

USER = [{'role': 'user', 'content': 'Hi'}]
FLAGS = {'lstrip': False, 'rstrip': False, 'normalized': False, 'single_word': False}
START = 1  # the id of <|im_start|>


def without_added(folder, *, token='<|im_start|>', **config):
  """A folder whose tokenizer.json does not declare an added token that its vocabulary has."""
  variants.byte_level(folder, **config)
  content = json.loads((folder / 'tokenizer.json').read_text())
  kept = [each for each in content['added_tokens'] if each['content'] != token]
  variants.edit_json(folder / 'tokenizer.json', added_tokens=kept)
  return folder


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('tokenizer_config.json', {'added_tokens_decoder': {'1': {'content': '<|im_start|>', 'special': True} | FLAGS}}),
    ('tokenizer_config.json', {'additional_special_tokens': ['<|im_start|>']}),
    ('tokenizer_config.json', {'extra_special_tokens': {'start': {'content': '<|im_start|>'}}}),
    ('special_tokens_map.json', {'additional_special_tokens': [{'content': '<|im_start|>'}]}),
    ('added_tokens.json', {'<|im_start|>': 1}),
  ],
)
def test_a_token_that_another_file_declares_is_one_token(tmp_path, name, content):
  folder = without_added(tmp_path, bos_token=None)
  backend = tokenization.Tokenizer.load(folder).backend
  assert START not in backend.encode('<|im_start|>user', add_special_tokens=False).ids
  path = folder / name
  path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
  assert tokenization.Tokenizer.load(folder).encode_prompt('<|im_start|>user')[0] == START


@pytest.mark.parametrize(
  ('decoder', 'message'),
  [
    ({'1': {'content': '<|odd|>'}}, "the added token '<|odd|>' has the id 1, but tokenizer.json gives it 384"),
    ([1], 'added_tokens_decoder must be an object'),
    ({'x': {'content': 'a'}}, 'added_tokens_decoder must be an object'),
    ({'1': 'a'}, 'added_tokens_decoder must be an object'),
  ],
)
def test_a_declaration_that_cannot_be_right_is_refused_by_file(tmp_path, decoder, message):
  folder = variants.byte_level(tmp_path, added_tokens_decoder=decoder)
  with pytest.raises(ValueError, match=message) as caught:
    tokenization.Tokenizer.load(folder)
  assert str(folder / 'tokenizer_config.json') in str(caught.value)


def test_the_template_for_tools_is_used_for_rows_with_tools(tmp_path):
  default, tool = variants.TURNS + variants.GENERATION, '{{ tools | tojson }}' + variants.TURNS + variants.GENERATION
  named = [{'name': 'default', 'template': default}, {'name': 'tool_use', 'template': tool}]
  prompt = rows.Dialogue(USER, {'tools': [{'name': 'look'}]})
  first = tokenization.Tokenizer.load(variants.byte_level(tmp_path / 'a', chat_template=named))
  assert first.decode(first.encode_prompt(prompt), skip_special_tokens=False).startswith('[{"name": "look"}]')
  assert first.decode(first.encode_prompt(USER), skip_special_tokens=False).startswith('<|im_start|>')
  folder = variants.byte_level(tmp_path / 'b')
  (folder / 'additional_chat_templates').mkdir()
  (folder / 'additional_chat_templates' / 'tool_use.jinja').write_text(tool)
  assert tokenization.Tokenizer.load(folder).encode_prompt(prompt) == first.encode_prompt(prompt)


def test_templates_without_a_default_are_named_when_one_is_needed(tmp_path):
  named = [{'name': 'tool_use', 'template': variants.TURNS}, {'name': 'rag', 'template': variants.TURNS}]
  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path, chat_template=named))
  assert tokenizer.encode_prompt('The film')
  with pytest.raises(ValueError, match='no chat template named default, only rag, tool_use;'):
    tokenizer.encode_prompt(USER)


@pytest.mark.parametrize('template', [{'default': 'x'}, [{'template': 'x'}], [{'name': [], 'template': 'x'}], 3])
def test_malformed_templates_are_refused_by_file(tmp_path, template):
  folder = variants.byte_level(tmp_path, chat_template=template)
  with pytest.raises(ValueError, match=r'tokenizer_config\.json: chat_template must be'):
    tokenization.Tokenizer.load(folder)
